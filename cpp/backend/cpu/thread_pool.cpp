#include "backend/cpu/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <system_error>

#include "common/error.h"
#include "common/system.h"

namespace tq::cpu {
namespace {

constexpr uint32_t kThreadBits = 12, kThreadMask = (1u << kThreadBits) - 1;
static_assert(ThreadPool::kMaxThreads <= int(kThreadMask));

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until `word` differs from `old`; returns how long it slept.
std::chrono::nanoseconds await_change(const std::atomic<uint32_t>& word, uint32_t old, SpinLimit& limit) {
  for (int i = limit.pauses(); i > 0; i--) {
    if (word.load(std::memory_order_acquire) != old) return limit.waited({}), std::chrono::nanoseconds{};
    pause();
  }
  const auto start = std::chrono::steady_clock::now();
  word.wait(old, std::memory_order_acquire);
  const std::chrono::nanoseconds slept = std::chrono::steady_clock::now() - start;
  return limit.waited(slept), slept;
}

}  // namespace

void Barrier::wait() {
  const uint32_t threads = uint32_t(threads_);  // read before arriving: after that, the next region may set it
  if (threads == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < threads) {
    const int64_t slept = await_change(phase_, phase, limit_).count();
    if (slept > 0) slept_.fetch_add(slept, std::memory_order_relaxed);
    return;
  }
  arrived_.store(0, std::memory_order_relaxed);
  phase_.store(phase + 1, std::memory_order_release);
  phase_.notify_all();
}

ThreadPool::ThreadPool(int threads) : size_(threads) {
  if (threads < 1 || threads > kMaxThreads)
    throw Error(Cause::invalid_argument, "threads: " + std::to_string(threads) + " is not between 1 and " + std::to_string(kMaxThreads));
  start();
}

ThreadPool::~ThreadPool() {
  if (process_ != system::process_id()) (void)crew_.release();  // its threads are the parent's: nothing here could wait for them
}

// After a fork the old crew stays behind as it is: its threads do not exist here, so that they can be neither joined nor detached.
void ThreadPool::start() {
  auto crew = std::make_unique<Crew>(size_);
  (void)crew_.release();
  crew_ = std::move(crew);
  process_ = system::process_id();
}

void ThreadPool::run_erased(int threads, void (*call)(void*, int), void* context) {
  if (process_ != system::process_id()) start();
  Crew& crew = *crew_;
  threads = std::clamp(threads, 1, size());
  crew.barrier.reset(threads);
  if (threads > 1) {
    crew.call = call, crew.context = context;
    const uint32_t region = (crew.command.load(std::memory_order_relaxed) & ~kThreadMask) + (1u << kThreadBits);
    crew.command.store(region | uint32_t(threads), std::memory_order_release);
    crew.command.notify_all();
  }
  call(context, 0);
  crew.barrier.wait();  // all are done with `context`
}

ThreadPool::Crew::Crew(int threads) {
  workers.reserve(size_t(threads) - 1);
  try {
    for (int i = 1; i < threads; i++) workers.emplace_back([this, i] { work(i); });
  } catch (const std::system_error&) {
    stop();
    throw Error(Cause::out_of_memory, "threads: the system refused to start " + std::to_string(threads));
  }
}

void ThreadPool::Crew::stop() {
  command.store((command.load(std::memory_order_relaxed) & ~kThreadMask) + (1u << kThreadBits), std::memory_order_release);
  command.notify_all();
  for (auto& worker : workers) worker.join();
  workers.clear();
}

void ThreadPool::Crew::work(int thread) {
  for (uint32_t seen = 0;;) {
    await_change(command, seen, limit);
    seen = command.load(std::memory_order_acquire);
    const uint32_t threads = seen & kThreadMask;
    if (threads == 0) return;
    if (uint32_t(thread) >= threads) continue;
    call(context, thread);
    barrier.wait();
  }
}

}  // namespace tq::cpu
