// Threads that stay, for parallel work of microseconds ("regions"). The thread that starts a region takes part in it as thread 0. A thread
// that waits spins for a moment and then sleeps; starting a region or passing a barrier allocates nothing and takes no lock.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace tq::cpu {

// How long to spin before sleeping. Spinning answers fastest as long as the awaited thread is running. When it is not, because others use
// the cores too, spinning takes time from whoever has something to do, and the wait is as long as the system's time slices. So the limit
// falls after a long sleep and rises after a short one, or none.
class SpinLimit {
 public:
  static constexpr int kLeast = 64, kMost = 4096;
  int pauses() const { return pauses_.load(std::memory_order_relaxed); }
  void waited(std::chrono::nanoseconds slept) { set(slept < kShort ? std::min(2 * pauses(), kMost) : std::max(pauses() / 2, kLeast)); }

 private:
  static constexpr std::chrono::microseconds kShort{500};
  void set(int pauses) {
    if (pauses != this->pauses()) pauses_.store(pauses, std::memory_order_relaxed);
  }
  std::atomic<int> pauses_{kMost};
};

// Holds back its n threads until all have arrived. Everything written before arrival is seen by all after it.
class Barrier {
 public:
  void reset(int threads) { threads_ = threads; }  // only while no thread is inside
  void wait();
  int64_t take_slept() { return slept_.exchange(0, std::memory_order_relaxed); }  // nanoseconds that threads slept here since the last call

 private:
  int threads_ = 1;
  std::atomic<int64_t> slept_{0};
  SpinLimit limit_;
  alignas(64) std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

class ThreadPool {
 public:
  static constexpr int kMaxThreads = 4095;
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  int size() const { return size_; }

  // Calls job(thread) for thread = 0 .. threads - 1 at once (threads <= size()) and returns when all are done. One region at a time; job
  // must not throw. In a process forked off the one that made the pool, the first call starts new threads (out_of_memory when it cannot).
  template <class Job>
  void run(int threads, Job&& job) {
    run_erased(threads, [](void* context, int thread) { (*static_cast<std::remove_reference_t<Job>*>(context))(thread); }, &job);
  }
  void barrier() { crew_->barrier.wait(); }  // inside a region: all its threads
  // Seconds that threads slept at barriers since the last call, summed.
  double take_slept() { return 1e-9 * double(crew_->barrier.take_slept()); }

 private:
  // The threads and what they wait at.
  struct Crew {
    explicit Crew(int threads);
    ~Crew() { stop(); }
    void work(int thread);
    void stop();

    void (*call)(void*, int) = nullptr;
    void* context = nullptr;
    Barrier barrier;
    SpinLimit limit;  // of waiting for the next region
    // Region number in the upper bits, its number of threads in the lower: one word, so that a worker that has no part in a region never
    // mistakes the next one for it. Threads 0: the end.
    alignas(64) std::atomic<uint32_t> command{0};
    std::vector<std::thread> workers;
  };
  void run_erased(int threads, void (*call)(void*, int), void* context);
  void start();

  const int size_;
  int process_ = 0;  // that the crew's threads belong to
  std::unique_ptr<Crew> crew_;
};

}  // namespace tq::cpu
