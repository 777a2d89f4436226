// Timing on a device: medians over events, inputs rotated through more memory than the caches hold.
#pragma once
#include <algorithm>
#include <functional>
#include <random>
#include <vector>

#include "format/reference.h"
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

// A packed matrix of random codes, described in host memory that `planes` owns.
struct RandomMatrix {
  std::vector<uint8_t> codes;
  std::vector<uint16_t> row_scale;
  std::vector<int8_t> codebook;
  HostMatrix host;
  RandomMatrix(int64_t n_out, int64_t n_in, int k) {
    tqn::PlaneBytes bytes;
    tqn::plane_bytes(uint64_t(n_out), uint64_t(n_in), k, &bytes);
    std::mt19937_64 random{7};
    codes.resize(bytes.codes);
    for (size_t i = 0; i + 8 <= codes.size(); i += 8) {
      const uint64_t bits = random();
      std::copy_n(reinterpret_cast<const uint8_t*>(&bits), 8, &codes[i]);
    }
    row_scale.assign(bytes.row_scale / 2, f32_to_f16(1.f));
    const auto book = reference::default_codebook(k);
    codebook.assign(book.begin(), book.end());
    host.name = "random", host.packed = true;
    TqnMatrix& w = host.tqn;
    w.n_out = n_out, w.n_in = n_in, w.k = k, w.codes = codes.data(), w.row_scale = row_scale.data(), w.codebook = codebook.data();
    w.scale = 0.001f;
  }
};

// Bytes read and written a second by a device-to-device copy.
inline double copy_bandwidth() {
  const int64_t bytes = int64_t(2) << 30;
  cuda::DeviceMemory from(bytes), to(bytes);
  const double t = seconds(
      nullptr, 4, [&](int) { check(cudaMemcpyAsync(to.as<void>(), from.as<void>(), size_t(bytes), cudaMemcpyDeviceToDevice), "copy"); });
  return 2 * double(bytes) / t;
}

}  // namespace bench
