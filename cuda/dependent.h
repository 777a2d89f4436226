// Kernels of a chain that start before their predecessor has ended (programmatic dependent launch): what does not depend on it, such as the
// first codes and the codebook, is fetched meanwhile. A kernel launched so must call await_inputs() before it touches anything that an
// earlier kernel writes or reads.
#pragma once
#include "device.h"

namespace tq::cuda {

#ifdef __CUDACC__
// Until the kernels before this one have ended and what they wrote can be read.
__device__ inline void await_inputs() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may start when all blocks of this one have come here, or ended.
__device__ inline void release_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

template <class... Parameters, class... Arguments>
void launch_dependent(const char* name, void (*kernel)(Parameters...), dim3 grid, unsigned threads, int64_t shared_bytes,
                      cudaStream_t stream, Arguments&&... arguments) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = dim3(threads), config.dynamicSmemBytes = size_t(shared_bytes), config.stream = stream;
  config.attrs = &early, config.numAttrs = device_limits().capability >= 90 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), name);
}
#endif

}  // namespace tq::cuda
