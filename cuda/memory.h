// Device memory with an owner.
#pragma once
#include <atomic>
#include <cstdint>
#include <utility>

#include "backend/backend.h"
#include "error.h"

namespace tq::cuda {

// Bytes that live DeviceMemory objects hold, over all backends of the process.
inline std::atomic<int64_t> allocated_bytes{0};

class DeviceMemory {
 public:
  DeviceMemory() = default;
  explicit DeviceMemory(int64_t bytes) : bytes_(bytes) {
    if (bytes < 0) throw Error(Cause::invalid_argument, "buffer of " + std::to_string(bytes) + " bytes");
    if (bytes == 0) return;
    check(cudaMalloc(&data_, size_t(bytes)), "cannot allocate " + std::to_string(bytes) + " bytes");
    allocated_bytes += bytes;
    check(cudaMemset(data_, 0, size_t(bytes)), "clearing new memory");
    check(cudaDeviceSynchronize(), "clearing new memory");  // other streams do not wait for this
  }
  DeviceMemory(DeviceMemory&& other) noexcept { swap(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    swap(other);
    return *this;
  }
  ~DeviceMemory() {
    if (!data_) return;
    cudaFree(data_);
    allocated_bytes -= bytes_;
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  int64_t bytes() const { return bytes_; }
  // Grows to at least `bytes`; the contents are lost (zero again) when it does.
  void reserve(int64_t bytes) {
    if (bytes <= bytes_) return;
    *this = DeviceMemory();
    *this = DeviceMemory(bytes);
  }

 private:
  void swap(DeviceMemory& other) noexcept { std::swap(data_, other.data_), std::swap(bytes_, other.bytes_); }
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

struct CudaBuffer final : Buffer {
  explicit CudaBuffer(int64_t size) : memory(size) { bytes = size; }
  DeviceMemory memory;
};

template <class T = float>
T* data(const Buffer* buffer) {
  return buffer ? static_cast<const CudaBuffer*>(buffer)->memory.as<T>() : nullptr;
}

}  // namespace tq::cuda
