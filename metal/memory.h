// A backend's memory, with its owner and its account.
#pragma once
#include <algorithm>
#include <atomic>

#include "backend/backend.h"
#include "common/error.h"
#include "common/system.h"
#include "device.h"

namespace tq::metal {

// The device and what is counted of it. Buffers and matrices share it, so that it outlives them. A forked process inherits the objects but
// cannot use the device through them, not even to free.
struct Context {
  explicit Context(int number) : device(open_device(number)), nothing(device->allocate(256)) {}
  ~Context() {
    if (inherited()) (void)nothing.release(), (void)device.release();
  }
  bool inherited() const { return process != system::process_id(); }

  std::unique_ptr<Device> device;
  std::unique_ptr<Memory> nothing;  // bound where a kernel needs no buffer
  std::atomic<int64_t> bytes{0};    // allocated
  const int process = system::process_id();
};
using ContextPtr = std::shared_ptr<Context>;

class Allocation {
 public:
  explicit Allocation(ContextPtr context) : context_(std::move(context)) {}
  Allocation(ContextPtr context, int64_t bytes) : context_(std::move(context)) { reserve(bytes); }
  Allocation(Allocation&& other) noexcept { swap(other); }
  Allocation& operator=(Allocation&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Allocation() { clear(); }

  int64_t bytes() const { return memory_ ? memory_->bytes() : 0; }
  // Grows to at least `bytes`; the contents are lost (zeros) when it does.
  void reserve(int64_t wanted) {
    if (wanted < 0) throw Error(Cause::invalid_argument, "buffer of " + std::to_string(wanted) + " bytes");
    if (wanted <= bytes()) return;
    clear();
    memory_ = context_->device->allocate(wanted);
    context_->bytes += memory_->bytes();
  }
  Bound at(int64_t offset = 0) const { return memory_ ? Bound{memory_.get(), offset} : Bound{context_->nothing.get(), 0}; }
  template <class T = char>
  T* data() const {
    return memory_ ? static_cast<T*>(memory_->data()) : nullptr;
  }

 private:
  void clear() {
    if (!memory_) return;
    if (context_->inherited())
      (void)memory_.release();
    else
      context_->bytes -= memory_->bytes();
    memory_.reset();
  }
  void swap(Allocation& other) noexcept { std::swap(context_, other.context_), std::swap(memory_, other.memory_); }

  ContextPtr context_;
  std::unique_ptr<Memory> memory_;
};

struct MetalBuffer final : Buffer {
  MetalBuffer(ContextPtr context, int64_t size) : memory(std::move(context), size) { bytes = size; }
  Allocation memory;
};
inline const Allocation& memory_of(const Buffer& buffer) { return static_cast<const MetalBuffer&>(buffer).memory; }
inline Bound at(const Plane& plane) { return memory_of(*plane.buffer).at(); }

[[noreturn]] inline void unsupported(const std::string& what) { throw Error(Cause::unsupported, "device metal: " + what); }

}  // namespace tq::metal
