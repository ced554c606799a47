// Bindings of the sample kernels, and kernels that are wrong in one way each: tests/test_cuda_host.py.
#include "selftest.cuh"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "selftest_wrong.cuh"

namespace py = pybind11;
using namespace simtile::cuda::selftest;
using cuda_host::Launch;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;  // noconvert below: no copies

template <class T>
void bind_shuffles(py::module_& module) {
  module.def(
      "shuffles",
      [](unsigned mask, int width, int distance, const Array<T>& values, const Array<int>& sources, Array<T>& out,
         uint64_t order) {
        Launch{order}(shuffles<T>, 1, 32, 0, mask, width, distance, values.data(), sources.data(), out.mutable_data());
      },
      py::arg(), py::arg(), py::arg(), py::arg().noconvert(), py::arg().noconvert(), py::arg().noconvert(),
      py::arg("order") = 0);
}

template <int K, class Element, class T>
void bind_tile_product(py::module_& module, const char* name) {
  module.def(
      name,
      [](const Array<Element>& a, const Array<Element>& b, Array<T>& d, uint64_t order) {
        Launch{order}(tile_product<K, Element, T>, 1, 32, 0, a.data(), b.data(), d.mutable_data());
      },
      py::arg().noconvert(), py::arg().noconvert(), py::arg().noconvert(), py::arg("order") = 0);
}

}  // namespace

PYBIND11_MODULE(simtile_cuda_host_selftest, module) {
  module.def("block_sums", [](const Array<float>& values, Array<float>& sums, int threads, uint64_t order) {
    const size_t bytes = sizeof(float) * size_t(threads + threads / 32);
    Launch{order}(block_sums, unsigned(sums.size()), unsigned(threads), bytes, values.data(), sums.mutable_data());
  });
  bind_shuffles<uint32_t>(module);
  bind_shuffles<float>(module);
  bind_shuffles<uint64_t>(module);
  bind_shuffles<double>(module);
  module.def("reductions", [](unsigned mask, const Array<int>& values, Array<int>& out, uint64_t order) {
    Launch{order}(reductions, 1, 32, 0, mask, values.data(), out.mutable_data());
  });
  module.def("bit_intrinsics", [](const Array<unsigned>& a, const Array<unsigned>& b, Array<int>& out) {
    const int count = int(a.size());
    Launch{}(bit_intrinsics, unsigned(count + 63) / 64, 64, 0, a.data(), b.data(), out.mutable_data(), count);
  });
  module.def("to_bfloat16", [](const Array<float>& values, Array<uint16_t>& rounded, Array<float>& widened) {
    const int count = int(values.size());
    Launch{}(to_bfloat16, unsigned(count + 63) / 64, 64, 0, values.data(),
             reinterpret_cast<__nv_bfloat16*>(rounded.mutable_data()), widened.mutable_data(), count);
  });
  bind_tile_product<16, uint16_t, float>(module, "mma_bf16");
  bind_tile_product<32, int8_t, int>(module, "mma_s8");
  module.def("async_pipeline", [](const Array<uint32_t>& from, Array<uint32_t>& to, int threads, int steps,
                                  int last_bytes, uint64_t order) {
    Launch{order}(async_pipeline, 1, unsigned(threads), 32 * size_t(threads),
                  reinterpret_cast<const uint4*>(from.data()), reinterpret_cast<uint4*>(to.mutable_data()), steps,
                  last_bytes);
  });
  module.def("log_steps", [](Array<int>& log, int blocks, int threads, int steps, uint64_t order) {
    int position = 0;
    Launch{order}(log_steps, unsigned(blocks), unsigned(threads), 0, log.mutable_data(), &position, steps);
    return position;
  });
  module.def("launch_empty", [](std::array<unsigned, 3> grid, std::array<unsigned, 3> block, size_t dynamic_bytes) {
    Launch{}(empty, dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]), dynamic_bytes);
  });
  module.def(
      "wrong",
      [](const std::string& name, Array<int>& global, uint64_t order, int threads, size_t dynamic_bytes) {
        Launch{order}(wrong_kernels().at(name), 1, unsigned(threads), dynamic_bytes, global.mutable_data());
      },
      py::arg(), py::arg().noconvert(), py::arg("order") = 0, py::arg("threads") = 64, py::arg("dynamic_bytes") = 1024);
}
