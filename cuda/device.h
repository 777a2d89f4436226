// What the current device can do, looked up once per device.
#pragma once
#include "error.h"

namespace tq::cuda {

inline constexpr int kMaxDevices = 64;
inline constexpr int kStaticSharedBytes = 1024;  // left for a kernel's own small arrays

struct DeviceLimits {
  int processors = 0;
  int capability = 0;        // 90 for 9.0
  int64_t shared_bytes = 0;  // dynamic, of one block, when asked for
};
const DeviceLimits& device_limits();

// Whether the library holds machine code (or PTX) that runs on the current device.
bool has_code_for_device();

// Lets a kernel use `bytes` of dynamic shared memory on the current device.
template <class Kernel>
void allow_shared(Kernel* kernel, int64_t bytes) {
  if (bytes > 0) check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)), "shared memory of a kernel");
}

}  // namespace tq::cuda
