// A mutex that a forked child does not wait for in vain. A thread that held it in the parent does not exist in the child: there lock()
// throws.
#pragma once
#include <atomic>

#include "common/error.h"
#include "common/system.h"

namespace tq {

class ForkMutex {
 public:
  // Throws Error(closed) when the process was forked while another thread held the mutex: what it guards may be half changed.
  void lock() {
    const int own = system::process_id();
    for (int holder = 0; !holder_.compare_exchange_weak(holder, own, std::memory_order_acquire, std::memory_order_relaxed); holder = 0) {
      if (holder == 0) continue;
      if (holder != own)
        throw Error(Cause::closed, "this process was forked while its parent was computing with this model: open the model again here");
      holder_.wait(holder, std::memory_order_relaxed);
    }
  }
  void unlock() {
    holder_.store(0, std::memory_order_release);
    holder_.notify_one();
  }
  // Whether lock() would throw.
  bool lost() const {
    const int holder = holder_.load(std::memory_order_relaxed);
    return holder != 0 && holder != system::process_id();
  }

 private:
  std::atomic<int> holder_{0};  // the process whose thread holds it; 0: none
};

}  // namespace tq
