// The forward of info_nce, dispatch and kernel, on NumPy arrays: tests/info_nce_cuda_host.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "cuda/info_nce_dispatch.hpp"

namespace py = pybind11;
using simtile::cuda::Device;
using simtile::cuda::InfoNceForwardArgs;

namespace {

using Bits = py::array_t<uint16_t>;  // bfloat16; rows are contiguous, strides between them are kept
template <class T>
using Optional = std::optional<py::array_t<T>>;

template <class T>
const T* pointer(const Optional<T>& values) {
  return values ? values->data() : nullptr;
}

template <class T>
T* output(Optional<T>& values) {
  return values ? values->mutable_data() : nullptr;
}

int64_t stride(const Bits& rows) { return rows.strides(0) / static_cast<int64_t>(sizeof(uint16_t)); }

InfoNceForwardArgs arguments(const Bits& queries, const Bits& documents, const std::optional<Bits>& negatives,
                             int64_t own_count, bool normalize, bool own_negatives) {
  InfoNceForwardArgs args = {};
  args.rows = queries.shape(0);
  args.documents = documents.shape(0);
  args.negatives = own_count;
  args.dimensions = queries.shape(1);
  args.queries_data = queries.data();
  args.documents_data = documents.data();
  args.queries_stride = stride(queries);
  args.documents_stride = stride(documents);
  if (negatives) {
    args.negatives_data = negatives->data();
    args.negatives_stride = stride(*negatives);
  }
  args.temperature = 1;
  args.normalize = normalize;
  args.own_negatives = own_negatives;
  return args;
}

Device device(int multiprocessors, std::size_t shared_bytes) { return {multiprocessors, shared_bytes, 80}; }

// What would be launched, for those who run the kernel elsewhere.
struct Recorder {
  py::dict& launched;

  void operator()(void (*)(InfoNceForwardArgs, float, int), dim3 grid, dim3 block, std::size_t shared_bytes,
                  InfoNceForwardArgs, float, int slice) const {
    launched["blocks"] = grid.x;
    launched["threads"] = block.x;
    launched["shared_bytes"] = shared_bytes;
    launched["slice"] = slice;
  }
};

}  // namespace

PYBIND11_MODULE(simtile_cuda_host_info_nce, module) {
  module.def(
      "plan",
      [](const Bits& queries, const Bits& documents, const std::optional<Bits>& negatives, int64_t own_count,
         bool normalize, bool own_negatives, int multiprocessors, std::size_t shared_bytes) {
        const InfoNceForwardArgs args = arguments(queries, documents, negatives, own_count, normalize, own_negatives);
        const Device on = device(multiprocessors, shared_bytes);
        const simtile::cuda::info_nce::Plan plan = simtile::cuda::info_nce::plan(args, on);
        py::dict launched;
        launched["row_tiles"] = plan.row_tiles;
        launched["column_tiles"] = plan.column_tiles;
        launched["aligned"] = plan.aligned;
        simtile::cuda::run(args, on, nullptr, Recorder{launched});
        return launched;
      },
      py::arg("queries").noconvert(), py::arg("documents").noconvert(), py::arg("negatives").noconvert(),
      py::arg("own_count"), py::arg("normalize"), py::arg("own_negatives"), py::arg("multiprocessors"),
      py::arg("shared_bytes"));
  module.def(
      "run",
      [](const Bits& queries, const Bits& documents, const std::optional<Bits>& negatives, int64_t own_count,
         const Optional<float>& temperature_data, double temperature, bool normalize, bool own_negatives,
         const Optional<int64_t>& targets, const Optional<int64_t>& query_ids, const Optional<int64_t>& document_ids,
         py::array_t<float>& losses, Optional<float>& row_maxima, Optional<float>& row_log_sums, int multiprocessors,
         std::size_t shared_bytes, uint64_t order) {
        InfoNceForwardArgs args = arguments(queries, documents, negatives, own_count, normalize, own_negatives);
        args.temperature_data = pointer(temperature_data);
        args.temperature = temperature;
        args.targets = pointer(targets);
        args.query_ids = pointer(query_ids);
        args.document_ids = pointer(document_ids);
        args.losses = losses.mutable_data();
        args.row_maxima = output(row_maxima);
        args.row_log_sums = output(row_log_sums);
        simtile::cuda::run(args, device(multiprocessors, shared_bytes), nullptr, cuda_host::Launch{order});
      },
      "negatives: [N * K, D], with own_count = K", py::arg("queries").noconvert(), py::arg("documents").noconvert(),
      py::arg("negatives").noconvert(), py::arg("own_count"), py::arg("temperature_data").noconvert(),
      py::arg("temperature"), py::arg("normalize"), py::arg("own_negatives"), py::arg("targets").noconvert(),
      py::arg("query_ids").noconvert(), py::arg("document_ids").noconvert(), py::arg("losses").noconvert(),
      py::arg("row_maxima").noconvert(), py::arg("row_log_sums").noconvert(), py::arg("multiprocessors"),
      py::arg("shared_bytes"), py::arg("order"));
}
