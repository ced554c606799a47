// MaxSim's dispatch and kernels on NumPy arrays: tests/maxsim_cuda.py. A call is a dict of the fields of MaxsimArgs, a side of
// them a tuple (kind, rows, starts, ends, mask), and of the device's multiprocessors and shared_bytes.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <map>

#include "cuda/maxsim_dispatch.hpp"

namespace py = pybind11;
namespace maxsim = simtile::cuda::maxsim;
using simtile::cuda::Device;
using simtile::cuda::MaxsimArgs;
using simtile::cuda::MaxsimKind;
using simtile::cuda::MaxsimRuns;

namespace {

const std::map<std::string, MaxsimKind> kinds = {
    {"float32", MaxsimKind::float32}, {"float16", MaxsimKind::float16}, {"bfloat16", MaxsimKind::bfloat16}};

// The memory of an array as it is, strides and alignment included: nothing is converted.
template <class T>
T* data(const py::handle& array) {
  if (array.is_none()) return nullptr;
  return const_cast<T*>(static_cast<const T*>(py::reinterpret_borrow<py::array>(array).data()));
}

MaxsimRuns runs(const py::tuple& side) {
  const py::array rows = py::reinterpret_borrow<py::array>(side[1]);
  MaxsimRuns runs = {};
  runs.kind = kinds.at(side[0].cast<std::string>());
  runs.data = rows.data();
  runs.stride = rows.strides(0);
  runs.count = py::reinterpret_borrow<py::array>(side[2]).shape(0);
  runs.starts = data<int64_t>(side[2]);
  runs.ends = data<int64_t>(side[3]);
  runs.mask = data<uint8_t>(side[4]);
  return runs;
}

MaxsimArgs arguments(const py::dict& given) {
  MaxsimArgs args = {};
  args.queries = runs(given["queries"]);
  args.documents = runs(given["documents"]);
  args.dimensions = py::reinterpret_borrow<py::array>(given["queries"].cast<py::tuple>()[1]).shape(1);
  args.longest_query = given["longest_query"].cast<int64_t>();
  args.normalize = given["normalize"].cast<bool>();
  args.pad_zero_rows = given["pad_zero_rows"].cast<bool>();
  args.length_normalize = given["length_normalize"].cast<bool>();
  args.empty_score = given["empty_score"].cast<float>();
  args.candidates = data<int64_t>(given["candidates"]);
  args.candidate_count =
      args.candidates ? py::reinterpret_borrow<py::array>(given["candidates"]).shape(1) : args.documents.count;
  args.scores = data<float>(given["scores"]);
  args.argmax = data<int32_t>(given["argmax"]);
  args.token_scores = data<float>(given["token_scores"]);
  args.rows_before = data<int64_t>(given["rows_before"]);
  return args;
}

Device device(const py::dict& given) {
  return {given["multiprocessors"].cast<int>(), given["shared_bytes"].cast<std::size_t>(), 80};
}

}  // namespace

PYBIND11_MODULE(simtile_cuda_host_maxsim, module) {
  module.def(
      "workspace_bytes", [](const py::dict& given) { return workspace_bytes(arguments(given), device(given)); },
      py::arg("given"));
  module.def(
      "plan",
      [](const py::dict& given) {
        const maxsim::Plan plan = maxsim::plan(arguments(given), device(given), nullptr);
        py::dict found;
        found["columns"] = plan.work.columns;
        found["planes"] = plan.work.planes;
        found["staged"] = plan.staged;
        found["groups"] = plan.groups;
        found["queries_per_group"] = plan.work.queries_per_group;
        found["launch_items"] = plan.launch_items;
        return found;
      },
      py::arg("given"));
  module.def(
      "run",
      [](const py::dict& given, py::array& workspace, uint64_t order) {
        run(arguments(given), device(given), workspace.mutable_data(), cuda_host::Launch{order});
      },
      py::arg("given"), py::arg("workspace"), py::arg("order"));
}
