// What Python sees of the core. The files here check and convert arguments, cut a prompt into batches (bind_engine.cpp) and hold objects
// that can be closed (handles.h); all computing is in the folders below. One file an area; module.cpp lists them.
#pragma once
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "model/model.h"

namespace py = pybind11;

namespace tq::bindings {

void bind_format(py::module_& m);  // layout constants, the scalar oracle
void bind_quant(py::module_& m);   // encode, decode, rotate
void bind_gguf(py::module_& m);    // GgufFile
void bind_engine(py::module_& m);  // Model, Context, Sampler, backends
void bind_layer_runner(py::module_& m);
void bind_graph(py::module_& m);  // the operations of a model, for those who differentiate them

CacheType parse_cache(const std::string& name);  // bind_engine.cpp

template <class T>
using Array = py::array_t<T, py::array::c_style>;  // conversion only where the caller asked for it: wrong dtypes are errors, see `require`

}  // namespace tq::bindings
