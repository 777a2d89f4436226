#include "decode_loop.h"
#include "device.h"
#include "gemv_one.cuh"
#include "measure.h"

namespace bench {
namespace {

using namespace tq::cuda;

constexpr int kUnrolled = 4;  // steps of a turn

// Changes codes between steps, so that none of the decoding can be taken out of the loop.
__device__ inline uint32_t next_random(uint32_t x) { return x * 1664525 + 1013904223; }

template <int K, int Warps>
__global__ void __launch_bounds__(Warps* kWarp, 1) decode_loop(int steps, int* out) {
  extern __shared__ __align__(16) char shared[];
  __shared__ int8_t codebook[tqn::codebook_size(K)];
  if (threadIdx.x < sizeof codebook) codebook[threadIdx.x] = int8_t(threadIdx.x % tqn::kTableSize);
  __syncthreads();
  fill_table<K, false, kManyTables>(shared, codebook);
  __syncthreads();
  const uint32_t table = lane_table(shared_address(shared));
  Codes<K> codes[2];
  uint32_t x = threadIdx.x;
#pragma unroll
  for (auto& group : codes)
#pragma unroll
    for (uint32_t& word : group.word) word = x = next_random(x);
  int sums[kSingleTokenRows] = {};
#pragma unroll 1
  for (int step = 0; step < steps; step += kUnrolled) {
#pragma unroll
    for (int i = 0; i < kUnrolled; i++) {
#pragma unroll
      for (auto& group : codes)
#pragma unroll
        for (uint32_t& word : group.word) word = next_random(word);
      x = next_random(x);
      add_rows<kManyTables>(codes, table, int(x), sums, std::make_integer_sequence<int, kLaneRows>());
    }
  }
  int all = 0;
#pragma unroll
  for (const int sum : sums) all += sum;
  out[blockIdx.x * blockDim.x + threadIdx.x] = all;
}

template <int K, int Warps>
double step_seconds() {
  constexpr int64_t kSharedBytes = kManyTables * table_bytes(K);
  const int blocks = device_limits().processors;
  const DeviceMemory out(int64_t(blocks) * Warps * kWarp * 4);
  allow_shared(decode_loop<K, Warps>, kSharedBytes);
  const auto time = [&](int steps) {
    return seconds(nullptr, 1, [&](int) {
      decode_loop<K, Warps><<<blocks, Warps * kWarp, kSharedBytes>>>(steps, out.as<int>());
      check(cudaGetLastError(), "decode loop");
    });
  };
  constexpr int kFew = 400, kMany = 1200;  // of a warp: the difference is free of what begins and ends a kernel
  return (time(kMany) - time(kFew)) / double(kMany - kFew) / Warps;
}

template <int K>
double best() {
  return std::min({step_seconds<K, 8>(), step_seconds<K, 12>(), step_seconds<K, 16>(), step_seconds<K, 20>(), step_seconds<K, 24>(),
                   step_seconds<K, 28>(), step_seconds<K, 32>()});
}

}  // namespace

double decode_step_seconds(int k) { return k == 2 ? best<2>() : k == 3 ? best<3>() : best<4>(); }

int64_t decode_step_weights() { return int64_t(kWarp) * kSingleTokenRows * tqn::kTileCols; }

}  // namespace bench
