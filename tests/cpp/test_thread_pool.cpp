#include <atomic>
#include <numeric>
#include <thread>

#include "backend/cpu/thread_pool.h"
#include "check.h"
#include "common/cpu_count.h"

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
