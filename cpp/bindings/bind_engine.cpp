#include "bindings/bindings.h"

namespace tq::bindings {

void bind_engine(py::module_& m) { (void)m; }

}  // namespace tq::bindings
