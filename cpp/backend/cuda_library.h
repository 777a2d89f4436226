// What libtq_cuda.so exports: one C function that returns this table. The library is built with the core and loaded when a device is asked
// for.
#pragma once
#include "backend/backend.h"

namespace tq {

inline constexpr int kCudaLibraryVersion = 1;  // raised whenever this table, Backend or what they use changes

struct CudaLibrary {
  int version;
  Backend* (*make)(const BackendOptions& options);  // throws Error
  std::string (*status)(int device);                // "available: ..." or "unsupported: why"
};

extern "C" const CudaLibrary* tq_cuda_library();

}  // namespace tq
