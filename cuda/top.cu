// The best tokens of each row of logits. A block sorts a piece of a row and keeps its best; pieces of what is left follow until one holds
// all. A key orders by value, then by lower token, and is never 0 but for what no sampler may choose.
#include "dependent.h"
#include "launch.h"

namespace tq::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kPiece = 4096;  // keys that a block sorts
static_assert(kMaxCandidates * 2 <= kPiece);

__device__ inline uint64_t key_of(float value, uint32_t token) {
  if (!(value > -INFINITY)) return 0;
  const uint32_t bits = __float_as_uint(value == 0 ? 0.f : value);  // -0 is 0
  return uint64_t(bits >> 31 ? ~bits : bits | 0x80000000u) << 32 | ~token;
}

__device__ inline Candidate candidate_of(uint64_t key) {
  if (key == 0) return kNoCandidate;
  const uint32_t high = uint32_t(key >> 32);
  return {__uint_as_float(high >> 31 ? high ^ 0x80000000u : ~high), int32_t(~uint32_t(key))};
}

// Bitonic, descending; n a power of two. All threads, after a barrier or their own writes; ends with one.
__device__ inline void sort(uint64_t* keys, int n) {
  for (int length = 2; length <= n; length *= 2)
    for (int d = length / 2; d > 0; d /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < n / 2; i += kThreads) {
        const int a = 2 * i - (i & (d - 1));
        const uint64_t x = keys[a], y = keys[a + d];
        if ((x < y) == ((a & length) == 0)) keys[a] = y, keys[a + d] = x;
      }
    }
  __syncthreads();
}

struct TopLaunch {
  const float* x;        // (rows, n); or null and
  const uint64_t* from;  // (rows, n)
  int n, k;
  uint64_t* to;  // (rows, pieces, k); or null and
  Candidate* best;
};

__global__ void __launch_bounds__(kThreads) top_kernel(const __grid_constant__ TopLaunch l) {
  __shared__ uint64_t keys[kPiece];
  const int first = blockIdx.x * kPiece, count = min(kPiece, l.n - first);
  const int64_t row = blockIdx.y, at = row * l.n + first;
  release_dependents();
  await_inputs();
  int size = 2;
  while (size < count || size < l.k) size *= 2;
  for (int i = threadIdx.x; i < size; i += kThreads)
    keys[i] = i >= count ? 0 : l.x ? key_of(l.x[at + i], uint32_t(first + i)) : l.from[at + i];
  sort(keys, size);
  for (int i = threadIdx.x; i < l.k; i += kThreads) {
    if (l.to)
      l.to[(row * gridDim.x + blockIdx.x) * l.k + i] = keys[i];
    else
      l.best[row * l.k + i] = candidate_of(keys[i]);
  }
}

int pieces_of(int n) { return (n + kPiece - 1) / kPiece; }

}  // namespace

// Two lists: the pieces' best, and the best of those.
int64_t top_scratch_bytes(int rows, int width, int k) {
  const int first = pieces_of(width) * k, second = pieces_of(first) * k;
  return int64_t(rows) * (first + second) * int64_t(sizeof(uint64_t));
}

void top(const float* x, int rows, int width, int k, uint64_t* scratch, Candidate* best, cudaStream_t stream) {
  uint64_t *to = scratch, *other = scratch + int64_t(rows) * pieces_of(width) * k;
  TopLaunch launch{x, nullptr, width, k, nullptr, nullptr};
  for (int pieces = pieces_of(width);; pieces = pieces_of(launch.n)) {
    launch.to = pieces > 1 ? to : nullptr, launch.best = pieces > 1 ? nullptr : best;
    launch_dependent("top", top_kernel, dim3(unsigned(pieces), unsigned(rows)), kThreads, 0, stream, launch);
    if (pieces == 1) return;
    launch.x = nullptr, launch.from = to, launch.n = pieces * k;
    std::swap(to, other);
  }
}

}  // namespace tq::cuda
