// CUDA's error codes as the core's exceptions.
#pragma once
#include <cuda_runtime.h>

#include <string>

#include "common/error.h"

namespace tq::cuda {

inline void check(cudaError_t code, const std::string& what) {
  if (code == cudaSuccess) return;
  (void)cudaGetLastError();  // an error that is not sticky must not surface in a later call
  const Cause cause = code == cudaErrorMemoryAllocation ? Cause::out_of_memory : Cause::unsupported;
  throw Error(cause, "device cuda: " + what + ": " + cudaGetErrorString(code));
}

// After a kernel launch: its configuration was accepted.
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

}  // namespace tq::cuda
