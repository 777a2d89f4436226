#include "bindings/bindings.h"

namespace tq::bindings {

void bind_quant(py::module_& m) { (void)m; }

}  // namespace tq::bindings
