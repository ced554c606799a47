#include <pybind11/pybind11.h>

#include "threads.hpp"

namespace py = pybind11;

namespace simtile {
void register_cpu(py::module_& m);
void register_info_nce(py::module_& m);
void register_maxsim(py::module_& m);
void register_maxsim_backward(py::module_& m);
void register_maxsim_codes(py::module_& m);
void register_maxsim_topk(py::module_& m);
void register_pairwise(py::module_& m);
void register_peak(py::module_& m);
void register_pool(py::module_& m);
void register_quantize(py::module_& m);
void register_siglip(py::module_& m);
void register_topk(py::module_& m);
}  // namespace simtile

PYBIND11_MODULE(_core, m) {
  m.attr("__version__") = SIMTILE_VERSION;
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const simtile::Cancelled&) {
      // PyErr_CheckSignals has set the error that the signal's handler raised.
      if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, "the call was cancelled");
    }
  });
  simtile::register_cpu(m);
  simtile::register_info_nce(m);
  simtile::register_maxsim(m);
  simtile::register_maxsim_backward(m);
  simtile::register_maxsim_codes(m);
  simtile::register_maxsim_topk(m);
  simtile::register_pairwise(m);
  simtile::register_peak(m);
  simtile::register_pool(m);
  simtile::register_quantize(m);
  simtile::register_siglip(m);
  simtile::register_topk(m);
}
