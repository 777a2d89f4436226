// The extension module: how errors travel, and the areas that bind themselves.
#include "bindings/bindings.h"
#include "common/error.h"

namespace tq::bindings {

static PyObject* format_error = nullptr;
static PyObject* unsupported_error = nullptr;

static PyObject* python_type(Cause cause) {
  switch (cause) {
    case Cause::invalid_argument:
      return PyExc_ValueError;
    case Cause::bad_file:
      return format_error;
    case Cause::io:
      return PyExc_OSError;
    case Cause::out_of_memory:
      return PyExc_MemoryError;
    case Cause::unsupported:
      return unsupported_error;
    case Cause::closed:
      return PyExc_RuntimeError;
  }
  return PyExc_RuntimeError;
}

static void add_errors(py::module_& m) {
  format_error = PyErr_NewException("turboquant_native._core.FormatError", PyExc_ValueError, nullptr);
  unsupported_error = PyErr_NewException("turboquant_native._core.UnsupportedError", PyExc_RuntimeError, nullptr);
  m.attr("FormatError") = py::handle(format_error);
  m.attr("UnsupportedError") = py::handle(unsupported_error);
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const Error& e) {
      PyErr_SetString(python_type(e.cause), e.what());
    }
  });
}

}  // namespace tq::bindings

PYBIND11_MODULE(_core, m) {
  using namespace tq::bindings;
  m.doc() = "The compiled core of turboquant_native; see _core.pyi.";
  add_errors(m);
  bind_format(m);
  bind_quant(m);
  bind_gguf(m);
  bind_engine(m);
  bind_layer_runner(m);
  bind_graph(m);
}
