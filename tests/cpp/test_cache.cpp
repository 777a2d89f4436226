// Caches in codes: the layout and its scalar encoder, the kernels against plain arithmetic over the decoded codes, and the whole operation:
// the same bits however a text is cut into batches and shared among threads.
#include <memory>
#include <random>
#include <set>

#include "backend/backend.h"
#include "check.h"
#include "format/cache.h"
#include "kernels/kernels.h"

using namespace tq;
using kernels::CodedCache;
using kernels::CodedQuery;
using kernels::Kernels;
using tqn::cache::kTile;

namespace {

std::mt19937 rng(3);

std::vector<float> normals(int64_t n, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = normal(rng);
  return x;
}

constexpr CacheSide kSides[] = {CacheSide::key, CacheSide::value};
constexpr int kBits[] = {8, 4};

// Keys or values of one head, encoded.
struct Side {
  Side(CacheSide side, int bits, int64_t positions, int head_dim)
      : bits(bits), dim(head_dim), tile_bytes(tqn::cache::tile_bytes(bits, head_dim)) {
    tiles.assign(size_t(tqn::cache::tiles(positions) * tile_bytes), 0xFF);  // what is not written is anything, NaN scales too
    exact.resize(size_t(positions * head_dim));
    codes.resize(size_t(positions * tqn::cache::padded(head_dim)));
    for (int64_t p = 0; p < positions; p++) {
      uint8_t* tile = tiles.data() + p / kTile * tile_bytes;
      encode_cached(side, bits, normals(head_dim).data(), head_dim, int(p % kTile), tile);
      decode_cached(side, bits, tile, int(p % kTile), head_dim, exact.data() + p * head_dim);
      cached_codes(side, bits, tile, int(p % kTile), head_dim, codes.data() + p * tqn::cache::padded(head_dim));
      largest_scale = std::max(largest_scale, f16_to_f32(cached_scale(bits, tile, int(p % kTile), head_dim)));
    }
  }
  int bits, dim;
  int64_t tile_bytes;
  std::vector<uint8_t> tiles;
  std::vector<float> exact;  // (positions, head_dim) what the codes stand for
  std::vector<int8_t> codes;
  float largest_scale = 0;
};

struct Query {
  Query(const Kernels& isa, int head_dim, int64_t last) : codes(size_t(tqn::cache::padded(head_dim))), out(codes.size()) {
    const auto x = normals(head_dim);
    query.scale = isa.quantize(x.data(), head_dim, codes.data());
    for (const int8_t c : codes) query.total += c;
    query.q = codes.data(), query.last = last, query.max = -INFINITY, query.out = out.data();
  }
  std::vector<int8_t> codes;
  std::vector<float> out;
  CodedQuery query;
};

}  // namespace

TEST("every channel of every position has its own place, and places fill the codes") {
  for (const CacheSide side : kSides)
    for (const int bits : kBits)
      for (const int64_t dim : {16, 48, 128}) {
        std::set<int64_t> halves;
        for (int64_t c = 0; c < dim; c++)
          for (int lane = 0; lane < kTile; lane++) {
            const bool key = side == CacheSide::key;
            const int64_t byte = key ? tqn::cache::key_byte(bits, c, lane) : tqn::cache::value_byte(bits, c, lane);
            const bool upper = bits == 4 && (key ? tqn::cache::key_in_upper_half(c) : tqn::cache::value_in_upper_half(c));
            halves.insert(2 * byte + upper);
            CHECK(byte >= 0 && byte < tqn::cache::code_bytes(bits, dim));
          }
        CHECK_EQ(int64_t(halves.size()), dim * kTile);
      }
}

TEST("codes: errors within half a step, levels that fit normal values, other positions untouched") {
  for (const CacheSide side : kSides)
    for (const int dim : {1, 12, 64, 80, 128}) {
      std::vector<uint8_t> tile(size_t(tqn::cache::tile_bytes(8, dim)), 0xA5);
      const auto x = normals(dim);
      encode_cached(side, 8, x.data(), dim, 17, tile.data());
      std::vector<float> back(x.size());
      decode_cached(side, 8, tile.data(), 17, dim, back.data());
      const float scale = f16_to_f32(cached_scale(8, tile.data(), 17, dim));
      // Half a step, and at the ends what rounding the scale to float16 costs: 127 * 2^-11 of a step.
      CHECK(check::largest_difference(back, x) <= scale * (0.5 + 127.0 / 2048));
      std::vector<int8_t> other(size_t(tqn::cache::padded(dim)));
      cached_codes(side, 8, tile.data(), 18, dim, other.data());
      for (const int8_t code : other) CHECK_EQ(int(uint8_t(code)), 0xA5);
    }
  for (const CacheSide side : kSides) {
    double error = 0, power = 0;
    for (int i = 0; i < 200; i++) {
      const auto x = normals(64);
      std::vector<uint8_t> tile(size_t(tqn::cache::tile_bytes(4, 64)), 0x5A);
      encode_cached(side, 4, x.data(), 64, 63, tile.data());
      std::vector<float> back(64);
      decode_cached(side, 4, tile.data(), 63, 64, back.data());
      for (size_t c = 0; c < 64; c++) error += (back[c] - x[c]) * (back[c] - x[c]), power += x[c] * x[c];
      std::vector<int8_t> other(64);
      cached_codes(side, 4, tile.data(), 62, 64, other.data());
      for (size_t c = 0; c < 64; c++) CHECK(other[c] == tqn::cache::kLevel[0xA] || other[c] == tqn::cache::kLevel[0x5]);
    }
    CHECK(10 * std::log10(power / error) > 20);  // 20.7 dB is what the levels can give
  }
}

TEST("codes of zeros are zeros for 8 bits; what is not finite makes the scale NaN") {
  std::vector<uint8_t> tile(size_t(tqn::cache::tile_bytes(8, 16)));
  std::vector<float> x(16), back(16, 1.f);
  for (const int bits : kBits) {
    encode_cached(CacheSide::key, bits, x.data(), 16, 0, tile.data());
    decode_cached(CacheSide::key, bits, tile.data(), 0, 16, back.data());
    for (const float v : back) CHECK_EQ(v, 0.f);
  }
  for (const float bad : {NAN, INFINITY}) {
    x[3] = bad;
    for (const int bits : kBits) {
      encode_cached(CacheSide::value, bits, x.data(), 16, 5, tile.data());
      CHECK(std::isnan(f16_to_f32(cached_scale(bits, tile.data(), 5, 16))));
    }
    x[3] = 0;
  }
}

TEST("kernels over codes: every instruction set, several queries, ends within a tile") {
  for (const Kernels* isa : kernels::all_kernels())
    for (const int dim : {12, 64, 80, 96, 128, 256})
      for (const int k_bits : kBits)
        for (const int v_bits : kBits)
          for (const int64_t positions : {1, 64, 131}) {
            const Side k(CacheSide::key, k_bits, positions, dim), v(CacheSide::value, v_bits, positions, dim);
            kernels::AttentionShape shape{.n_heads = 5, .n_kv_heads = 1, .head_dim = dim, .scale = 0.2f};
            shape.soft_cap = positions % 2 ? 3.f : 0.f;
            std::vector<Query> queries;
            for (int64_t i = 0; i < 5; i++) queries.emplace_back(*isa, dim, std::max<int64_t>(positions - 4 + i, 0));
            std::vector<CodedQuery> views;
            for (const Query& q : queries) views.push_back(q.query);
            const CodedCache cache{k_bits, v_bits, k.tiles.data(), v.tiles.data()};
            isa->attention_coded(shape, cache, 0, 1, views.data(), 5);
            isa->attention_coded(shape, cache, 1, tqn::cache::tiles(positions), views.data(), 5);
            const int64_t padded = tqn::cache::padded(dim);
            for (size_t i = 0; i < queries.size(); i++) {
              const CodedQuery& found = views[i];
              std::vector<double> expected(static_cast<size_t>(dim));
              double sum = 0;
              for (int64_t p = 0; p < found.last; p++) {
                double score = 0;
                for (int c = 0; c < dim; c++) score += double(queries[i].codes[size_t(c)]) * found.scale * k.exact[size_t(p * dim + c)];
                score *= shape.scale;
                if (shape.soft_cap > 0) score = shape.soft_cap * std::tanh(score / shape.soft_cap);
                const double weight = std::exp(score);
                sum += weight;
                for (int c = 0; c < dim; c++) expected[size_t(c)] += weight * v.exact[size_t(p * dim + c)];
              }
              if (found.last <= 0) {
                CHECK_EQ(found.sum, 0.f);
                continue;
              }
              CHECK(std::fabs(std::log(found.sum) + found.max - std::log(sum)) < 1e-4);
              // Weights of a tile are rounded to half of 1 / 32767 of the largest, which is at most the sum times the largest scale.
              const double tiles = double(tqn::cache::tiles(positions));
              const double bound = tiles * kTile * 127 * 0.5 / 32767 * v.largest_scale + 1e-4;
              for (int c = 0; c < dim; c++) CHECK_NEAR(found.out[c] / found.sum, expected[size_t(c)] / sum, bound);
              for (int64_t c = dim; c < padded && v_bits == 8; c++) CHECK_EQ(found.out[c], 0.f);
            }
          }
}

TEST("kernels over codes: what is not finite shows in the result") {
  for (const Kernels* isa : kernels::all_kernels())
    for (const CacheSide side : kSides) {
      Side k(CacheSide::key, 8, 70, 16), v(CacheSide::value, 8, 70, 16);
      std::vector<float> bad(16, 1.f);
      bad[7] = NAN;
      Side& poisoned = side == CacheSide::key ? k : v;
      encode_cached(side, 8, bad.data(), 16, 3, poisoned.tiles.data());
      Query q(*isa, 16, 70);
      isa->attention_coded({.n_heads = 1, .n_kv_heads = 1, .head_dim = 16, .scale = 0.1f}, {8, 8, k.tiles.data(), v.tiles.data()}, 0, 2,
                           &q.query, 1);
      CHECK(std::isnan(q.query.out[0] / q.query.sum));
    }
}

namespace {

struct Case {
  int heads, kv_heads, dim, k_bits, v_bits;
};

// KeyStatistics of all key/value heads; empty: none.
struct Statistics {
  std::vector<float> mean, balance;
  KeyStatistics of_head(int64_t head, int64_t dim) const {
    const auto at = [&](const std::vector<float>& x) { return x.empty() ? nullptr : x.data() + head * dim; };
    return {at(mean), at(balance)};
  }
};

// The operation over n positions, in passes of the given numbers of rows (repeated), two slots side by side.
std::vector<float> run(const Case& t, int threads, const std::vector<int64_t>& passes, const std::vector<float>& q,
                       const std::vector<float>& k, const std::vector<float>& v, int64_t n, const Statistics& statistics = {}) {
  const auto backend = make_cpu_backend({.threads = threads, .precision = Precision::f32, .crowd_cores = true});
  std::vector<BufferPtr> buffers;
  const auto plane = [&](int64_t width, const float* values, int64_t rows) {
    buffers.push_back(backend->allocate(rows * width * 4));
    if (values) backend->upload(*buffers.back(), 0, values, rows * width * 4);
    return Plane{buffers.back().get(), width};
  };
  const auto cache = [&](int bits) {
    return backend->allocate(2 * t.kv_heads * tqn::cache::tiles(n) * tqn::cache::tile_bytes(bits, t.dim));
  };
  const BufferPtr k_cache = cache(t.k_bits), v_cache = cache(t.v_bits);
  const auto of_keys = [&](const std::vector<float>& x) { return x.empty() ? nullptr : plane(int64_t(x.size()), x.data(), 1).buffer; };
  Buffer *const key_mean = of_keys(statistics.mean), *const key_balance = of_keys(statistics.balance);
  std::vector<float> all;
  for (int64_t first = 0, pass = 0; first < n; pass++) {
    const int64_t rows = std::min(passes[size_t(pass) % passes.size()], n - first);
    Op op{.kind = Op::attention};
    op.attention_op = {.q = plane(t.heads * t.dim, q.data() + first * t.heads * t.dim, rows),
                       .k = plane(t.kv_heads * t.dim, k.data() + first * t.kv_heads * t.dim, rows),
                       .v = plane(t.kv_heads * t.dim, v.data() + first * t.kv_heads * t.dim, rows),
                       .out = plane(t.heads * t.dim, nullptr, rows),
                       .shape = {t.heads, t.kv_heads, t.dim, 0.3f, 0},
                       .k_cache = k_cache.get(),
                       .v_cache = v_cache.get(),
                       .k_bits = t.k_bits,
                       .v_bits = t.v_bits,
                       .key_mean = key_mean,
                       .key_balance = key_balance,
                       .capacity = n};
    std::vector<int32_t> tokens(static_cast<size_t>(rows)), positions(tokens.size()), slots(tokens.size(), 1);
    for (int64_t i = 0; i < rows; i++) positions[size_t(i)] = int32_t(first + i);
    const auto program = backend->prepare({op}, rows);
    backend->run(*program, {tokens, positions, slots, {}});
    const size_t at = all.size();
    all.resize(at + size_t(rows * t.heads * t.dim));
    backend->download(*op.attention_op.out.buffer, 0, all.data() + at, rows * t.heads * t.dim * 4);
    first += rows;
  }
  return all;
}

}  // namespace

TEST("the same bits for any batches and threads, near exact attention") {
  const int64_t n = 1100;  // more than two spans
  for (const Case& t : {Case{4, 2, 20, 8, 8}, Case{3, 1, 16, 8, 4}, Case{2, 2, 12, 4, 4}}) {
    const auto q = normals(n * t.heads * t.dim), k = normals(n * t.kv_heads * t.dim), v = normals(n * t.kv_heads * t.dim);
    const auto whole = run(t, 4, {n}, q, k, v, n);
    CHECK(run(t, 1, {300, 7, 1, 64}, q, k, v, n) == whole);
    CHECK(run(t, 4, {1000, 1, 1, 2}, q, k, v, n) == whole);
    double error = 0, power = 0;
    for (const int64_t r : {int64_t(0), int64_t(1), int64_t(63), int64_t(700), n - 1})
      for (int h = 0; h < t.heads; h++) {
        const int kv = h / (t.heads / t.kv_heads);
        std::vector<double> expected(static_cast<size_t>(t.dim));
        double sum = 0;
        for (int64_t p = 0; p <= r; p++) {
          double score = 0;
          for (int d = 0; d < t.dim; d++)
            score += double(q[size_t((r * t.heads + h) * t.dim + d)]) * k[size_t((p * t.kv_heads + kv) * t.dim + d)];
          const double weight = std::exp(0.3 * score);
          sum += weight;
          for (int d = 0; d < t.dim; d++) expected[size_t(d)] += weight * v[size_t((p * t.kv_heads + kv) * t.dim + d)];
        }
        for (int d = 0; d < t.dim; d++) {
          const double found = whole[size_t((r * t.heads + h) * t.dim + d)], want = expected[size_t(d)] / sum;
          error += (found - want) * (found - want), power += want * want;
          if (r == 0) CHECK_NEAR(found, want, 1e-5);  // a row's own position is exact
        }
      }
    // Codes of 8 bits are within 1 % of a normal vector, of 4 bits within 10 %; attention averages what is left.
    CHECK(error <= power * (t.k_bits == 8 && t.v_bits == 8 ? 1e-3 : 5e-2));
  }
}

namespace {

// Keys far from zero: each channel of a head around a mean of its own, about ten times what keys differ by.
struct Centred {
  Centred(const Case& t, int64_t n) : q(normals(n * t.heads * t.dim)), k(normals(n * t.kv_heads * t.dim)), v(k.size()) {
    v = normals(n * t.kv_heads * t.dim);
    statistics.mean = normals(t.kv_heads * t.dim, 10);
    std::uniform_real_distribution<float> octaves(-2, 2);
    for (size_t c = 0; c < statistics.mean.size(); c++) statistics.balance.push_back(std::exp2(octaves(rng)));
    for (size_t i = 0; i < k.size(); i++) k[i] += statistics.mean[i % statistics.mean.size()];
  }
  std::vector<float> q, k, v;
  Statistics statistics;
};

// Exact attention of row r's head over positions 0 to r; cap > 0: soft.
std::vector<double> exact(const Case& t, const Centred& in, int64_t r, int64_t head) {
  const int64_t kv = head / (t.heads / t.kv_heads);
  std::vector<double> scores, out(static_cast<size_t>(t.dim));
  for (int64_t p = 0; p <= r; p++) {
    double score = 0;
    for (int64_t d = 0; d < t.dim; d++)
      score += double(in.q[size_t((r * t.heads + head) * t.dim + d)]) * in.k[size_t((p * t.kv_heads + kv) * t.dim + d)];
    scores.push_back(0.3 * score);
  }
  const double most = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (int64_t p = 0; p <= r; p++) {
    const double weight = std::exp(scores[size_t(p)] - most);
    sum += weight;
    for (int64_t d = 0; d < t.dim; d++) out[size_t(d)] += weight * in.v[size_t((p * t.kv_heads + kv) * t.dim + d)];
  }
  for (double& x : out) x /= sum;
  return out;
}

double relative_error(const Case& t, const Centred& in, const std::vector<float>& found, int64_t n) {
  double error = 0, power = 0;
  for (int64_t r = 0; r < n; r += 13)
    for (int64_t h = 0; h < t.heads; h++) {
      const std::vector<double> want = exact(t, in, r, h);
      for (int64_t d = 0; d < t.dim; d++) {
        const double x = found[size_t((r * t.heads + h) * t.dim + d)] - want[size_t(d)];
        error += x * x, power += want[size_t(d)] * want[size_t(d)];
      }
    }
  return error / power;
}

}  // namespace

TEST("keys centred and balanced: there and back, and scores off by the product with the mean alone") {
  for (const int dim : {1, 64, 80, 96, 128, 256}) {
    const auto mean = normals(dim, 10), q = normals(dim);
    std::vector<float> balance;
    for (int c = 0; c < dim; c++) balance.push_back(std::exp2(float(c % 7 - 3)));  // powers of two: exact
    const KeyStatistics both{mean.data(), balance.data()};
    double offset = 0;
    for (int c = 0; c < dim; c++) offset += double(q[size_t(c)]) * mean[size_t(c)];
    for (int i = 0; i < 5; i++) {
      const auto k = normals(dim, 3);
      auto changed = k, query = q;
      balance_key(both, dim, changed.data()), balance_query(both, dim, query.data());
      double before = 0, after = 0, size = 0;
      for (size_t c = 0; c < k.size(); c++) {
        before += double(q[c]) * k[c], after += double(query[c]) * changed[c];
        size += std::fabs(double(q[c])) * (std::fabs(k[c]) + std::fabs(mean[c]));
      }
      CHECK_NEAR(before - after, offset, size * 0x1p-24);  // a subtraction's rounding is all there is
      unbalance_key(both, dim, changed.data());
      for (size_t c = 0; c < k.size(); c++) CHECK_NEAR(changed[c], k[c], (std::fabs(k[c]) + std::fabs(mean[c])) * 0x1p-23);
      auto same = k;
      balance_key({}, dim, same.data()), unbalance_key({}, dim, same.data());
      CHECK(same == k);
    }
  }
}

TEST("keys centred and balanced by the operation: the same bits as keys and queries treated before it, for any batches and threads") {
  const int64_t n = 530;  // more than a span
  for (const Case& t : {Case{4, 2, 64, 8, 8}, Case{3, 1, 80, 8, 4}, Case{2, 2, 96, 4, 4}, Case{2, 1, 128, 8, 8}, Case{2, 1, 256, 4, 8}}) {
    const Centred in(t, n);
    for (const Statistics& statistics : {in.statistics, Statistics{in.statistics.mean, {}}, Statistics{{}, in.statistics.balance}}) {
      auto q = in.q, k = in.k;
      for (int64_t r = 0; r < n; r++) {
        for (int64_t h = 0; h < t.heads; h++)
          balance_query(statistics.of_head(h / (t.heads / t.kv_heads), t.dim), t.dim, q.data() + (r * t.heads + h) * t.dim);
        for (int64_t h = 0; h < t.kv_heads; h++) balance_key(statistics.of_head(h, t.dim), t.dim, k.data() + (r * t.kv_heads + h) * t.dim);
      }
      const auto whole = run(t, 4, {n}, in.q, in.k, in.v, n, statistics);
      CHECK(whole == run(t, 4, {n}, q, k, in.v, n));
      CHECK(whole != run(t, 4, {n}, in.q, in.k, in.v, n));
      CHECK(whole == run(t, 1, {300, 7, 1, 64}, in.q, in.k, in.v, n, statistics));
    }
  }
}

TEST("large means of keys: centred they cost nothing, else they take the codes' steps") {
  const int64_t n = 200;
  for (const Case& t : {Case{4, 2, 64, 8, 8}, Case{2, 1, 128, 8, 8}}) {
    const Centred in(t, n);
    const double with = relative_error(t, in, run(t, 2, {n}, in.q, in.k, in.v, n, {in.statistics.mean, {}}), n);
    const double without = relative_error(t, in, run(t, 2, {n}, in.q, in.k, in.v, n), n);
    // A key's step is a 127th of its largest channel: ten times as large with the means, a hundred times the squared error.
    CHECK(with < 1e-3);
    CHECK(without > 10 * with);
  }
}
