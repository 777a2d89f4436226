// A stack of its own that a thread can switch to and from: what each lane of an emulated thread-group runs on. Switching costs a few
// nanoseconds (no system call) and is announced to AddressSanitizer.
#pragma once
#include <cstddef>

namespace shim {

class Fiber {
 public:
  Fiber() = default;  // stands for the thread's own stack: it can only be switched away from
  // entry(context) begins at the first switch to this fiber and must never return.
  Fiber(void (*entry)(void*), void* context);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Goes on in `to`; returns when some fiber switches back to this one, which must be the running one.
  void switch_to(Fiber& to);

 private:
  static void start();
  void arrived(void* fake_stack);

  void* stack_pointer_ = nullptr;  // while another fiber runs
  char* stack_ = nullptr;
  [[maybe_unused]] const void* bottom_ = nullptr;  // as the sanitizer wants to hear it
  [[maybe_unused]] size_t bytes_ = 0;
  void (*entry_)(void*) = nullptr;
  void* context_ = nullptr;
};

}  // namespace shim
