// Timing on a device: medians over events, inputs rotated through more memory than the caches hold.
#pragma once
#include <algorithm>
#include <functional>
#include <vector>

#include "../random_matrix.h"
#include "matrix.h"

namespace bench {

using namespace tq;
using tq::cuda::check;

// Median seconds of one call, over `repeats` timings of `calls` calls each.
inline double seconds(cudaStream_t stream, int calls, const std::function<void(int)>& call, int repeats = 9) {
  cudaEvent_t start, stop;
  check(cudaEventCreate(&start), "event"), check(cudaEventCreate(&stop), "event");
  for (int i = 0; i < calls; i++) call(i);
  std::vector<float> times;
  for (int r = 0; r < repeats; r++) {
    check(cudaEventRecord(start, stream), "record");
    for (int i = 0; i < calls; i++) call(i);
    check(cudaEventRecord(stop, stream), "record");
    check(cudaEventSynchronize(stop), "timed work");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, start, stop), "elapsed");
    times.push_back(ms / float(calls) / 1000);
  }
  cudaEventDestroy(start), cudaEventDestroy(stop);
  std::nth_element(times.begin(), times.begin() + repeats / 2, times.end());
  return times[size_t(repeats / 2)];
}

// Bytes read and written a second by a device-to-device copy.
inline double copy_bandwidth() {
  const int64_t bytes = int64_t(2) << 30;
  cuda::DeviceMemory from(bytes), to(bytes);
  const double t = seconds(
      nullptr, 4, [&](int) { check(cudaMemcpyAsync(to.as<void>(), from.as<void>(), size_t(bytes), cudaMemcpyDeviceToDevice), "copy"); });
  return 2 * double(bytes) / t;
}

}  // namespace bench
