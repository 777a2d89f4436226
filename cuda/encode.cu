// The tail-biting search for a tile's codes (format/reference.h says which) with one block a tile: 256 threads walk the 4096 states.
//
// A step goes from states s to s' = (s << K | bits) mod 4096. Only the minimum over the K bits that a state loses matters to the next step,
// so what is kept of 4096 costs is one for each overlap u = s mod 2^(12 - K). A thread owns 16 states s', as 2^K states h * kOverlaps + u
// that end in the same u, for its overlaps u. Costs are the reference's integers (format/search.h) with h in the K lowest bits, so that one
// addition-and-minimum compares costs and remembers the decision.
#include <climits>

#include "device.h"
#include "encode.h"
#include "format/search.h"

namespace tq::cuda {
namespace {

constexpr uint32_t kThreads = 256;
constexpr uint32_t kSteps = tqn::kTileSteps;

template <int K>
struct Trellis {
  static constexpr uint32_t kOverlaps = tqn::kStates >> K, kChoices = 1 << K, kOwn = kOverlaps / kThreads;
  static constexpr int kSharedBytes = 2 * kOverlaps * int(sizeof(int)) + kSteps * kThreads + kSteps * int(sizeof(int)) + kSteps;
  int c[kOwn][kChoices], squares[kOwn][kChoices];  // of this thread's states: value, and weight * value^2 | choice

  int* costs;          // two planes of kOverlaps
  uint8_t* decisions;  // (kSteps, kThreads): kOwn choices of K bits
  int* targets;        // (kSteps) in search order: from the last step of the tile to the first
  uint8_t* bits;       // (kSteps) the K bits of each step of the tile

  __device__ Trellis(char* shared, const int8_t* codebook) {
    costs = reinterpret_cast<int*>(shared), decisions = reinterpret_cast<uint8_t*>(costs + 2 * kOverlaps);
    targets = reinterpret_cast<int*>(decisions + kSteps * kThreads), bits = reinterpret_cast<uint8_t*>(targets + kSteps);
#pragma unroll
    for (uint32_t n = 0; n < kOwn; n++)
#pragma unroll
      for (uint32_t h = 0; h < kChoices; h++) {
        const int value = tqn::window_value<K>(h * kOverlaps + first_overlap() + n, codebook);
        c[n][h] = value, squares[n][h] = (value * value * tqn::step_cost(K, 0, 1).weight << K) | int(h);
      }
  }

  __device__ static uint32_t first_overlap() { return threadIdx.x * kOwn; }

  __device__ void load_targets(const float* x) {
    targets[threadIdx.x] = tqn::step_cost(K, x[kSteps - 1 - threadIdx.x], 1).slope * int(kChoices);  // the choice's bits stay
  }

  __device__ void step(const int* from, int* to, int target, uint8_t* decision) const {
    int best[kOwn];
#pragma unroll
    for (uint32_t n = 0; n < kOwn; n++) best[n] = INT_MAX;
#pragma unroll
    for (uint32_t h = 0; h < kChoices; h++)
#pragma unroll
      for (uint32_t n = 0; n < kOwn; n++)
        best[n] = __viaddmin_s32(c[n][h] * target + squares[n][h], from[(h * kOverlaps + first_overlap() + n) >> K], best[n]);
    uint32_t choices = 0;
#pragma unroll
    for (uint32_t n = 0; n < kOwn; n++) {
      choices |= (uint32_t(best[n]) & (kChoices - 1)) << (K * n);
      to[first_overlap() + n] = best[n] & -int(kChoices);
    }
    *decision = uint8_t(choices);
  }

  // All steps from target `first` on, around the circle; costs start in plane 0 and end there.
  __device__ void search(uint32_t first) const {
    for (uint32_t i = 0; i < kSteps; i += 2) {
      step(costs, costs + kOverlaps, targets[(first + i) % kSteps], decisions + i * kThreads + threadIdx.x);
      __syncthreads();
      step(costs + kOverlaps, costs, targets[(first + i + 1) % kSteps], decisions + (i + 1) * kThreads + threadIdx.x);
      __syncthreads();
    }
  }

  __device__ void start(int overlap) {
    for (uint32_t n = 0; n < kOwn; n++)
      costs[first_overlap() + n] = overlap < 0 || overlap == int(first_overlap() + n) ? 0 : tqn::kUnreachable;
    __syncthreads();
  }

  // The state at step i of the search whose overlap is u.
  __device__ uint32_t state(uint32_t i, uint32_t u) const {
    const uint32_t choice = decisions[i * kThreads + u / kOwn] >> (K * (u % kOwn)) & (kChoices - 1);
    return choice * kOverlaps + u;
  }

  // The overlap that closes the circle, from a search that starts and ends opposite the seam.
  __device__ int find_overlap() {
    __shared__ long long best;
    __shared__ int overlap;
    start(-1);
    if (threadIdx.x == 0) best = LLONG_MAX;
    search(kSteps / 2);
    for (uint32_t n = 0; n < kOwn; n++) atomicMin(&best, (long long)(costs[first_overlap() + n]) * tqn::kStates + int(first_overlap() + n));
    __syncthreads();
    if (threadIdx.x == 0) {
      uint32_t u = uint32_t(best & (tqn::kStates - 1));
      for (uint32_t i = kSteps - 1; i >= kSteps / 2; i--) u = state(i, u) >> K;
      overlap = int(u);
    }
    __syncthreads();
    return overlap;
  }

  __device__ void encode(uint8_t* tile) {
    const int overlap = find_overlap();
    start(overlap);
    search(0);
    if (threadIdx.x == 0)
      for (uint32_t t = 0, u = uint32_t(overlap); t < kSteps; t++) {
        const uint32_t s = state(kSteps - 1 - t, u);
        bits[t] = uint8_t(s & (kChoices - 1));
        u = s >> K;
      }
    __syncthreads();
    for (uint32_t byte = threadIdx.x; byte < 32 * K; byte += kThreads) {
      uint32_t value = 0;
      for (uint32_t b = 0; b < 8; b++) value |= (bits[(8 * byte + b) / K] >> ((8 * byte + b) % K) & 1u) << b;
      tile[tqn::place_of_byte(K, int(byte))] = uint8_t(value);
    }
  }
};

template <int K>
__global__ void __launch_bounds__(kThreads) encode_kernel(const float* x, const int8_t* codebook, uint8_t* tiles) {
  extern __shared__ __align__(16) char shared[];
  Trellis<K> trellis(shared, codebook);
  trellis.load_targets(x + int64_t(blockIdx.x) * kSteps);
  trellis.encode(tiles + int64_t(blockIdx.x) * tqn::tile_bytes(K));
}

template <int K>
void launch(const float* x, int64_t tiles, const int8_t* codebook, uint8_t* codes, cudaStream_t stream) {
  allow_shared(encode_kernel<K>, Trellis<K>::kSharedBytes);
  encode_kernel<K><<<unsigned(tiles), kThreads, Trellis<K>::kSharedBytes, stream>>>(x, codebook, codes);
  check_launch("encode_tiles");
}

}  // namespace

void encode_tiles(const float* x, int64_t tiles, int k, const int8_t* codebook, uint8_t* codes, cudaStream_t stream) {
  switch (k) {
    case 1:
      return launch<1>(x, tiles, codebook, codes, stream);
    case 2:
      return launch<2>(x, tiles, codebook, codes, stream);
    case 3:
      return launch<3>(x, tiles, codebook, codes, stream);
    case 4:
      return launch<4>(x, tiles, codebook, codes, stream);
    default:
      throw Error(Cause::unsupported, "device cuda: encoding at " + std::to_string(k) + " bits (1 to 4)");
  }
}

}  // namespace tq::cuda
