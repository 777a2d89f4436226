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

// "clang 22.1.8, libc++, x86_64-linux-gnu.2.28"
static std::string build_text() {
#if defined(__clang__)
  std::string text =
      "clang " + std::to_string(__clang_major__) + "." + std::to_string(__clang_minor__) + "." + std::to_string(__clang_patchlevel__);
#elif defined(__GNUC__)
  std::string text = "gcc " + std::to_string(__GNUC__) + "." + std::to_string(__GNUC_MINOR__) + "." + std::to_string(__GNUC_PATCHLEVEL__);
#else
  std::string text = "unknown compiler";
#endif
#if defined(_LIBCPP_VERSION)
  text += ", libc++";
#elif defined(__GLIBCXX__)
  text += ", libstdc++";
#endif
  return text + ", " TQ_BUILD_TARGET;
}

}  // namespace tq::bindings

PYBIND11_MODULE(_core, m) {
  using namespace tq::bindings;
  m.doc() = "The compiled core of turboquant_native; see _core.pyi.";
  m.attr("BUILD") = build_text();
  add_errors(m);
  bind_format(m);
  bind_quant(m);
  bind_gguf(m);
  bind_engine(m);
  bind_layer_runner(m);
  bind_graph(m);
}
