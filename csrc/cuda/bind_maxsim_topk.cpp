#include <pybind11/pybind11.h>

#include <cstdint>

#include "call.hpp"
#include "operations.hpp"
#include "runtime.hpp"

namespace py = pybind11;

namespace simtile::cuda {
namespace {

using Address = std::uintptr_t;

MaxsimTopkArgs arguments(const MaxsimArgs& pairs, int64_t k, Address allow, int64_t allow_stride, Address scores,
                         Address ids) {
  require_at_least("k", k, 1);
  require_at_least("allow_stride", allow_stride, 0);
  MaxsimTopkArgs args = {};
  args.pairs = pairs;
  args.k = k;
  args.allow = as_pointer<const uint8_t>(allow);
  args.allow_stride = allow_stride;
  args.scores = as_pointer<float>(scores);
  args.ids = as_pointer<int64_t>(ids);
  return args;
}

int64_t workspace_bytes(const MaxsimTopkArgs& args, int device) {
  return maxsim_topk_workspace_bytes(args, device_facts(device));
}

void run(const MaxsimTopkArgs& args, int device, Address stream, Address workspace, int64_t size) {
  require_memory("scores", reinterpret_cast<Address>(args.scores), args.pairs.queries.count > 0);
  require_memory("ids", reinterpret_cast<Address>(args.ids), args.pairs.queries.count > 0);
  const Device facts = device_facts(device);
  require_workspace(workspace, size, maxsim_topk_workspace_bytes(args, facts));
  const py::gil_scoped_release release;
  const DeviceGuard guard(device);
  queue_maxsim_topk(args, facts, as_pointer<void>(workspace), as_stream(stream));
}

}  // namespace

void register_maxsim_topk(py::module_& m) {
  py::class_<MaxsimTopkArgs>(m, "MaxsimTopkArgs")
      .def(py::init(&arguments), py::kw_only(), py::arg("pairs"), py::arg("k"), py::arg("allow"),
           py::arg("allow_stride"), py::arg("scores"), py::arg("ids"));
  m.def("maxsim_topk_workspace_bytes", &workspace_bytes, py::arg("args"), py::arg("device"));
  m.def("maxsim_topk", &run, py::arg("args"), py::arg("device"), py::arg("stream"), py::arg("workspace"),
        py::arg("workspace_bytes"));
}

}  // namespace simtile::cuda
