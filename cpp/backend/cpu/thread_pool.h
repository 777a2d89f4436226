// Persistent workers for short parallel regions. The calling thread is thread 0 of every region. Waiting spins for a while and then
// sleeps; starting a region or passing a barrier allocates nothing and takes no lock.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace tq::cpu {

// Holds back its n threads until all have arrived. Everything written before arrival is seen by all after it.
class Barrier {
 public:
  void reset(int threads) { threads_ = threads; }  // only while no thread is inside
  void wait();
  int64_t take_slept() { return slept_.exchange(0, std::memory_order_relaxed); }  // nanoseconds that threads slept here since the last call

 private:
  int threads_ = 1;
  std::atomic<int64_t> slept_{0};
  alignas(64) std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  int size() const { return int(workers_.size()) + 1; }

  // Calls job(thread) for thread = 0 .. threads - 1 at once (threads <= size()) and returns when all are done. One region at a time; job
  // must not throw.
  template <class Job>
  void run(int threads, Job&& job) {
    run_erased(threads, [](void* context, int thread) { (*static_cast<std::remove_reference_t<Job>*>(context))(thread); }, &job);
  }
  void barrier() { barrier_.wait(); }  // inside a region: all its threads
  double take_slept() {
    return 1e-9 * double(barrier_.take_slept());
  }  // seconds that threads slept at barriers since the last call, summed

 private:
  void run_erased(int threads, void (*call)(void*, int), void* context);
  void work(int thread);
  void stop();

  void (*call_)(void*, int) = nullptr;
  void* context_ = nullptr;
  Barrier barrier_;
  // Region number in the upper bits, its number of threads in the lower: one word, so that a worker that has no part in a region never
  // mistakes the next one for it. Threads 0: the end.
  alignas(64) std::atomic<uint32_t> command_{0};
  std::vector<std::thread> workers_;
};

}  // namespace tq::cpu
