// Query heads over a cache in codes (format/cache.h), tile by tile with an online softmax. Up to kQueries of them share each register of
// keys and values.
#pragma once
#include "format/cache.h"
#include "kernels/body/attention.h"

namespace tq::kernels::TQ_ISA_NAMESPACE {

inline constexpr float kWeightMax = 32767;  // of a value's weight in a tile

// While a tile is read, lines of the next one are asked for, in the order of memory: the processor's own prefetching stays within a page,
// and does not follow loops that go through a tile in steps. 8 bits: as far as the second-level cache, since more lines are under way than
// the first one can wait for.
constexpr int kLine = 64;
template <int Bits, int Bytes>
inline void prefetch(const uint8_t* p) {
  for (int i = 0; i < Bytes; i += kLine) __builtin_prefetch(p + i, 0, Bits == 8 ? 2 : 3);
}

// acc[g * kTile + l] = q_g . k_l for R registers of positions l and N queries. `next`: as many bytes of the next tile.
template <int Bits, int R, int N>
inline void key_products(const CodedQuery* queries, const uint8_t* k, const uint8_t* next, int64_t dim, const Levels& levels,
                         int32_t* acc) {
  const auto at = [&](int64_t group, int r) { return reinterpret_cast<const int8_t*>(k) + group * tqn::cache::kTile * 4 + r * kRowBytes; };
  constexpr int kBytes = R * kRowBytes;
  I32 sums[N][R];
  for (int g = 0; g < N; g++)
    for (int r = 0; r < R; r++) sums[g][r] = set1_i32(-kOffset * queries[g].total);
  const auto add = [&](const Row* rows, int64_t c) {
    for (int g = 0; g < N; g++) {
      const Acts a = broadcast_acts(queries[g].q + c);
      for (int r = 0; r < R; r++) sums[g][r] = dot(sums[g][r], rows[r], a);
    }
  };
  Row rows[R];
  if constexpr (Bits == 8) {
    for (int64_t c = 0; c < dim; c += 4) {
      prefetch<Bits, kBytes>(next + c / 4 * kBytes);
      for (int r = 0; r < R; r++) rows[r] = with_key_offset(load_row(at(c / 4, r)));
      add(rows, c);
    }
  } else {
    for (int64_t c = 0; c < dim; c += 8) {
      prefetch<Bits, kBytes>(next + c / 8 * kBytes);
      for (int r = 0; r < R; r++) rows[r] = levels.lower_row(load_row(at(c / 8, r)));
      add(rows, c);
      for (int r = 0; r < R; r++) rows[r] = levels.upper_row(load_row(at(c / 8, r)));
      add(rows, c + 4);
    }
  }
  for (int g = 0; g < N; g++)
    for (int r = 0; r < R; r++) store_i32(acc + g * tqn::cache::kTile + r * kLanes, sums[g][r]);
}

template <int N>
inline void tile_products(int bits, const CodedQuery* queries, const uint8_t* k, int64_t dim, const Levels& levels, int32_t* acc) {
  constexpr int kTile = tqn::cache::kTile, kRegisters = kPanelRegisters, kStep = kRegisters * kLanes;
  const int64_t bytes = tqn::cache::code_bytes(bits, dim) * kStep / kTile;
  const uint8_t* next = k + tqn::cache::tile_bytes(bits, dim);
  for (int l = 0; l < kTile; l += kStep, next += bytes)
    (bits == 8 ? key_products<8, kRegisters, N> : key_products<4, kRegisters, N>)(queries, k + 4 * l, next, dim, levels, acc + l);
}

inline void scales_of(const uint8_t* tile, int bits, int64_t dim, float* scales) {
  const auto* halves = reinterpret_cast<const uint16_t*>(tile + tqn::cache::code_bytes(bits, dim));
  for (int l = 0; l < tqn::cache::kTile; l += kLanes) store(scales + l, load_f16(halves + l));
}

// What a tile's values count for one query, as integers times `step`.
struct TileWeights {
  alignas(64) int16_t weight[tqn::cache::kTile];
  float step = 0;
};

// Where a weight is not finite, `step` is NaN.
inline void round_weights(const float* weights, float largest_weight, TileWeights& out) {
  constexpr int kTile = tqn::cache::kTile;
  const bool any = largest_weight > 1e-30f;
  const F32 inverse = set1(any ? kWeightMax / largest_weight : 0);
  F32 not_finite = set1(0);
  alignas(64) float rounded[kTile];
  for (int l = 0; l < kTile; l += kLanes) {
    not_finite = fma(load(weights + l), set1(0), not_finite);
    const F32 scaled = load(weights + l) * inverse, limit = set1(kWeightMax);
    store(rounded + l, round_even(select_less(scaled, limit, scaled, limit)));  // NaN becomes the limit, so that it can be an integer
  }
  out.step = (any ? largest_weight / kWeightMax : 0) + sum(not_finite);
  for (int l = 0; l < kTile; l++) out.weight[l] = int16_t(int32_t(rounded[l]));
}

// Scores of a tile's first `count` positions; returns the largest so far.
inline float tile_scores(const AttentionShape& shape, const CodedQuery& query, int count, const int32_t* acc, const float* k_scale,
                         float* scores) {
  constexpr int kTile = tqn::cache::kTile;
  const F32 factor = set1(shape.scale * query.scale);
  for (int l = 0; l < kTile; l += kLanes) store(scores + l, factor * load(k_scale + l) * to_f32(load_i32(acc + l)));
  if (shape.soft_cap > 0) soft_cap(scores, shape.soft_cap, count);
  const float most = largest_of(scores, count, query.max);
  for (int l = count; l < kTile; l++) scores[l] = most;  // they may be anything
  return most;
}

// Scores become the exponentials that a query's softmax moves on by. Returns what the sums so far are to be multiplied by.
inline float move_on(CodedQuery& query, float most, int count, float* scores) {
  constexpr int kTile = tqn::cache::kTile;
  for (int l = 0; l < kTile; l += kLanes) store(scores + l, exp(load(scores + l) - set1(most)));
  for (int l = count; l < kTile; l++) scores[l] = 0;
  const float before = rescaled(query.sum, query.max, most);
  query.sum = query.sum * before + sum_of(scores, kTile);
  query.max = most;
  return before;
}

// Exponentials become what values count, the largest of which is returned.
inline float value_weights(int count, const float* v_scale, float* scores) {
  constexpr int kTile = tqn::cache::kTile;
  for (int l = 0; l < kTile; l += kLanes) store(scores + l, load(scores + l) * load(v_scale + l));
  for (int l = count; l < kTile; l++) scores[l] = 0;
  return largest_of(scores, kTile, 0);
}

// From the products of N queries with a tile's keys: their softmaxes move on over the tile's first counts[g] positions, and the weights of
// their values are left in `out`. before[g]: what the sums so far are to be multiplied by. Step by step for all queries: what sums up the
// lanes of one waits, and the others have something to do.
template <int N>
inline void weigh(const AttentionShape& shape, CodedQuery* queries, const int* counts, const int32_t* acc, const float* k_scale,
                  const float* v_scale, TileWeights* out, float* before) {
  constexpr int kTile = tqn::cache::kTile;
  alignas(64) float scores[N * kTile];
  float largest[N];
  for (int g = 0; g < N; g++) largest[g] = tile_scores(shape, queries[g], counts[g], acc + g * kTile, k_scale, scores + g * kTile);
  for (int g = 0; g < N; g++) before[g] = move_on(queries[g], largest[g], counts[g], scores + g * kTile);
  for (int g = 0; g < N; g++) largest[g] = value_weights(counts[g], v_scale, scores + g * kTile);
  for (int g = 0; g < N; g++) round_weights(scores + g * kTile, largest[g], out[g]);
}

// sums[g * kChannels + i]: of channel c + i, i < kChannels, for each of N queries. kValueBlocks blocks of 8 channels share what is loaded
// of the weights.
template <int Bits, int N>
inline void value_products(const uint8_t* v, int64_t c, int64_t next, const Levels& levels, const TileWeights* weights, int32_t* sums) {
  constexpr int kPairBytes = 16, kBlock = tqn::cache::kTile / 2 * kPairBytes;   // of 8 channels, or of 16 in 4 bits
  constexpr int kBytes = kPairs * kPairBytes * (Bits == 8 ? kValueBlocks : 1);  // that a step of the loop reads
  for (int b = 0; b < 2; b += kValueBlocks) {
    const uint8_t* block = v + (Bits == 8 ? c / 8 + b : c / 16) * kBlock;
    PairSums products[N][kValueBlocks];
    for (auto& query : products)
      for (PairSums& sum : query) sum = no_sums();
    for (int i = 0; i < tqn::cache::kTile / 2 / kPairs; i++) {
      const uint8_t* p = block + i * kPairs * kPairBytes;
      if ((Bits == 8 || b == 0) && i * kBytes % kLine == 0) prefetch<Bits, kBytes>(block + next + i * kBytes);
      Wide values[kValueBlocks];
      for (int j = 0; j < kValueBlocks; j++) values[j] = Bits == 8 ? wide_8(p + j * kBlock) : levels.wide_4(p, b + j > 0);
      for (int g = 0; g < N; g++) {
        const Wide weight = pair_weights(weights[g].weight + 2 * kPairs * i);
        for (int j = 0; j < kValueBlocks; j++) products[g][j] = add_products(products[g][j], values[j], weight);
      }
    }
    for (int g = 0; g < N; g++)
      for (int j = 0; j < kValueBlocks; j++) store_channels(sums + g * tqn::cache::kChannels + 8 * (b + j), products[g][j]);
  }
}

template <int Bits, int N>
inline void add_coded_values(CodedQuery* queries, const uint8_t* v, int64_t dim, const Levels& levels, const TileWeights* weights,
                             const float* before) {
  constexpr int kStep = tqn::cache::kChannels;
  const int64_t next = tqn::cache::tile_bytes(Bits, dim);
  alignas(64) int32_t sums[N * kStep];
  for (int64_t c = 0; c < dim; c += kStep) {
    value_products<Bits, N>(v, c, next, levels, weights, sums);
    for (int g = 0; g < N; g++) {
      float* out = queries[g].out + c;
      for (int i = 0; i < kStep; i += kLanes)
        store(out + i, fma(to_f32(load_i32(sums + g * kStep + i)), set1(weights[g].step), load(out + i) * set1(before[g])));
    }
  }
}

inline int count_of(const CodedQuery& query, int64_t first) {
  return query.last - first < tqn::cache::kTile ? int(query.last - first) : tqn::cache::kTile;
}

template <int N>
inline void attend_tile(const AttentionShape& shape, const CodedCache& cache, int64_t tile, const Levels& levels, CodedQuery* queries) {
  const int64_t dim = tqn::cache::padded(shape.head_dim), first = tile * tqn::cache::kTile;
  const uint8_t* k = cache.k + tile * tqn::cache::tile_bytes(cache.k_bits, dim);
  const uint8_t* v = cache.v + tile * tqn::cache::tile_bytes(cache.v_bits, dim);
  alignas(64) int32_t acc[N * tqn::cache::kTile];
  alignas(64) float k_scale[tqn::cache::kTile], v_scale[tqn::cache::kTile];
  TileWeights weights[N];
  float before[N];
  tile_products<N>(cache.k_bits, queries, k, dim, levels, acc);
  scales_of(k, cache.k_bits, dim, k_scale), scales_of(v, cache.v_bits, dim, v_scale);
  int counts[N];
  for (int g = 0; g < N; g++) counts[g] = count_of(queries[g], first);
  weigh<N>(shape, queries, counts, acc, k_scale, v_scale, weights, before);
  (cache.v_bits == 8 ? add_coded_values<8, N> : add_coded_values<4, N>)(queries, v, dim, levels, weights, before);
}

inline void attention_coded(const AttentionShape& shape, const CodedCache& cache, int64_t first_tile, int64_t last_tile,
                            CodedQuery* queries, int64_t n) {
  const Levels levels;
  for (int64_t tile = first_tile; tile < last_tile; tile++) {
    int64_t begin = 0;  // of those that read something of this tile
    while (begin < n && queries[begin].last <= tile * tqn::cache::kTile) begin++;
    for_token_groups<kQueries>(
        n - begin, [&](auto group, int64_t g) { attend_tile<decltype(group)::size>(shape, cache, tile, levels, queries + begin + g); });
  }
}

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
