// Attention of single rows over a cache in codes: a block takes the queries that share a key/value head and reads tiles of 64 positions,
// each once, through shared memory. Scores are dp4a of the query's codes, values are summed by dp2a with 16-bit weights. Each span of
// positions leaves a softmax state of its own; a second kernel merges them in order, adds the row's own position and undoes the rotation.
#include <cmath>

#include "cache_encode.cuh"
#include "dependent.h"
#include "mma.cuh"

namespace tq::cuda {
namespace {

constexpr int kTile = tqn::cache::kTile;
constexpr int kThreads = kTile;  // a thread is a position of the tile, then channels
constexpr int kWarps = kThreads / kWarp;
constexpr int kPairs = kTile / 2;
constexpr float kWeightMax = 32767;
constexpr int kSharedShare = 75;  // percent of the first-level cache that is shared memory

// What a block needs beside the tiles.
template <int D, int N>
struct Shared {
  int4 q[N][D / 16];
  int weight[N][kPairs];
  float most[kWarps][N + 1];
  float sum[kWarps][N];
};

// The work of a block: one slot's tiles of one key/value head.
struct Tiles {
  const uint8_t *k, *v;
  int64_t k_bytes, v_bytes;  // of a tile
};

__device__ inline void load_tile(const Tiles& tiles, int64_t tile, uint32_t to) {
  const uint8_t *k = tiles.k + tile * tiles.k_bytes, *v = tiles.v + tile * tiles.v_bytes;
  for (int i = threadIdx.x; i < tiles.k_bytes / 16; i += kThreads) copy_async(to + 16 * i, k + 16 * i);
  for (int i = threadIdx.x; i < tiles.v_bytes / 16; i += kThreads) copy_async(to + uint32_t(tiles.k_bytes) + 16 * i, v + 16 * i);
}

template <int Bits, int D, int N>
__device__ inline void key_products(const Shared<D, N>& s, const uint8_t* k, int padded_dim, int (&acc)[N]) {
  const int* words = reinterpret_cast<const int*>(k) + threadIdx.x;
#pragma unroll 2
  for (int c = 0; c < padded_dim / 16; c++) {
    int keys[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if constexpr (Bits == 8)
        keys[i] = words[(4 * c + i) * kTile];
      else
        keys[i] = int(levels_of(uint32_t(words[(2 * c + i / 2) * kTile]) >> 16 * (i % 2)));
    }
#pragma unroll
    for (int g = 0; g < N; g++) {
      const int4 q = s.q[g][c];
      acc[g] = __dp4a(keys[0], q.x, __dp4a(keys[1], q.y, __dp4a(keys[2], q.z, __dp4a(keys[3], q.w, acc[g]))));
    }
  }
}

// A thread's eight channels for each query, of every kLanes-th pair of positions.
template <int D, int N>
struct Values {
  static constexpr int kBlocks = D / 8, kLanes = kThreads / kBlocks;
  float out[N][8];
};

template <int Bits, int D, int N>
__device__ inline void value_products(const Shared<D, N>& s, const uint8_t* v, int block, int (&acc)[N][8]) {
  constexpr int kLanes = Values<D, N>::kLanes;
  const uint8_t* from = v + (Bits == 8 ? block : block / 2) * kPairs * 16;
#pragma unroll
  for (int i = 0; i < kPairs / kLanes; i++) {
    const int pair = (i * kLanes + int(threadIdx.x) % kLanes) ^ (block * kLanes & 7);  // eight lanes meet different banks
    const uint4 chunk = *reinterpret_cast<const uint4*>(from + 16 * pair);
    const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (int w = 0; w < 4; w++) {
      const int values = int(Bits == 8 ? words[w] : half_levels(words[w], block % 2));
#pragma unroll
      for (int g = 0; g < N; g++) {
        acc[g][2 * w] = __dp2a_lo(s.weight[g][pair], values, acc[g][2 * w]);
        acc[g][2 * w + 1] = __dp2a_hi(s.weight[g][pair], values, acc[g][2 * w + 1]);
      }
    }
  }
}

// Softmax states of a block's queries; `sum` is a thread's share.
template <int N>
struct States {
  float max[N], sum[N];
};

// From a position's products to 16-bit weights of the tile's values. What the sums so far are multiplied by is left in `before`, what an
// integer weight counts in `step`.
template <int D, int N>
__device__ inline void weigh(const CodedView& c, Shared<D, N>& s, const uint8_t* tile, const Tiles& tiles, const float (&q_scale)[N],
                             const int (&acc)[N], bool real, States<N>& states, float (&before)[N], float (&step)[N]) {
  const int lane = threadIdx.x, warp = lane / kWarp;
  const int64_t scales = kTile * int64_t(sizeof(uint16_t));
  const float k_scale = half_value(cached_scale(tile, tiles.k_bytes - scales, lane));
  const float v_scale = real ? half_value(cached_scale(tile + tiles.k_bytes, tiles.v_bytes - scales, lane)) : 0;
  float score[N];
#pragma unroll
  for (int g = 0; g < N; g++) {
    float x = c.a.shape.scale * q_scale[g] * k_scale * float(acc[g]);
    if (c.a.shape.soft_cap > 0) x = c.a.shape.soft_cap * tanhf(x / c.a.shape.soft_cap);
    score[g] = real ? x : -INFINITY;
    const float most = warp_max(score[g]);
    if (lane % kWarp == 0) s.most[warp][g] = most;
  }
  const float largest = warp_max(v_scale);
  if (lane % kWarp == 0) s.most[warp][N] = largest;
  __syncthreads();
  const float v_most = fmaxf(s.most[0][N], s.most[1][N]);
  const float fit = v_most > 1e-30f ? kWeightMax / v_most : 0;
#pragma unroll
  for (int g = 0; g < N; g++) {
    const float most = fmaxf(s.most[0][g], s.most[1][g]), max = fmaxf(states.max[g], most);
    const float weight = expf(score[g] - most), now = expf(most - max);
    before[g] = states.max[g] == -INFINITY ? 0 : expf(states.max[g] - max);
    step[g] = fit > 0 ? now * v_most / kWeightMax : 0;
    // What is not finite becomes no integer: 0 * v_scale is NaN then, and the sum shows it.
    states.sum[g] = states.sum[g] * before[g] + now * (real ? weight + 0 * v_scale : 0);
    states.max[g] = max;
    reinterpret_cast<int16_t*>(s.weight[g])[lane] = int16_t(real ? min(__float2int_rn(weight * v_scale * fit), 32767) : 0);
  }
  __syncthreads();
}

template <int D, int N>
__device__ inline void write_span(const Shared<D, N>& s, States<N>& states, Values<D, N>& values, int queries, int dim, float* to,
                                  int64_t stride) {
  constexpr int kLanes = Values<D, N>::kLanes;
  const int block = threadIdx.x / kLanes;
#pragma unroll
  for (int g = 0; g < N; g++) {
    if (g >= queries) break;
    const float sum = s.sum[0][g] + s.sum[1][g];
#pragma unroll
    for (int i = 0; i < 8; i++) {
      float x = values.out[g][i];
#pragma unroll
      for (int d = 1; d < kLanes; d *= 2) x += __shfl_xor_sync(~0u, x, d);
      if (threadIdx.x % kLanes == 0 && block * 8 + i < dim) to[g * stride + block * 8 + i] = x;
    }
    if (threadIdx.x == 0) to[g * stride + dim] = states.max[g], to[g * stride + dim + 1] = sum;
  }
}

// Loads the block's queries, channels in the order of the keys' codes.
template <int D, int N>
__device__ inline void load_queries(const CodedView& c, Shared<D, N>& s, int64_t first, int queries, int padded_dim, float (&q_scale)[N]) {
  auto* to = reinterpret_cast<int8_t*>(s.q);
  for (int i = threadIdx.x; i < N * D; i += kThreads) {
    const int g = i / D, channel = i % D;
    to[i] = g < queries && channel < padded_dim ? c.q_codes[(first + g) * padded_dim + key_channel(c.k_bits, channel)] : int8_t(0);
  }
#pragma unroll
  for (int g = 0; g < N; g++) q_scale[g] = g < queries ? c.q_scale[first + g] : 0;
}

// The same from the row's plane: a warp rotates and rounds every kWarps-th query.
template <int D, int N>
__device__ inline void encode_queries(const CodedView& c, Shared<D, N>& s, int row, int kv_head, int64_t first, int queries, int padded_dim,
                                      float (&q_scale)[N]) {
  static_assert(sizeof s.q == N * D);
  constexpr int kMine = (N + kWarps - 1) / kWarps;
  __shared__ float scales[kMine * kWarps];
  const int warp = threadIdx.x / kWarp;
  for (int i = threadIdx.x; i < N * D / 16; i += kThreads) (&s.q[0][0])[i] = make_int4(0, 0, 0, 0);
  LaneVector l[kMine] = {};
#pragma unroll
  for (int i = 0; i < kMine; i++) {
    const int g = warp + i * kWarps;
    if (g >= queries) continue;
    l[i] = load_vector(c.a, row, c.a.q + (first + g) * c.a.shape.head_dim, c.a.cos != nullptr, true);
    balance(c.a, kv_head, true, l[i]);
  }
  rotate(c.rotation, l);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kMine; i++) {
    const int g = warp + i * kWarps;
    if (g >= N) continue;
    auto* to = reinterpret_cast<int8_t*>(s.q[g]);
    const float scale = quantize_query(l[i], padded_dim, to, [&](int channel) { return key_place(c.k_bits, channel); });
    if (lane_of() == 0) scales[g] = scale;
  }
  __syncthreads();
#pragma unroll
  for (int g = 0; g < N; g++) q_scale[g] = scales[g];
}

struct Launch {
  CodedView c;
  int first_row, stages, max_spans;
  const float* q;  // rotated, as the merge reads it
};

// Blocks of coded_kernel, for each key/value head, that attend to no span where the kernel stores its row itself.
enum Storing { store_keys_values, store_queries, kStoringBlocks };

// The row's own key and value into the cache and, rotated, where they were; its rotated queries for the merge.
__device__ inline void store_row(const CodedView& c, int row, int kv_head, int64_t first_query, int queries, uint8_t* codes) {
  const AttentionView& a = c.a;
  const int dim = a.shape.head_dim, warp = threadIdx.x / kWarp;
  static_assert(kWarps == 2, "one for keys, one for values");
  if (blockIdx.y == store_queries) {
    for (int g = warp; g < queries; g += kWarps) {
      const int64_t at = (first_query + g) * dim;
      LaneVector l[1] = {load_vector(a, row, a.q + at, a.cos != nullptr, true)};
      balance(a, kv_head, true, l[0]);
      rotate(c.rotation, l);
      store_vector(l[0], dim, a.out + at);
    }
    return;
  }
  const bool key = warp == 0;
  float* const x = (key ? a.k : a.v) + (int64_t(row) * a.shape.n_kv_heads + kv_head) * dim;
  LaneVector l[1] = {load_vector(a, row, x, key && a.cos, false)};
  if (key) balance(a, kv_head, false, l[0]);
  rotate(c.rotation, l);
  store_vector(l[0], dim, x);
  store_codes(c, l[0], key, row, kv_head, codes + warp * kMaxCodedDim);
}

// Stores: for a single row, whose queries every block rotates itself while its first tiles come: nothing needs to wait for a kernel that
// stores. (What is read before await_inputs() are the batch and positions of earlier passes.)
template <int D, int N, bool Stores>
__global__ void __launch_bounds__(kThreads) coded_kernel(const __grid_constant__ Launch l) {
  extern __shared__ __align__(16) uint8_t stages[];
  __shared__ Shared<D, N> s;
  const CodedView& c = l.c;
  const AttentionView& a = c.a;
  const int dim = a.shape.head_dim, group = a.shape.n_heads / a.shape.n_kv_heads, chunks = (group + N - 1) / N;
  const int padded_dim = int(tqn::cache::padded(dim)), row = l.first_row + blockIdx.z, kv_head = blockIdx.x / chunks;
  const int first_query = blockIdx.x % chunks * N, queries = min(group - first_query, N);
  const int64_t head = int64_t(row) * a.shape.n_heads + kv_head * group + first_query;
  const int block = threadIdx.x / Values<D, N>::kLanes;
  const int first_span = int(blockIdx.y) - (Stores ? kStoringBlocks : 0), span_blocks = int(gridDim.y) - (Stores ? kStoringBlocks : 0);
  release_dependents();
  if constexpr (Stores) {
    if (first_span < 0) {
      await_inputs();
      if (blockIdx.y == store_queries || first_query == 0) store_row(c, row, kv_head, head, queries, stages);
      return;
    }
  } else {
    await_inputs();
  }
  const int64_t position = a.batch.positions[row], n_tiles = tqn::cache::tiles(position);
  const int64_t first_tile = (int64_t(a.batch.slots[row]) * a.shape.n_kv_heads + kv_head) * tqn::cache::tiles(a.capacity);
  Tiles tiles{nullptr, nullptr, tqn::cache::tile_bytes(c.k_bits, dim), tqn::cache::tile_bytes(c.v_bits, dim)};
  tiles.k = static_cast<const uint8_t*>(a.k_cache) + first_tile * tiles.k_bytes;
  tiles.v = static_cast<const uint8_t*>(a.v_cache) + first_tile * tiles.v_bytes;
  const uint32_t stage_bytes = uint32_t(tiles.k_bytes + tiles.v_bytes);
  const int n_spans = spans_of(position);
  if (first_span >= n_spans) return;
  const auto prefetch = [&](int span) {  // the first tiles of a span
    const int64_t begin = span_first(span) / kTile, end = min(int64_t(span_first(span + 1)) / kTile, n_tiles);
    for (int64_t tile = begin; tile < begin + l.stages - 1; tile++) {
      if (span < n_spans && tile < end) load_tile(tiles, tile, shared_address(stages) + uint32_t((tile - begin) % l.stages) * stage_bytes);
      commit_copies();
    }
  };
  prefetch(first_span);
  float q_scale[N];
  if constexpr (Stores) {
    await_inputs();
    encode_queries(c, s, row, kv_head, head, queries, padded_dim, q_scale);
  } else {
    load_queries(c, s, head, queries, padded_dim, q_scale);
  }
  for (int span = first_span; span < n_spans; span += span_blocks) {
    const int64_t begin = span_first(span) / kTile, end = min(int64_t(span_first(span + 1)) / kTile, n_tiles);
    States<N> states;
    Values<D, N> values = {};
#pragma unroll
    for (int g = 0; g < N; g++) states.max[g] = -INFINITY, states.sum[g] = 0;
    for (int64_t tile = begin; tile < end; tile++) {
      const int64_t next = tile + l.stages - 1;
      if (next < end) load_tile(tiles, next, shared_address(stages) + uint32_t((next - begin) % l.stages) * stage_bytes);
      commit_copies();
      if (l.stages == 1)
        wait_copies<0>();
      else
        wait_copies<1>();
      __syncthreads();
      const uint8_t* at = stages + (tile - begin) % l.stages * stage_bytes;
      int products[N] = {};
      if (c.k_bits == 8)
        key_products<8>(s, at, padded_dim, products);
      else
        key_products<4>(s, at, padded_dim, products);
      float before[N], step[N];
      weigh(c, s, at, tiles, q_scale, products, tile * kTile + threadIdx.x < position, states, before, step);
      if (block * 8 < padded_dim) {
        int sums[N][8] = {};
        if (c.v_bits == 8)
          value_products<8>(s, at + tiles.k_bytes, block, sums);
        else
          value_products<4>(s, at + tiles.k_bytes, block, sums);
#pragma unroll
        for (int g = 0; g < N; g++)
#pragma unroll
          for (int i = 0; i < 8; i++) values.out[g][i] = values.out[g][i] * before[g] + float(sums[g][i]) * step[g];
      }
      __syncthreads();  // before the tile and its weights are overwritten
    }
    prefetch(span + span_blocks);
#pragma unroll
    for (int g = 0; g < N; g++) {
      const float sum = warp_sum(states.sum[g]);
      if (threadIdx.x % kWarp == 0) s.sum[threadIdx.x / kWarp][g] = sum;
    }
    __syncthreads();
    const int64_t stride = int64_t(l.max_spans) * (dim + 2);
    const int64_t index = (int64_t(blockIdx.z) * a.shape.n_heads + kv_head * group + first_query) * stride + int64_t(span) * (dim + 2);
    write_span(s, states, values, queries, dim, a.partials + index, stride);
  }
}

constexpr int kFinishThreads = 256, kFinishWarps = kFinishThreads / kWarp;
constexpr int kEarly = 16;  // spans whose outputs a thread fetches before their weights are known

// What the warps of a block have found, in the order of the warps.
template <class Combine>
__device__ inline float combined(const float (&found)[kFinishWarps], Combine&& combine) {
  float x = found[0];
#pragma unroll
  for (int w = 1; w < kFinishWarps; w++) x = combine(x, found[w]);
  return x;
}

// One head of one row. fixed_spans: parts of every row; 0: those of its position.
__global__ void __launch_bounds__(kFinishThreads) finish_kernel(const __grid_constant__ Launch l, int fixed_spans) {
  __shared__ float weights[kFinishThreads], groups[kFinishThreads], vectors[2 * padded_size(kFinishThreads)];
  __shared__ float products[kFinishWarps], mosts[kFinishWarps], sums[kFinishWarps];
  const auto add = [](float a, float b) { return a + b; };
  const AttentionView& a = l.c.a;
  const int dim = a.shape.head_dim, stride = dim + 2, row = l.first_row + blockIdx.y, head = blockIdx.x, t = threadIdx.x, warp = t / kWarp;
  const int kv_head = head / (a.shape.n_heads / a.shape.n_kv_heads);
  const float* q = l.q + (int64_t(row) * a.shape.n_heads + head) * dim;
  const int64_t own = (int64_t(row) * a.shape.n_kv_heads + kv_head) * dim;
  const float* parts = a.partials + (int64_t(blockIdx.y) * a.shape.n_heads + head) * l.max_spans * stride;
  // Threads that share a channel take parts of the spans that follow each other.
  const int width = dim <= 64 ? 64 : dim <= 128 ? 128 : 256, n_groups = kFinishThreads / width, group = t / width, channel = t % width;
  const int n = fixed_spans > 0 ? fixed_spans : spans_of(a.batch.positions[row]);
  release_dependents();
  await_inputs();
  float early[kEarly];
  const int early_begin = min(n, kFinishThreads) * group / n_groups;
#pragma unroll
  for (int i = 0; i < kEarly; i++) early[i] = early_begin + i < n && channel < dim ? parts[int64_t(early_begin + i) * stride + channel] : 0;
  const float value = t < dim ? a.v[own + t] : 0, product = warp_sum(t < dim ? q[t] * a.k[own + t] : 0);
  float most = -INFINITY;
  for (int i = t; i < n; i += kFinishThreads) most = fmaxf(most, parts[int64_t(i) * stride + dim]);
  most = warp_max(most);
  if (lane_of() == 0) products[warp] = product, mosts[warp] = most;
  __syncthreads();
  float score = a.shape.scale * combined(products, add);
  if (a.shape.soft_cap > 0) score = a.shape.soft_cap * tanhf(score / a.shape.soft_cap);
  most = fmaxf(score, combined(mosts, [](float x, float y) { return fmaxf(x, y); }));
  float sum = 0, out = 0;
  for (int first = 0; first < n; first += kFinishThreads) {
    const int count = min(n - first, kFinishThreads);
    if (t < count) {
      const float* state = parts + int64_t(first + t) * stride + dim;
      const float weight = state[1] == 0 ? 0 : expf(state[0] - most);  // of NaN: NaN
      sum += weight * state[1], weights[t] = weight;
    }
    __syncthreads();
    int i = count * group / n_groups;
    const int end = count * (group + 1) / n_groups;
    if (first == 0) {
#pragma unroll
      for (int e = 0; e < kEarly; e++)
        if (i + e < end) out += weights[i + e] * early[e];
      i += kEarly;
    }
    if (channel < dim) {
#pragma unroll 4
      for (; i < end; i++) out += weights[i] * parts[int64_t(first + i) * stride + channel];
    }
    __syncthreads();  // before the weights are overwritten
  }
  sum = warp_sum(sum);
  if (lane_of() == 0) sums[warp] = sum;
  groups[t] = out;
  __syncthreads();
  const float mine = expf(score - most), total = combined(sums, add) + mine + (a.sinks ? expf(a.sinks[head] - most) : 0.f);
  if (t < dim) {
    float merged = 0;
    for (int g = 0; g < n_groups; g++) merged += groups[g * width + t];
    vectors[padded(t)] = (merged + mine * value) / total;
  }
  __syncthreads();
  float* const to = a.out + (int64_t(row) * a.shape.n_heads + head) * dim;
  const float factor = hadamard_factor(l.c.rotation);
  if (l.c.rotation.n_primes == 0) {
    if (warp > 0) return;
    LaneVector x[1];
#pragma unroll
    for (int i = 0; i < kLaneChannels; i++) x[0].x[i] = t + kWarp * i < dim ? vectors[padded(t + kWarp * i)] : 0;
    mix_lanes(l.c.rotation, x);
#pragma unroll
    for (int i = 0; i < kLaneChannels; i++)
      if (t + kWarp * i < dim) to[t + kWarp * i] = factor * l.c.rotation.signs[t + kWarp * i] * x[0].x[i];
  } else {
    const float* turned = mix(l.c.rotation, vectors, vectors + padded_size(kFinishThreads));
    if (t < dim) to[t] = factor * l.c.rotation.signs[t] * turned[padded(t)];
  }
}

template <int D, int N, bool Stores>
void launch(const Launch& l, int rows, int blocks, cudaStream_t stream) {
  const auto& shape = l.c.a.shape;
  const int64_t tile = tqn::cache::tile_bytes(l.c.k_bits, shape.head_dim) + tqn::cache::tile_bytes(l.c.v_bits, shape.head_dim);
  const int64_t room = device_limits().shared_bytes - int64_t(sizeof(Shared<D, N>)) - kStaticSharedBytes;
  Launch mine = l;
  mine.stages = 2 * tile <= room ? 2 : 1;
  allow_shared(coded_kernel<D, N, Stores>, mine.stages * tile);
  // Left to itself the driver gives all of the cache to shared memory, and changing the division between kernels costs each layer 10 us.
  check(cudaFuncSetAttribute(coded_kernel<D, N, Stores>, cudaFuncAttributePreferredSharedMemoryCarveout, kSharedShare),
        "shared memory of a kernel");
  const int group = shape.n_heads / shape.n_kv_heads;
  // The storing blocks first: theirs is the longest way.
  const dim3 grid(shape.n_kv_heads * ((group + N - 1) / N), blocks + (Stores ? kStoringBlocks : 0), rows);
  launch_dependent("attend_coded", coded_kernel<D, N, Stores>, grid, kThreads, mine.stages * tile, stream, mine);
}

template <int D, int N>
void launch(const Launch& l, int rows, int blocks, cudaStream_t stream) {
  if (attends_alone(l.c))
    launch<D, N, true>(l, rows, blocks, stream);
  else
    launch<D, N, false>(l, rows, blocks, stream);
}

template <int D>
void launch(const Launch& l, int rows, int blocks, cudaStream_t stream) {
  if (l.c.a.shape.n_heads == l.c.a.shape.n_kv_heads)
    launch<D, 1>(l, rows, blocks, stream);
  else
    launch<D, 4>(l, rows, blocks, stream);
}

}  // namespace

bool attends_alone(const CodedView& c) { return c.a.batch.rows == 1 && rotates_in_registers(c.rotation); }

void attend_coded(const CodedView& c, int first_row, int rows, int blocks, cudaStream_t stream) {
  const Launch l{c, first_row, 0, spans_of(c.a.capacity), attends_alone(c) ? c.a.out : c.a.q};
  const int dim = c.a.shape.head_dim;
  dim <= 64    ? launch<64>(l, rows, blocks, stream)
  : dim <= 128 ? launch<128>(l, rows, blocks, stream)
               : launch<256>(l, rows, blocks, stream);
  launch_dependent("attend_coded merge", finish_kernel, dim3(c.a.shape.n_heads, rows), kFinishThreads, 0, stream, l, 0);
}

void finish_coded(const CodedView& c, cudaStream_t stream) {
  const Launch l{c, 0, 0, 1, c.a.q};
  launch_dependent("attend_coded_runs merge", finish_kernel, dim3(c.a.shape.n_heads, c.a.batch.rows), kFinishThreads, 0, stream, l, 1);
}

}  // namespace tq::cuda
