#include "bindings/bindings.h"

namespace tq::bindings {

void bind_gguf(py::module_& m) { (void)m; }

}  // namespace tq::bindings
