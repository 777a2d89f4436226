// Work items over threads that live for one call. The calling thread watches: it reports progress and may stop the work by throwing.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>

namespace tq {

int worker_count(int64_t items, int threads);  // threads 0: all cores; at least 1

// Shared by the workers of one call.
struct Progress {
  std::atomic<int64_t> done{0};   // in the caller's own unit; the workers add to it
  std::atomic<bool> stop{false};  // set when one of the threads failed: long items should look at it and return early
};

// Runs body(item, worker) for every item of [0, items), each once, in no fixed order, on worker_count(items, threads) workers;
// `worker` numbers them from 0. watch(done) is called on the calling thread a few times a second and once at the end. The first exception
// of a body or of watch stops the work and is thrown here after every worker has ended.
using Body = std::function<void(int64_t item, int worker)>;
using Watch = std::function<void(int64_t done)>;
void parallel_for(int64_t items, int threads, Progress& progress, const Body& body, const Watch& watch = nullptr);

}  // namespace tq
