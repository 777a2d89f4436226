#include <mutex>
#include <vector>

#include "device.h"

namespace tq::cuda {
namespace {

__global__ void probe_kernel() {}

}  // namespace

const DeviceLimits& device_limits() {
  static std::mutex mutex;
  static std::vector<DeviceLimits> known(kMaxDevices);
  int device = 0;
  check(cudaGetDevice(&device), "current device");
  std::lock_guard lock(mutex);
  DeviceLimits& limits = known.at(size_t(device));
  if (limits.processors == 0) {
    int shared = 0, processors = 0, major = 0, minor = 0;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "compute capability");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "compute capability");
    check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "shared memory limit");
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "processor count");
    limits = {processors, 10 * major + minor, shared - kStaticSharedBytes};
  }
  return limits;
}

bool has_code_for_device() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, probe_kernel) == cudaSuccess;
}

}  // namespace tq::cuda
