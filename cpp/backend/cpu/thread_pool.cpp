#include "backend/cpu/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <system_error>

#include "common/error.h"

namespace tq::cpu {
namespace {

constexpr uint32_t kThreadBits = 12, kThreadMask = (1u << kThreadBits) - 1;
constexpr int kSpins = 3000;  // about 50 us: longer than the work between two operations, shorter than anybody's time slice

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// True when `word` was seen to differ from `old`.
bool spin(const std::atomic<uint32_t>& word, uint32_t old) {
  for (int i = 0; i < kSpins; i++) {
    if (word.load(std::memory_order_acquire) != old) return true;
    pause();
  }
  return false;
}

}  // namespace

void Barrier::wait() {
  const uint32_t threads = uint32_t(threads_);  // read before arriving: after that, the next region may set it
  if (threads == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < threads) {
    if (spin(phase_, phase)) return;
    const auto start = std::chrono::steady_clock::now();
    phase_.wait(phase, std::memory_order_acquire);
    const auto slept = std::chrono::steady_clock::now() - start;
    slept_.fetch_add(std::chrono::nanoseconds(slept).count(), std::memory_order_relaxed);
    return;
  }
  arrived_.store(0, std::memory_order_relaxed);
  phase_.store(phase + 1, std::memory_order_release);
  phase_.notify_all();
}

ThreadPool::ThreadPool(int threads) {
  if (threads < 1 || uint32_t(threads) > kThreadMask)
    throw Error(Cause::invalid_argument, "threads: " + std::to_string(threads) + " is not between 1 and " + std::to_string(kThreadMask));
  workers_.reserve(size_t(threads) - 1);
  try {
    for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { work(i); });
  } catch (const std::system_error&) {
    stop();
    throw Error(Cause::out_of_memory, "threads: the system refused to start " + std::to_string(threads));
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  command_.store((command_.load(std::memory_order_relaxed) & ~kThreadMask) + (1u << kThreadBits), std::memory_order_release);
  command_.notify_all();
  for (auto& worker : workers_) worker.join();
  workers_.clear();
}

void ThreadPool::run_erased(int threads, void (*call)(void*, int), void* context) {
  threads = std::clamp(threads, 1, size());
  barrier_.reset(threads);
  if (threads > 1) {
    call_ = call, context_ = context;
    const uint32_t region = (command_.load(std::memory_order_relaxed) & ~kThreadMask) + (1u << kThreadBits);
    command_.store(region | uint32_t(threads), std::memory_order_release);
    command_.notify_all();
  }
  call(context, 0);
  barrier_.wait();  // all are done with `context`
}

void ThreadPool::work(int thread) {
  for (uint32_t seen = 0;;) {
    if (!spin(command_, seen)) command_.wait(seen, std::memory_order_acquire);
    seen = command_.load(std::memory_order_acquire);
    const uint32_t threads = seen & kThreadMask;
    if (threads == 0) return;
    if (uint32_t(thread) >= threads) continue;
    call_(context_, thread);
    barrier_.wait();
  }
}

}  // namespace tq::cpu
