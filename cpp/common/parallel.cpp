#include "common/parallel.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "common/cpu_count.h"

namespace tq {

int worker_count(int64_t items, int threads) {
  return int(std::clamp<int64_t>(threads > 0 ? threads : cpu_count(), 1, std::max<int64_t>(items, 1)));
}

namespace {

constexpr auto kWatchInterval = std::chrono::milliseconds(50);

class Team {
 public:
  Team(int64_t items, Progress& progress, const Body& body) : items_(items), progress_(progress), body_(body) {}
  ~Team() { end(); }

  void start(int workers) {
    for (int w = 0; w < workers; w++) {
      {
        std::lock_guard lock(mutex_);
        running_++;
      }
      try {
        threads_.emplace_back([this, w] { work(w); });
      } catch (...) {  // no more threads to be had: those that run do all the work
        std::lock_guard lock(mutex_);
        running_--;
        if (w == 0) throw;
        return;
      }
    }
  }

  void wait(const Watch& watch) {
    std::unique_lock lock(mutex_);
    while (!all_ended_.wait_for(lock, kWatchInterval, [this] { return running_ == 0; })) {
      lock.unlock();
      if (watch) watch(progress_.done);
      lock.lock();
    }
    if (error_) std::rethrow_exception(error_);
    lock.unlock();
    if (watch) watch(progress_.done);
  }

 private:
  void work(int worker) {
    try {
      for (int64_t item; !progress_.stop && (item = next_++) < items_;) body_(item, worker);
    } catch (...) {
      std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
      progress_.stop = true;
    }
    std::lock_guard lock(mutex_);
    if (--running_ == 0) all_ended_.notify_all();
  }

  void end() {
    progress_.stop = true;
    for (auto& t : threads_) t.join();
  }

  const int64_t items_;
  Progress& progress_;
  const Body& body_;
  std::atomic<int64_t> next_{0};
  std::mutex mutex_;
  std::condition_variable all_ended_;
  int running_ = 0;
  std::exception_ptr error_;
  std::vector<std::thread> threads_;
};

}  // namespace

void parallel_for(int64_t items, int threads, Progress& progress, const Body& body, const Watch& watch) {
  if (items <= 0) return;
  Team team(items, progress, body);
  team.start(worker_count(items, threads));
  team.wait(watch);
}

}  // namespace tq
