// Why a device cannot serve, in the words of both implementations of device.h. Those of opening are prefixed by the backend.
#pragma once
#include <string>

#include "common/error.h"

namespace tq::metal {

inline Error old_system() { return {Cause::unsupported, "macOS 13 or later is needed"}; }
inline Error old_gpu(const std::string& gpu) {
  return {Cause::unsupported, gpu + " is older than Apple's M1 (family Apple7), which is needed"};
}
inline Error no_library(const std::string& gpu, const std::string& why) {
  return {Cause::unsupported, "the kernels do not compile on " + gpu + ": " + why};
}
inline Error no_pipeline(const std::string& kernel, const std::string& gpu, const std::string& why) {
  return {Cause::unsupported, "device metal: " + kernel + " does not compile on " + gpu + ": " + why};
}
inline Error no_memory(int64_t bytes, const std::string& gpu) {
  return {Cause::out_of_memory, "device metal: cannot allocate " + std::to_string(bytes) + " bytes on " + gpu};
}

}  // namespace tq::metal
