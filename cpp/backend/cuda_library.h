// What libtq_cuda.so exports: one C function that returns this table. The library is built with the core and loaded when a device is asked
// for.
#pragma once
#include "backend/backend.h"

namespace tq {

#if defined(_LIBCPP_VERSION)
inline constexpr int kStandardLibrary = 1000;  // libc++'s strings, vectors and exceptions are not libstdc++'s: the two do not go together
#else
inline constexpr int kStandardLibrary = 0;
#endif
inline constexpr int kCudaLibraryVersion = 5 + kStandardLibrary;  // raised whenever this table, Backend or what they use changes

struct CudaLibrary {
  int version;
  Backend* (*make)(const BackendOptions& options);  // throws Error
  std::string (*status)(int device);                // "available: ..." or "unsupported: why"
  // Codes of trellis tiles, host memory: x (tiles, 256) targets in units of the codebook's integers, codebook (64), codes (tiles, 32 * k).
  // Throws Error.
  void (*encode)(int device, const float* x, int64_t tiles, int k, const int8_t* codebook, uint8_t* codes);
};

extern "C" const CudaLibrary* tq_cuda_library();

const CudaLibrary& cuda_library();  // throws Error(unsupported) when it cannot be loaded

}  // namespace tq
