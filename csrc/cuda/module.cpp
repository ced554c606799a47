// simtile._cuda: device memory comes as integers, so that nothing here depends on who allocated it. Calls return when
// their kernels are queued on the stream; they neither allocate nor wait, so a CUDA graph can capture them.
#include <pybind11/pybind11.h>
#include <pybind11/typing.h>

#include <cstdint>
#include <string>

#include "runtime.hpp"

namespace py = pybind11;

namespace simtile::cuda {
void register_info_nce(py::module_& m);
void register_maxsim(py::module_& m);
void register_maxsim_topk(py::module_& m);
void register_topk(py::module_& m);

namespace {

using Info = py::typing::Dict<py::str, py::object>;

// As CMAKE_CUDA_ARCHITECTURES has them: "80" is machine code and PTX, "86-real" only machine code.
py::typing::List<py::str> architectures() {
  py::typing::List<py::str> list;
  const std::string all(SIMTILE_CUDA_ARCHITECTURES);
  for (size_t at = 0, end = 0; end != std::string::npos; at = end + 1) {
    end = all.find(' ', at);
    if (const std::string one = all.substr(at, end - at); !one.empty()) list.append(one);
  }
  return list;
}

// As CUDA numbers them: 1000 * major + 10 * minor.
int runtime_version() {
  int version = 0;
  check(cudaRuntimeGetVersion(&version), "cudaRuntimeGetVersion");
  return version;
}

// 0 where there is no driver.
int driver_version() {
  int version = 0;
  check(cudaDriverGetVersion(&version), "cudaDriverGetVersion");
  return version;
}

Info describe(int device) {
  const Device facts = device_facts(device);
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  Info info;
  info["name"] = py::str(properties.name);
  info["compute_capability"] = facts.compute_capability;
  info["multiprocessors"] = facts.multiprocessors;
  info["shared_bytes_per_block"] = facts.shared_bytes_per_block;
  info["memory_bytes"] = properties.totalGlobalMem;
  info["l2_bytes"] = properties.l2CacheSize;
  return info;
}

// Where the memory is; the current device for a null pointer, -1 for memory of the host.
int device_of(std::uintptr_t pointer) {
  device_count();
  int device = 0;
  if (pointer == 0) {
    check(cudaGetDevice(&device), "cudaGetDevice");
    return device;
  }
  cudaPointerAttributes attributes;
  check(cudaPointerGetAttributes(&attributes, reinterpret_cast<const void*>(pointer)), "cudaPointerGetAttributes");
  const bool on_device = attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
  return on_device ? attributes.device : -1;
}

}  // namespace
}  // namespace simtile::cuda

PYBIND11_MODULE(_cuda, m) {
  using namespace simtile::cuda;
  m.attr("__version__") = SIMTILE_VERSION;
  m.def("architectures", &architectures);
  m.def("runtime_version", &runtime_version);
  m.def("driver_version", &driver_version);
  m.def("device_count", &device_count);
  m.def("device_info", &describe, py::arg("device"));
  m.def("device_of", &device_of, py::arg("pointer"));
  m.def(
      "wait_for_stream",
      [](int device, std::uintptr_t stream, std::uintptr_t other) {
        device_facts(device);
        const py::gil_scoped_release release;
        wait_for_stream(device, as_stream(stream), as_stream(other));
      },
      py::arg("device"), py::arg("stream"), py::arg("other"));
  register_info_nce(m);
  register_maxsim(m);
  register_maxsim_topk(m);
  register_topk(m);
}
