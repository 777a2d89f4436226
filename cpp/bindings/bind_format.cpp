#include "bindings/bindings.h"

namespace tq::bindings {

void bind_format(py::module_& m) { (void)m; }

}  // namespace tq::bindings
