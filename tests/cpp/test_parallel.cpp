#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "common/parallel.h"

using namespace tq;

TEST("every item runs once, on workers numbered from 0") {
  for (int threads : {1, 2, 7, 100}) {
    std::vector<std::atomic<int>> runs(50);
    std::atomic<bool> numbered = true;
    Progress progress;
    parallel_for(50, threads, progress, [&](int64_t item, int worker) {
      runs[size_t(item)]++;
      if (worker < 0 || worker >= worker_count(50, threads)) numbered = false;
    });
    for (const auto& count : runs) CHECK_EQ(count.load(), 1);
    CHECK(numbered);
  }
  Progress progress;
  parallel_for(0, 4, progress, [](int64_t, int) { CHECK(false); });
}

TEST("worker_count: never more than items, all cores for 0, at least one") {
  CHECK_EQ(worker_count(3, 8), 3);
  CHECK_EQ(worker_count(8, 3), 3);
  CHECK_EQ(worker_count(0, 4), 1);
  CHECK(worker_count(1000000, 0) >= 1);
}

TEST("an item's exception stops the others and arrives here") {
  Progress progress;
  std::atomic<int> runs = 0;
  bool thrown = false;
  try {
    parallel_for(100000, 3, progress, [&](int64_t item, int) {
      runs++;
      if (item == 5) throw std::out_of_range("five");
      std::this_thread::yield();
    });
  } catch (const std::out_of_range& e) {
    thrown = std::string(e.what()) == "five";
  }
  CHECK(thrown && progress.stop);
  CHECK(runs < 100000);
}

TEST("watch runs on the calling thread, once at the end with everything done") {
  const auto caller = std::this_thread::get_id();
  Progress progress;
  int64_t last = -1;
  parallel_for(
      20, 2, progress, [&](int64_t, int) { progress.done += 3; },
      [&](int64_t done) {
        CHECK(std::this_thread::get_id() == caller && done >= last);
        last = done;
      });
  CHECK_EQ(last, 60);
}

TEST("what watch throws stops the work") {
  Progress progress;
  bool thrown = false;
  try {
    parallel_for(
        2, 2, progress,
        [&](int64_t, int) {
          while (!progress.stop) std::this_thread::yield();
        },
        [](int64_t) { throw 7; });
  } catch (int value) {
    thrown = value == 7;
  }
  CHECK(thrown);
}
