// The Metal backend is a stub so far: it answers with the reason.
#include "backend/backend.h"

#include "common/error.h"

namespace tq {

static constexpr const char* kNoMetal = "unsupported: the Metal backend is not built yet";

std::unique_ptr<Backend> make_metal_backend(const BackendOptions&) {
  throw Error(Cause::unsupported, std::string("device metal: ") + kNoMetal);
}
std::string metal_status() { return kNoMetal; }

}  // namespace tq
