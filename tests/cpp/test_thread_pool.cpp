#if !defined(_WIN32)
#include <sys/wait.h>
#include <unistd.h>
#endif

#include <atomic>
#include <mutex>
#include <numeric>
#include <thread>

#include "backend/cpu/thread_pool.h"
#include "check.h"
#include "common/cpu_count.h"
#include "common/fork_mutex.h"

using tq::cpu::ThreadPool;

TEST("every thread of a region runs once, whatever its size") {
  ThreadPool pool(5);
  CHECK_EQ(pool.size(), 5);
  for (int region = 0; region < 2000; region++) {
    const int threads = 1 + region % 5;
    std::vector<int> calls(5);
    pool.run(threads, [&](int thread) { calls[size_t(thread)]++; });
    for (int i = 0; i < 5; i++) CHECK_EQ(calls[size_t(i)], int(i < threads));
  }
}

TEST("a barrier makes everything before it visible after it") {
  ThreadPool pool(4);
  for (int threads = 1; threads <= 4; threads++) {
    std::vector<int64_t> values(size_t(threads), 1), next(values.size());
    pool.run(threads, [&](int thread) {
      for (int round = 0; round < 200; round++) {  // each becomes the sum of all, modulo a prime
        next[size_t(thread)] = (std::accumulate(values.begin(), values.end(), int64_t(0)) + thread) % 10007;
        pool.barrier();
        values[size_t(thread)] = next[size_t(thread)];
        pool.barrier();
      }
    });
    std::vector<int64_t> expected(size_t(threads), 1);
    for (int round = 0; round < 200; round++) {
      const int64_t sum = std::accumulate(expected.begin(), expected.end(), int64_t(0));
      for (int i = 0; i < threads; i++) expected[size_t(i)] = (sum + i) % 10007;
    }
    CHECK(values == expected);
  }
}

TEST("workers that slept wake up") {
  ThreadPool pool(3);
  std::atomic<int> calls{0};
  for (int i = 0; i < 5; i++) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // longer than workers spin
    pool.run(3, [&](int thread) {
      if (thread == i % 3) std::this_thread::sleep_for(std::chrono::milliseconds(20));  // the others sleep at the barrier
      pool.barrier();
      calls++;
    });
  }
  CHECK_EQ(calls.load(), 15);
}

TEST("waiting threads spin less after long sleeps, and more again after short ones") {
  using namespace std::chrono_literals;
  tq::cpu::SpinLimit limit;
  CHECK_EQ(limit.pauses(), tq::cpu::SpinLimit::kMost);
  for (int i = 0; i < 20; i++) limit.waited(3ms);
  CHECK_EQ(limit.pauses(), tq::cpu::SpinLimit::kLeast);
  for (int i = 0; i < 20; i++) limit.waited(i % 2 ? 0us : 20us);
  CHECK_EQ(limit.pauses(), tq::cpu::SpinLimit::kMost);
}

TEST("pools come and go, used or not") {
  for (int i = 0; i < 50; i++) {
    ThreadPool pool(1 + i % 4);
    if (i % 2) pool.run(pool.size(), [](int) {});
  }
}

TEST("unusable sizes are refused") {
  for (int threads : {0, -1, 4096}) CHECK_THROWS(ThreadPool(threads), tq::Cause::invalid_argument, std::to_string(threads).c_str());
}

TEST("there is at least one core to use") {
  CHECK(tq::cpu_count() >= 1);
  CHECK(tq::cpu_count() <= int(std::max(1u, std::thread::hardware_concurrency())));
}

#if !defined(_WIN32) && !defined(__SANITIZE_THREAD__)  // no forks there; and no following of the threads that a forked child starts
namespace {

// Runs body in a forked child that may take ten seconds; true when it returned true.
template <class Body>
bool in_child(Body&& body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(10);
    _exit(body() ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

int calls_of(ThreadPool& pool) {
  std::atomic<int> calls{0};
  pool.run(pool.size(), [&](int) {
    pool.barrier();
    calls++;
  });
  return calls;
}

}  // namespace

TEST("a forked child gets threads of its own, and the parent keeps its own") {
  auto pool = std::make_unique<ThreadPool>(3);
  CHECK_EQ(calls_of(*pool), 3);
  CHECK(in_child([&] { return calls_of(*pool) == 3 && calls_of(*pool) == 3; }));
  CHECK(in_child([&] { return pool.reset(), true; }));  // without having used it
  CHECK(in_child([&] { return calls_of(*pool) == 3 && (pool.reset(), true); }));
  CHECK(in_child([&] { return in_child([&] { return calls_of(*pool) == 3; }) && calls_of(*pool) == 3; }));
  CHECK_EQ(calls_of(*pool), 3);
}

TEST("a mutex that was held when the process was forked is an error in the child, not a wait for ever") {
  tq::ForkMutex mutex;
  {
    std::lock_guard lock(mutex);
    CHECK(!mutex.lost());
    CHECK(in_child([&] {
      try {
        mutex.lock();
      } catch (const tq::Error& e) {
        return e.cause == tq::Cause::closed && mutex.lost();
      }
      return false;
    }));
  }
  CHECK(in_child([&] { return mutex.lock(), mutex.unlock(), !mutex.lost(); }));
}
#endif

TEST("a mutex lets one thread in at a time") {
  tq::ForkMutex mutex;
  int64_t count = 0;
  std::vector<std::thread> users;
  for (int i = 0; i < 4; i++)
    users.emplace_back([&] {
      for (int n = 0; n < 20000; n++) {
        std::lock_guard lock(mutex);
        count++;
      }
    });
  for (auto& user : users) user.join();
  CHECK_EQ(count, 80000);
}
