// Device memory with an owner, counted in the account of the backend that it was allocated for.
#pragma once
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

#include "backend/backend.h"
#include "error.h"

namespace tq::cuda {

// A backend's device memory. A forked process inherits the objects but cannot use the device through them, not even to free.
struct Account {
  std::atomic<int64_t> bytes{0};
  const int process = int(getpid());
  bool inherited() const { return process != int(getpid()); }
};
// Where this thread's allocations are counted now: CudaBackend sets it at each of its entries. Null: nowhere.
inline thread_local std::shared_ptr<Account> current_account;

class DeviceMemory {
 public:
  DeviceMemory() = default;
  explicit DeviceMemory(int64_t bytes) : bytes_(bytes) {
    if (bytes < 0) throw Error(Cause::invalid_argument, "buffer of " + std::to_string(bytes) + " bytes");
    if (bytes == 0) return;
    check(cudaMalloc(&data_, size_t(bytes)), "cannot allocate " + std::to_string(bytes) + " bytes");
    account_ = current_account;
    if (account_) account_->bytes += bytes;
    check(cudaMemset(data_, 0, size_t(bytes)), "clearing new memory");
    check(cudaDeviceSynchronize(), "clearing new memory");  // other streams do not wait for this
  }
  DeviceMemory(DeviceMemory&& other) noexcept { swap(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    swap(other);
    return *this;
  }
  ~DeviceMemory() {
    if (!data_ || inherited()) return;
    cudaFree(data_);
    if (account_) account_->bytes -= bytes_;
  }
  bool inherited() const { return account_ && account_->inherited(); }  // from the process that this one was forked off
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
  void swap(DeviceMemory& other) noexcept {
    std::swap(data_, other.data_), std::swap(bytes_, other.bytes_), std::swap(account_, other.account_);
  }
  void* data_ = nullptr;
  int64_t bytes_ = 0;
  std::shared_ptr<Account> account_;
};

// Host memory that kernels read over the bus; no part of an account.
inline std::shared_ptr<void> mapped_host_memory(int64_t bytes) {
  void* data = nullptr;
  check(cudaHostAlloc(&data, size_t(bytes), cudaHostAllocMapped), "cannot pin " + std::to_string(bytes) + " bytes of host memory");
  return {data, [process = int(getpid())](void* p) {
            if (process == int(getpid())) cudaFreeHost(p);
          }};
}

struct CudaBuffer final : Buffer {
  explicit CudaBuffer(int64_t size) : memory(size) { bytes = size; }
  DeviceMemory memory;
};

template <class T = float>
T* data(const Buffer* buffer) {
  return buffer ? static_cast<const CudaBuffer*>(buffer)->memory.as<T>() : nullptr;
}

}  // namespace tq::cuda
