// A token's attention over one key/value head on one core: microseconds for 1024 positions, by instruction set and type of cache, with keys
// and values in the second-level cache (1024 positions, again and again) and from memory (much more than a last-level cache holds).
//   attention [isa ...]     all instruction sets that this machine runs, unless some are named
// "float16, by query": one call for each query head, which streams all positions each time.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <random>
#include <vector>

#include "format/cache.h"
#include "kernels/kernels.h"

using namespace tq;
using kernels::AttentionQuery;
using kernels::CodedCache;
using kernels::CodedQuery;
using kernels::Kernels;

namespace {

constexpr int64_t kNear = 1024, kFar = int64_t(1) << 20;  // positions; of 64 channels in 4 bits: 71 MB
constexpr int kTimes = 5;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The least of several passes: microseconds for 1024 positions.
double time_of(int64_t positions, int repeats, const std::function<void()>& pass) {
  double best = 1e9;
  pass();
  for (int i = 0; i < kTimes; i++) {
    const double begun = now();
    for (int j = 0; j < repeats; j++) pass();
    best = std::min(best, (now() - begun) / repeats);
  }
  return best * 1e6 * 1024 / double(positions);
}

struct Work {
  Work(int dim, int group) : shape{.n_heads = group, .n_kv_heads = 1, .head_dim = dim, .scale = 0.1f} {
    std::mt19937 rng(1);
    std::normal_distribution<float> normal;
    q.resize(size_t(group * dim)), out.resize(q.size());
    for (float& x : q) x = normal(rng);
    std::vector<uint16_t> some(1 << 16);
    for (uint16_t& x : some) x = f32_to_f16(normal(rng));
    k.resize(size_t(kFar * dim)), v.resize(k.size());
    for (size_t i = 0; i < k.size(); i++) k[i] = some[i % some.size()], v[i] = some[(i + 7) % some.size()];
  }

  double numbers(const Kernels& isa, int64_t positions, int64_t together) {
    std::vector<AttentionQuery> queries;
    for (int i = 0; i < shape.n_heads; i++)
      queries.push_back({.q = &q[size_t(i * shape.head_dim)], .out = &out[size_t(i * shape.head_dim)]});
    return time_of(positions, int(kFar / positions / 16 + 1), [&] {
      for (int64_t i = 0; i < shape.n_heads; i += together)
        isa.attention(shape, &queries[size_t(i)], std::min<int64_t>(together, shape.n_heads - i), k.data(), v.data(), shape.head_dim, 0,
                      positions);
    });
  }

  double codes(const Kernels& isa, int64_t positions, int k_bits, int v_bits) {
    std::vector<CodedQuery> queries(size_t(shape.n_heads));
    std::vector<int8_t> coded(q.size());
    for (int i = 0; i < shape.n_heads; i++) {
      CodedQuery& query = queries[size_t(i)];
      int8_t* at = &coded[size_t(i * shape.head_dim)];
      query = {.q = at, .scale = isa.quantize(&q[size_t(i * shape.head_dim)], shape.head_dim, at), .last = positions, .max = -INFINITY};
      for (int c = 0; c < shape.head_dim; c++) query.total += at[c];
      query.out = &out[size_t(i * shape.head_dim)];
    }
    // Tiles of codes lie where the numbers lay; what they hold does not matter, but for the scales.
    const auto tiles = [&](std::vector<uint16_t>& cache, int bits) {
      auto* bytes = reinterpret_cast<uint8_t*>(cache.data());
      for (int64_t tile = 0; tile < tqn::cache::tiles(positions); tile++) {
        uint8_t* at = bytes + tile * tqn::cache::tile_bytes(bits, shape.head_dim) + tqn::cache::code_bytes(bits, shape.head_dim);
        std::fill_n(reinterpret_cast<uint16_t*>(at), tqn::cache::kTile, f32_to_f16(0.01f));
      }
      return bytes;
    };
    const CodedCache cache{k_bits, v_bits, tiles(k, k_bits), tiles(v, v_bits)};
    return time_of(positions, int(kFar / positions / 16 + 1),
                   [&] { isa.attention_coded(shape, cache, 0, tqn::cache::tiles(positions), queries.data(), shape.n_heads); });
  }

  kernels::AttentionShape shape;
  std::vector<float> q, out;
  std::vector<uint16_t> k, v;
};

void print(const std::vector<const Kernels*>& tables, int dim, int group) {
  std::printf(
      "\nHeads of %d, %d queries a key/value head\n\n| kernel | from | float16, by query | float16 | k8v8 | k8v4 | k4v4 "
      "|\n|---|---|---|---|---|---|---|\n",
      dim, group);
  Work work(dim, group);
  for (const Kernels* isa : tables)
    for (const int64_t positions : {kNear, kFar}) {
      std::printf("| %s | %s | %.1f | %.1f |", isa->isa.data(), positions == kNear ? "cache" : "memory", work.numbers(*isa, positions, 1),
                  work.numbers(*isa, positions, group));
      for (const auto& [k_bits, v_bits] : {std::pair{8, 8}, {8, 4}, {4, 4}})
        std::printf(" %.1f |", work.codes(*isa, positions, k_bits, v_bits));
      std::printf("\n");
      std::fflush(stdout);
    }
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<const Kernels*> tables;
  for (int i = 1; i < argc; i++) tables.push_back(&kernels::kernels_named(argv[i]));
  if (tables.empty()) tables.assign(kernels::all_kernels().begin(), kernels::all_kernels().end());
  for (const auto& [dim, group] : {std::pair{64, 3}, {64, 4}, {128, 4}, {64, 7}}) print(tables, dim, group);
}
