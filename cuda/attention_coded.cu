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
constexpr int kTeamWarps = kTile / kWarp;
constexpr int kPairs = kTile / 2;
constexpr float kWeightMax = 32767;
constexpr int kSharedShare = 75;  // percent of the first-level cache that is shared memory

// A block of heads of up to D channels, with N queries: teams of kTile threads, a thread a position of the tile, then channels. Each of two
// teams has half of the queries: one decodes a tile once for all of them, but has twice the work one after the other, and each scheduler
// has half the warps to fill the time; four decode it four times.
template <int D, int N>
struct Plan {
  static constexpr int kTeams = N > 1 ? 2 : 1;
  static_assert(N % kTeams == 0);
  static constexpr int kDim = D, kQueries = N, kOwn = N / kTeams, kThreads = kTile * kTeams, kWarps = kThreads / kWarp;
  static constexpr int kLanes = kTile / (D / 8);  // threads of a team that share eight channels
  // Blocks, for each key/value head, that store the row: a warp for the key, one for the value, one for each query.
  static constexpr int kStoringBlocks = (N + 2 + kWarps - 1) / kWarps;
};
__device__ inline int team_of() { return int(threadIdx.x) / kTile; }
__device__ inline int place_of() { return int(threadIdx.x) % kTile; }  // in the team

// What a block needs beside the tiles.
template <class P>
struct Shared {
  int4 q[P::kQueries][P::kDim / 16];
  int weight[P::kQueries][kPairs];
  float most[P::kWarps][P::kOwn + 1];
  float sum[P::kWarps][P::kOwn];
};

// The work of a block: one slot's tiles of one key/value head.
struct Tiles {
  const uint8_t *k, *v;
  int64_t k_bytes, v_bytes;  // of a tile
};

template <class P>
__device__ inline void load_tile(const Tiles& tiles, int64_t tile, uint32_t to) {
  const uint8_t *k = tiles.k + tile * tiles.k_bytes, *v = tiles.v + tile * tiles.v_bytes;
  for (int i = threadIdx.x; i < tiles.k_bytes / 16; i += P::kThreads) copy_async(to + 16 * i, k + 16 * i);
  for (int i = threadIdx.x; i < tiles.v_bytes / 16; i += P::kThreads) copy_async(to + uint32_t(tiles.k_bytes) + 16 * i, v + 16 * i);
}

template <int Bits, class P>
__device__ inline void key_products(const Shared<P>& s, const uint8_t* k, int padded_dim, int (&acc)[P::kOwn]) {
  const int* words = reinterpret_cast<const int*>(k) + place_of();
  const auto* queries = s.q + team_of() * P::kOwn;
  constexpr int kAtOnce = P::kOwn == 1 ? 4 : 2;  // what is loaded before it is used
#pragma unroll kAtOnce
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
    for (int g = 0; g < P::kOwn; g++) {
      const int4 q = queries[g][c];
      acc[g] = __dp4a(keys[0], q.x, __dp4a(keys[1], q.y, __dp4a(keys[2], q.z, __dp4a(keys[3], q.w, acc[g]))));
    }
  }
}

// A thread's eight channels for each query, of every kLanes-th pair of positions.
template <class P>
struct Values {
  float out[P::kOwn][8];
};

template <int Bits, class P>
__device__ inline void value_products(const Shared<P>& s, const uint8_t* v, int block, int (&acc)[P::kOwn][8]) {
  constexpr int kLanes = P::kLanes;
  const auto* weights = s.weight + team_of() * P::kOwn;
  const uint8_t* from = v + (Bits == 8 ? block : block / 2) * kPairs * 16;
#pragma unroll
  for (int i = 0; i < kPairs / kLanes; i++) {
    const int pair = (i * kLanes + place_of() % kLanes) ^ (block * kLanes & 7);  // eight lanes meet different banks
    const uint4 chunk = *reinterpret_cast<const uint4*>(from + 16 * pair);
    const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (int w = 0; w < 4; w++) {
      const int values = int(Bits == 8 ? words[w] : half_levels(words[w], block % 2));
#pragma unroll
      for (int g = 0; g < P::kOwn; g++) {
        acc[g][2 * w] = __dp2a_lo(weights[g][pair], values, acc[g][2 * w]);
        acc[g][2 * w + 1] = __dp2a_hi(weights[g][pair], values, acc[g][2 * w + 1]);
      }
    }
  }
}

// Softmax states of a team's queries; `sum` is a thread's share.
template <int N>
struct States {
  float max[N], sum[N];
};

// From a position's products to 16-bit weights of the tile's values. What the sums so far are multiplied by is left in `before`, what an
// integer weight counts in `step`.
template <class P, int N>
__device__ inline void weigh(const CodedView& c, Shared<P>& s, const uint8_t* tile, const Tiles& tiles, const float (&q_scale)[N],
                             const int (&acc)[N], bool real, States<N>& states, float (&before)[N], float (&step)[N]) {
  const int lane = place_of(), warp = int(threadIdx.x) / kWarp, team = team_of();
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
  const auto* both = s.most + team * kTeamWarps;
  const float v_most = fmaxf(both[0][N], both[1][N]);
  const float fit = v_most > 1e-30f ? kWeightMax / v_most : 0;
#pragma unroll
  for (int g = 0; g < N; g++) {
    const float most = fmaxf(both[0][g], both[1][g]), max = fmaxf(states.max[g], most);
    const float weight = expf(score[g] - most), now = expf(most - max);
    before[g] = states.max[g] == -INFINITY ? 0 : expf(states.max[g] - max);
    step[g] = fit > 0 ? now * v_most / kWeightMax : 0;
    // What is not finite becomes no integer: 0 * v_scale is NaN then, and the sum shows it.
    states.sum[g] = states.sum[g] * before[g] + now * (real ? weight + 0 * v_scale : 0);
    states.max[g] = max;
    reinterpret_cast<int16_t*>(s.weight[team * N + g])[lane] = int16_t(real ? min(__float2int_rn(weight * v_scale * fit), 32767) : 0);
  }
  __syncthreads();
}

template <class P>
__device__ inline void write_span(const Shared<P>& s, States<P::kOwn>& states, Values<P>& values, int queries, int dim, float* to,
                                  int64_t stride) {
  constexpr int kLanes = P::kLanes;
  const int place = place_of(), block = place / kLanes, first = team_of() * P::kOwn;
  const auto* sums = s.sum + team_of() * kTeamWarps;
#pragma unroll
  for (int g = 0; g < P::kOwn; g++) {
    if (first + g >= queries) break;
    float* const own = to + (first + g) * stride;
    const float sum = sums[0][g] + sums[1][g];
#pragma unroll
    for (int i = 0; i < 8; i++) {
      float x = values.out[g][i];
#pragma unroll
      for (int d = 1; d < kLanes; d *= 2) x += __shfl_xor_sync(~0u, x, d);
      if (place % kLanes == 0 && block * 8 + i < dim) own[block * 8 + i] = x;
    }
    if (place == 0) own[dim] = states.max[g], own[dim + 1] = sum;
  }
}

// Loads the block's queries, channels in the order of the keys' codes.
template <class P>
__device__ inline void load_queries(const CodedView& c, Shared<P>& s, int64_t first, int queries, int padded_dim,
                                    float (&q_scale)[P::kOwn]) {
  constexpr int D = P::kDim;
  auto* to = reinterpret_cast<int8_t*>(s.q);
  for (int i = threadIdx.x; i < P::kQueries * D; i += P::kThreads) {
    const int g = i / D, channel = i % D;
    to[i] = g < queries && channel < padded_dim ? c.q_codes[(first + g) * padded_dim + key_channel(c.k_bits, channel)] : int8_t(0);
  }
#pragma unroll
  for (int i = 0; i < P::kOwn; i++) {
    const int g = team_of() * P::kOwn + i;
    q_scale[i] = g < queries ? c.q_scale[first + g] : 0;
  }
}

// The same from the row's plane: a warp rotates and rounds every kWarps-th query.
template <class P>
__device__ inline void encode_queries(const CodedView& c, Shared<P>& s, const LaneVector<P::kDim / kWarp>& signs,
                                      const LaneStatistics<P::kDim / kWarp>& statistics, int row, int64_t first, int queries,
                                      int padded_dim, float (&q_scale)[P::kOwn]) {
  constexpr int N = P::kQueries, kMine = (N + P::kWarps - 1) / P::kWarps;
  static_assert(sizeof s.q == N * P::kDim);
  __shared__ float scales[kMine * P::kWarps];
  const int warp = int(threadIdx.x) / kWarp;
  for (int i = threadIdx.x; i < N * P::kDim / 16; i += P::kThreads) (&s.q[0][0])[i] = make_int4(0, 0, 0, 0);
  constexpr int kChannels = P::kDim / kWarp;
  LaneVector<kChannels> l[kMine] = {};
  if (warp < N) {
#pragma unroll
    for (int i = 0; i < kMine; i++) {
      const int g = warp + i * P::kWarps;
      if (g < queries) l[i] = load_vector<kChannels>(c.a, row, c.a.q + (first + g) * c.a.shape.head_dim, c.a.cos != nullptr, true);
      balance(statistics, c.a.shape.head_dim, true, l[i]);
    }
    rotate(c.rotation, signs, l);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kMine; i++) {
    const int g = warp + i * P::kWarps;
    if (g >= N) continue;
    auto* to = reinterpret_cast<int8_t*>(s.q[g]);
    const float scale = quantize_query(l[i], padded_dim, to, [&](int channel) { return key_place(c.k_bits, channel); });
    if (lane_of() == 0) scales[g] = scale;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < P::kOwn; i++) q_scale[i] = scales[team_of() * P::kOwn + i];
}

struct Launch {
  CodedView c;
  int first_row, stages, max_spans;
  const float* q;  // rotated, as the merge reads it
};

// The row's own key and value into the cache and, rotated, where they were; its rotated queries for the merge. A warp a vector.
template <class P>
__device__ inline void store_row(const CodedView& c, const LaneVector<P::kDim / kWarp>& signs,
                                 const LaneStatistics<P::kDim / kWarp>& statistics, int row, int kv_head, int64_t first_query, int queries,
                                 bool first_chunk, int slot, int position, uint8_t* codes) {
  const AttentionView& a = c.a;
  const int dim = a.shape.head_dim, warp = int(threadIdx.x) / kWarp, task = int(blockIdx.y) * P::kWarps + warp, g = task - 2;
  const bool key = task == 0, query = g >= 0;
  if (query ? g >= queries : !first_chunk) return;
  const int64_t at = query ? (first_query + g) * dim : (int64_t(row) * a.shape.n_kv_heads + kv_head) * dim;
  const float* const from = (query ? a.q : key ? a.k : a.v) + at;
  LaneVector<P::kDim / kWarp> l[1] = {load_vector<P::kDim / kWarp>(a, row, from, (query || key) && a.cos, query)};
  if (query || key) balance(statistics, dim, query, l[0]);
  rotate(c.rotation, signs, l);
  store_vector(l[0], dim, (query ? a.out : key ? a.k : a.v) + at);
  if (!query) store_codes(c, l[0], key, slot, position, kv_head, codes + warp * kMaxCodedDim);
}

// Stores: for a single row, whose queries every block rotates itself while its first tiles come: nothing needs to wait for a kernel that
// stores. (What is read before await_inputs() are the batch and positions of earlier passes.)
template <class P, bool Stores>
__global__ void __launch_bounds__(P::kThreads) coded_kernel(const __grid_constant__ Launch l) {
  constexpr int N = P::kQueries, kOwn = P::kOwn;
  extern __shared__ __align__(16) uint8_t stages[];
  __shared__ Shared<P> s;
  const CodedView& c = l.c;
  const AttentionView& a = c.a;
  const int dim = a.shape.head_dim, group = a.shape.n_heads / a.shape.n_kv_heads, chunks = (group + N - 1) / N;
  const int padded_dim = int(tqn::cache::padded(dim)), row = l.first_row + blockIdx.z, kv_head = blockIdx.x / chunks;
  const int first_query = blockIdx.x % chunks * N, queries = min(group - first_query, N);
  const int64_t head = int64_t(row) * a.shape.n_heads + kv_head * group + first_query;
  const int block = place_of() / P::kLanes, stage_mask = l.stages - 1;
  constexpr int kStoring = Stores ? P::kStoringBlocks : 0;
  const int first_span = int(blockIdx.y) - kStoring, span_blocks = int(gridDim.y) - kStoring;
  release_dependents();
  LaneVector<P::kDim / kWarp> signs;
  LaneStatistics<P::kDim / kWarp> statistics;
  if constexpr (!Stores) await_inputs();
  const int position = a.batch.positions[row], slot = a.batch.slots[row];
  if constexpr (Stores) {
    signs = load_signs<P::kDim / kWarp>(c.rotation), statistics = load_statistics<P::kDim / kWarp>(a, kv_head);
    if (first_span < 0) {
      await_inputs();
      store_row<P>(c, signs, statistics, row, kv_head, head, queries, first_query == 0, slot, position, stages);
      return;
    }
  }
  const int64_t n_tiles = tqn::cache::tiles(position);
  const int64_t first_tile = (int64_t(slot) * a.shape.n_kv_heads + kv_head) * tqn::cache::tiles(a.capacity);
  Tiles tiles{nullptr, nullptr, tqn::cache::tile_bytes(c.k_bits, dim), tqn::cache::tile_bytes(c.v_bits, dim)};
  tiles.k = static_cast<const uint8_t*>(a.k_cache) + first_tile * tiles.k_bytes;
  tiles.v = static_cast<const uint8_t*>(a.v_cache) + first_tile * tiles.v_bytes;
  const uint32_t stage_bytes = uint32_t(tiles.k_bytes + tiles.v_bytes);
  const int n_spans = spans_of(position);
  if (first_span >= n_spans) return;
  const auto prefetch = [&](int span) {  // the first tiles of a span
    const int64_t begin = span_first(span) / kTile, end = min(int64_t(span_first(span + 1)) / kTile, n_tiles);
    for (int64_t tile = begin; tile < begin + l.stages - 1; tile++) {
      if (span < n_spans && tile < end)
        load_tile<P>(tiles, tile, shared_address(stages) + (uint32_t(tile - begin) & stage_mask) * stage_bytes);
      commit_copies();
    }
  };
  prefetch(first_span);
  float q_scale[kOwn];
  if constexpr (Stores) {
    await_inputs();
    encode_queries(c, s, signs, statistics, row, head, queries, padded_dim, q_scale);
  } else {
    load_queries(c, s, head, queries, padded_dim, q_scale);
  }
  for (int span = first_span; span < n_spans; span += span_blocks) {
    const int64_t begin = span_first(span) / kTile, end = min(int64_t(span_first(span + 1)) / kTile, n_tiles);
    States<kOwn> states;
    Values<P> values = {};
#pragma unroll
    for (int g = 0; g < kOwn; g++) states.max[g] = -INFINITY, states.sum[g] = 0;
    for (int64_t tile = begin; tile < end; tile++) {
      const int64_t next = tile + l.stages - 1;
      if (next < end) load_tile<P>(tiles, next, shared_address(stages) + (uint32_t(next - begin) & stage_mask) * stage_bytes);
      commit_copies();
      if (l.stages == 1)
        wait_copies<0>();
      else
        wait_copies<1>();
      __syncthreads();
      const uint8_t* at = stages + (uint32_t(tile - begin) & stage_mask) * stage_bytes;
      int products[kOwn] = {};
      if (c.k_bits == 8)
        key_products<8>(s, at, padded_dim, products);
      else
        key_products<4>(s, at, padded_dim, products);
      float before[kOwn], step[kOwn];
      weigh<P>(c, s, at, tiles, q_scale, products, tile * kTile + place_of() < position, states, before, step);
      if (block * 8 < padded_dim) {
        int sums[kOwn][8] = {};
        if (c.v_bits == 8)
          value_products<8>(s, at + tiles.k_bytes, block, sums);
        else
          value_products<4>(s, at + tiles.k_bytes, block, sums);
#pragma unroll
        for (int g = 0; g < kOwn; g++)
#pragma unroll
          for (int i = 0; i < 8; i++) values.out[g][i] = values.out[g][i] * before[g] + float(sums[g][i]) * step[g];
      }
      __syncthreads();  // before the tile and its weights are overwritten
    }
    prefetch(span + span_blocks);
#pragma unroll
    for (int g = 0; g < kOwn; g++) {
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

// One head of one row, of up to D channels. fixed_spans: parts of every row; 0: those of its position. A warp merges every eighth of the
// spans, a lane every 32nd channel; the first warp merges what they leave, adds the row's own position and undoes the rotation.
template <int D>
__global__ void __launch_bounds__(kFinishThreads) finish_kernel(const __grid_constant__ Launch l, int fixed_spans) {
  constexpr int kChannels = D / kWarp, kEarly = 5;  // spans whose outputs a lane fetches before their weights are known
  __shared__ float outs[kFinishWarps][D], mosts[kFinishWarps], sums[kFinishWarps];
  const AttentionView& a = l.c.a;
  const int dim = a.shape.head_dim, stride = dim + 2, row = l.first_row + blockIdx.y, head = blockIdx.x, lane = lane_of();
  const int warp = int(threadIdx.x) / kWarp, kv_head = head / (a.shape.n_heads / a.shape.n_kv_heads);
  const float* q = l.q + (int64_t(row) * a.shape.n_heads + head) * dim;
  const int64_t own = (int64_t(row) * a.shape.n_kv_heads + kv_head) * dim;
  const float* parts = a.partials + (int64_t(blockIdx.y) * a.shape.n_heads + head) * l.max_spans * stride;
  const int n = fixed_spans > 0 ? fixed_spans : spans_of(a.batch.positions[row]);
  const int begin = n * warp / kFinishWarps, end = n * (warp + 1) / kFinishWarps;
  const auto channel_of = [&](int i) { return lane + kWarp * i; };
  const auto read_of = [&](int i) { return min(channel_of(i), dim - 1); };  // what is read behind the last channel goes nowhere
  float value[kChannels], out[kChannels] = {}, early[kEarly][kChannels];
  release_dependents();
  const LaneVector<kChannels> signs = load_signs<kChannels>(l.c.rotation);
  await_inputs();
  float most = -INFINITY, share = 0;  // of the lane's span of up to kWarp
  const auto load_state = [&](int first) {
    const float* state = parts + int64_t(first + lane) * stride + dim;
    most = first + lane < end ? state[0] : -INFINITY, share = first + lane < end ? state[1] : 0;
  };
  load_state(begin);
  if (begin < end)
#pragma unroll
    for (int e = 0; e < kEarly; e++)  // those behind the last are read again, and count nothing
#pragma unroll
      for (int i = 0; i < kChannels; i++) early[e][i] = parts[int64_t(min(begin + e, end - 1)) * stride + read_of(i)];
  float query[kChannels], key[kChannels];
#pragma unroll
  for (int i = 0; i < kChannels; i++) query[i] = q[read_of(i)], key[i] = a.k[own + read_of(i)], value[i] = a.v[own + read_of(i)];
  float max = -INFINITY, sum = 0;
  for (int first = begin; first < end; first += kWarp) {
    const int count = min(end - first, kWarp);
    if (first > begin) load_state(first);
    const float now = fmaxf(max, warp_max(most));
    const float before = max == -INFINITY ? 0 : expf(max - now), weight = share == 0 ? 0 : expf(most - now);  // of NaN: NaN
    sum = sum * before + warp_sum(weight * share), max = now;
#pragma unroll
    for (int i = 0; i < kChannels; i++) out[i] *= before;
    int j = 0;
    if (first == begin) {
#pragma unroll
      for (; j < kEarly; j++) {
        const float w = __shfl_sync(~0u, weight, j);  // 0 behind the last span
#pragma unroll
        for (int i = 0; i < kChannels; i++) out[i] += w * early[j][i];
      }
    }
#pragma unroll 4
    for (; j < count; j++) {
      const float w = __shfl_sync(~0u, weight, j);
#pragma unroll
      for (int i = 0; i < kChannels; i++) out[i] += w * parts[int64_t(first + j) * stride + read_of(i)];
    }
  }
  float product = 0;
#pragma unroll
  for (int i = 0; i < kChannels; i++) product += channel_of(i) < dim ? query[i] * key[i] : 0.f;
  if (lane == 0) mosts[warp] = max, sums[warp] = sum;
#pragma unroll
  for (int i = 0; i < kChannels; i++) outs[warp][channel_of(i)] = out[i];
  __syncthreads();
  const bool in_registers = l.c.rotation.n_primes == 0;
  if (warp > 0 && in_registers) return;
  float* const to = a.out + (int64_t(row) * a.shape.n_heads + head) * dim;
  const float factor = hadamard_factor(l.c.rotation);
  LaneVector<kChannels> merged[1] = {};
  if (warp == 0) {
    float score = a.shape.scale * warp_sum(product);
    if (a.shape.soft_cap > 0) score = a.shape.soft_cap * tanhf(score / a.shape.soft_cap);
    max = lane < kFinishWarps ? mosts[lane] : -INFINITY, sum = lane < kFinishWarps ? sums[lane] : 0;
    const float largest = fmaxf(score, warp_max(max)), weight = sum == 0 ? 0 : expf(max - largest), mine = expf(score - largest);
    const float total = warp_sum(weight * sum) + mine + (a.sinks ? expf(a.sinks[head] - largest) : 0.f);
#pragma unroll
    for (int i = 0; i < kChannels; i++) out[i] = mine * value[i];
#pragma unroll
    for (int w = 0; w < kFinishWarps; w++) {
      const float share = __shfl_sync(~0u, weight, w);
#pragma unroll
      for (int i = 0; i < kChannels; i++) out[i] += share * outs[w][channel_of(i)];
    }
#pragma unroll
    for (int i = 0; i < kChannels; i++) merged[0].x[i] = out[i] / total;
  }
  if (in_registers) {
    mix_lanes(merged, l.c.rotation.n);
#pragma unroll
    for (int i = 0; i < kChannels; i++) merged[0].x[i] *= factor * signs.x[i];
    return store_vector(merged[0], dim, to);
  }
  __shared__ float vectors[2 * padded_size(D)];
  if (warp == 0)
#pragma unroll
    for (int i = 0; i < kChannels; i++) vectors[padded(channel_of(i))] = merged[0].x[i];
  __syncthreads();
  const float* turned = mix(l.c.rotation, vectors, vectors + padded_size(D));
  for (int i = threadIdx.x; i < dim; i += kFinishThreads) to[i] = factor * l.c.rotation.signs[i] * turned[padded(i)];
}

void launch_finish(const Launch& l, int rows, int fixed_spans, const char* name, cudaStream_t stream) {
  const int dim = l.c.a.shape.head_dim;
  const auto kernel = dim <= 64 ? finish_kernel<64> : dim <= 128 ? finish_kernel<128> : finish_kernel<256>;
  launch_dependent(name, kernel, dim3(l.c.a.shape.n_heads, rows), kFinishThreads, 0, stream, l, fixed_spans);
}

template <class P, bool Stores>
void launch(const Launch& l, int rows, int blocks, cudaStream_t stream) {
  const auto& shape = l.c.a.shape;
  const int64_t tile = tqn::cache::tile_bytes(l.c.k_bits, shape.head_dim) + tqn::cache::tile_bytes(l.c.v_bits, shape.head_dim);
  const int64_t room = device_limits().shared_bytes - int64_t(sizeof(Shared<P>)) - kStaticSharedBytes;
  Launch mine = l;
  mine.stages = 2 * tile <= room ? 2 : 1;
  allow_shared(coded_kernel<P, Stores>, mine.stages * tile);
  // Left to itself the driver gives all of the cache to shared memory, and changing the division between kernels costs each layer 10 us.
  check(cudaFuncSetAttribute(coded_kernel<P, Stores>, cudaFuncAttributePreferredSharedMemoryCarveout, kSharedShare),
        "shared memory of a kernel");
  const int group = shape.n_heads / shape.n_kv_heads, chunks = (group + P::kQueries - 1) / P::kQueries;
  // The storing blocks first: theirs is the longest way.
  const dim3 grid(shape.n_kv_heads * chunks, blocks + (Stores ? P::kStoringBlocks : 0), rows);
  launch_dependent("attend_coded", coded_kernel<P, Stores>, grid, P::kThreads, mine.stages * tile, stream, mine);
}

template <class P>
void launch(const Launch& l, int rows, int blocks, cudaStream_t stream) {
  if (attends_alone(l.c))
    launch<P, true>(l, rows, blocks, stream);
  else
    launch<P, false>(l, rows, blocks, stream);
}

template <int D>
void launch(const Launch& l, int rows, int blocks, cudaStream_t stream) {
  if (l.c.a.shape.n_heads == l.c.a.shape.n_kv_heads)
    launch<Plan<D, 1>>(l, rows, blocks, stream);
  else
    launch<Plan<D, 4>>(l, rows, blocks, stream);
}

}  // namespace

bool attends_alone(const CodedView& c) { return c.a.batch.rows == 1 && rotates_in_registers(c.rotation); }

void attend_coded(const CodedView& c, int first_row, int rows, int blocks, cudaStream_t stream) {
  const Launch l{c, first_row, 0, spans_of(c.a.capacity), attends_alone(c) ? c.a.out : c.a.q};
  const int dim = c.a.shape.head_dim;
  dim <= 64    ? launch<64>(l, rows, blocks, stream)
  : dim <= 128 ? launch<128>(l, rows, blocks, stream)
               : launch<256>(l, rows, blocks, stream);
  launch_finish(l, rows, 0, "attend_coded merge", stream);
}

void finish_coded(const CodedView& c, cudaStream_t stream) {
  launch_finish({c, 0, 0, 1, c.a.q}, c.a.batch.rows, 1, "attend_coded_runs merge", stream);
}

}  // namespace tq::cuda
