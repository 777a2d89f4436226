// Caches in codes on the device: the integers against the scalar encoder, attention against the CPU's, the same bits for any batches of few
// rows, and what is not finite.
#include "device_check.h"
#include "format/cache.h"

using namespace device_check;

namespace {

struct Case {
  int heads, kv_heads, dim, k_bits, v_bits, rows;
  float soft_cap = 0;
  int depth = 0;  // positions before the first row that the cache holds already
  bool turned = depth == 0;
  int64_t capacity() const { return depth + rows + 3; }
};

// KeyStatistics of all key/value heads; empty: none.
struct Statistics {
  std::vector<float> mean, balance;
  KeyStatistics of_head(int64_t head, int64_t dim) const {
    const auto at = [&](const std::vector<float>& x) { return x.empty() ? nullptr : x.data() + head * dim; };
    return {at(mean), at(balance)};
  }
};

// Tiles of both slots, for the positions before the first row. The mean of a channel's values tells of which tile they are, so that sums
// show tiles that were left out or counted twice.
std::vector<uint8_t> filled(CacheSide side, int bits, const Case& c) {
  const int64_t bytes = tqn::cache::tile_bytes(bits, c.dim), tiles = tqn::cache::tiles(c.capacity());
  std::vector<uint8_t> all(size_t(2 * c.kv_heads * tiles * bytes));
  Random random{uint64_t(c.depth) + uint64_t(side == CacheSide::key)};
  for (int64_t h = 0; h < c.kv_heads; h++)
    for (int64_t p = 0; p < c.depth; p++) {
      std::vector<float> x = random.normals(c.dim);
      for (int i = 0; side == CacheSide::value && i < c.dim; i++) x[size_t(i)] += (p / tqn::cache::kTile >> i % 11) & 1 ? 2.f : -2.f;
      encode_cached(side, bits, x.data(), c.dim, int(p % tqn::cache::kTile), all.data() + (h * tiles + p / tqn::cache::kTile) * bytes);
    }
  std::copy_n(all.begin(), all.size() / 2, all.begin() + int64_t(all.size() / 2));
  return all;
}

struct Inputs {
  explicit Inputs(const Case& c) {
    Random random{uint64_t(c.heads * c.dim + c.rows)};
    q = random.normals(c.rows * c.heads * c.dim), k = random.normals(c.rows * c.kv_heads * c.dim);
    v = random.normals(c.rows * c.kv_heads * c.dim);
    if (c.depth > 0) k_tiles = filled(CacheSide::key, c.k_bits, c), v_tiles = filled(CacheSide::value, c.v_bits, c);
  }
  std::vector<float> q, k, v;
  std::vector<uint8_t> k_tiles, v_tiles;  // what the caches hold before the first row
};

struct Result {
  std::vector<float> out, k, v;  // k and v: rotated, as the device leaves them
  std::vector<uint8_t> k_tiles, v_tiles;
};

// The operation in passes of the given numbers of rows (repeated), in the second of two slots.
Result run(Backend& b, const Case& c, const Inputs& in, const std::vector<int64_t>& passes, const Statistics& statistics = {}) {
  const int64_t capacity = c.capacity(), q_width = c.heads * c.dim, kv_width = c.kv_heads * c.dim;
  std::vector<float> inv_freq;
  for (int i = 0; i < c.dim / 2; i++) inv_freq.push_back(std::pow(10000.f, -2.f * float(i) / float(c.dim)));
  TestPlane freq(b, inv_freq, c.dim / 2);
  const auto cache = [&](int bits) {
    return b.allocate(2 * c.kv_heads * tqn::cache::tiles(capacity) * tqn::cache::tile_bytes(bits, c.dim));
  };
  const BufferPtr k_cache = cache(c.k_bits), v_cache = cache(c.v_bits);
  std::vector<TestPlane> of_keys;
  for (const std::vector<float>* x : {&statistics.mean, &statistics.balance})
    of_keys.emplace_back(b, x->empty() ? std::vector<float>(size_t(kv_width)) : *x, kv_width);
  if (c.depth > 0) b.upload(*k_cache, 0, in.k_tiles.data(), k_cache->bytes), b.upload(*v_cache, 0, in.v_tiles.data(), v_cache->bytes);
  Result result;
  for (int64_t first = 0, pass = 0; first < c.rows; pass++) {
    const int64_t n = std::min(passes[size_t(pass) % passes.size()], c.rows - first);
    const auto piece = [&](const std::vector<float>& x, int64_t width) {
      return std::vector<float>(x.begin() + first * width, x.begin() + (first + n) * width);
    };
    TestPlane q(b, piece(in.q, q_width), q_width), k(b, piece(in.k, kv_width), kv_width), v(b, piece(in.v, kv_width), kv_width),
        out(b, n, q_width);
    Op op{.kind = Op::attention};
    op.attention_op = {.q = q.plane,
                       .k = k.plane,
                       .v = v.plane,
                       .out = out.plane,
                       .rope = {c.turned ? freq.buffer.get() : nullptr, c.dim, 1.f, false},
                       .shape = {c.heads, c.kv_heads, c.dim, 1 / std::sqrt(float(c.dim)), c.soft_cap},
                       .k_cache = k_cache.get(),
                       .v_cache = v_cache.get(),
                       .k_bits = c.k_bits,
                       .v_bits = c.v_bits,
                       .key_mean = statistics.mean.empty() ? nullptr : of_keys[0].buffer.get(),
                       .key_balance = statistics.balance.empty() ? nullptr : of_keys[1].buffer.get(),
                       .capacity = capacity};
    Rows rows(static_cast<int>(n));
    for (int64_t r = 0; r < n; r++) rows.positions[size_t(r)] = int32_t(c.depth + first + r), rows.slots[size_t(r)] = 1;
    const auto program = b.prepare({op}, n);
    b.run(*program, rows.batch());
    const auto append = [&](std::vector<float>& to, const TestPlane& plane) {
      const std::vector<float> part = read(b, *plane.buffer);
      to.insert(to.end(), part.begin(), part.end());
    };
    append(result.out, out), append(result.k, k), append(result.v, v);
    first += n;
  }
  result.k_tiles.resize(size_t(k_cache->bytes)), result.v_tiles.resize(size_t(v_cache->bytes));
  b.download(*k_cache, 0, result.k_tiles.data(), k_cache->bytes), b.download(*v_cache, 0, result.v_tiles.data(), v_cache->bytes);
  return result;
}

std::vector<uint8_t> encoded(CacheSide side, int bits, const Case& c, const std::vector<float>& x) {
  const int64_t bytes = tqn::cache::tile_bytes(bits, c.dim), tiles = tqn::cache::tiles(c.rows + 3);
  std::vector<uint8_t> all(size_t(2 * c.kv_heads * tiles * bytes));
  for (int64_t p = 0; p < c.rows; p++)
    for (int64_t h = 0; h < c.kv_heads; h++) {
      uint8_t* tile = all.data() + ((c.kv_heads + h) * tiles + p / tqn::cache::kTile) * bytes;
      encode_cached(side, bits, x.data() + (p * c.kv_heads + h) * c.dim, c.dim, int(p % tqn::cache::kTile), tile);
    }
  return all;
}

const Case kCases[] = {{4, 4, 64, 8, 8, 130},      {9, 3, 64, 8, 4, 700}, {8, 2, 128, 4, 4, 900},    {4, 1, 256, 8, 8, 300},
                       {14, 2, 64, 4, 8, 200, 20}, {2, 1, 80, 8, 4, 140}, {4, 2, 96, 4, 4, 130, 30}, {3, 3, 24, 8, 8, 70},
                       {2, 2, 192, 8, 4, 65},      {6, 1, 128, 8, 8, 600}};

bool skipped(const Case& c) { return small_cases() && c.rows * c.heads > 1100; }

}  // namespace

TEST("codes in the caches are those of the scalar encoder") {
  const auto device = device_backend(Precision::f32);
  for (const Case& c : kCases) {
    if (skipped(c)) continue;
    const Result found = run(*device, c, Inputs(c), {33, 1, 7});
    CHECK(found.k_tiles == encoded(CacheSide::key, c.k_bits, c, found.k));
    CHECK(found.v_tiles == encoded(CacheSide::value, c.v_bits, c, found.v));
  }
}

TEST("attention over codes: rows and prompts against the CPU") {
  for (const Case& c : kCases) {
    if (skipped(c)) continue;
    const Inputs in(c);
    const auto cpu = make_cpu_backend({.threads = 1, .precision = Precision::f32});
    const std::vector<float> expected = run(*cpu, c, in, {c.rows}).out;
    // Both multiply the same integers; a code next to a limit may be rounded the other way: a step of a few values that are averaged.
    CHECK_NEAR(check::largest_difference(run(*device_backend(Precision::f32), c, in, {c.rows}).out, expected), 0, 0.02);
    // Prompts take queries in half precision, where the CPU has integers: scores are off by up to 1 %, of values up to 5.
    CHECK_NEAR(check::largest_difference(run(*device_backend(Precision::int8), c, in, {c.rows}).out, expected), 0, 0.1);
  }
}

TEST("rows of decoding over codes: the same bits for any batches") {
  const auto device = device_backend(Precision::f32);
  for (const Case& c : {Case{9, 3, 64, 8, 4, 600}, Case{2, 2, 128, 4, 4, 300}, Case{2, 1, 64, 8, 4, 530}}) {
    if (skipped(c)) continue;
    const Inputs in(c);
    const std::vector<float> whole = run(*device, c, in, {32}).out;
    CHECK(run(*device, c, in, {1, 5, 17, 32}).out == whole);
    CHECK(run(*device, c, in, {100}).out == whole);
  }
}

// Spans of one tile and of eight, of several rounds of the merge, and blocks that take several spans; one row, which the attending kernel
// stores itself, and many; groups of one, three and four heads; a rotation that is done in registers and one that is not.
TEST("attention over codes at depth: the same bits for any batches, near the CPU's") {
  for (const Case& c : {Case{4, 1, 64, 8, 8, 33, 0, 8150}, Case{6, 2, 128, 8, 4, 17, 0, 9000}, Case{1, 1, 64, 4, 4, 17, 0, 9000},
                        Case{4, 1, 96, 8, 4, 17, 0, 9000}, Case{4, 1, 256, 4, 4, 9, 0, 8700}, Case{8, 2, 64, 4, 4, 32, 0, 75000}}) {
    if (small_cases()) continue;
    const auto device = device_backend(Precision::f32), cpu = make_cpu_backend({.threads = 1, .precision = Precision::f32});
    const Inputs in(c);
    const std::vector<float> alone = run(*device, c, in, {1}).out;
    CHECK(run(*device, c, in, {32, 1}).out == alone);
    CHECK(run(*device, c, in, {5, 2}).out == alone);
    CHECK_NEAR(check::largest_difference(alone, run(*cpu, c, in, {1}).out), 0, 0.01);
  }
}

TEST("caches in codes: what is not finite shows in the rows that read it") {
  for (const bool key : {true, false}) {
    const Case c{4, 2, 64, 8, 4, 80};
    Inputs in(c);
    (key ? in.k : in.v)[10 * 2 * 64 + 5] = NAN;  // of position 10, the first head
    const std::vector<float> out = run(*device_backend(Precision::f32), c, in, {16}).out;
    for (int r = 0; r < c.rows; r++) CHECK_EQ(std::isnan(out[size_t(r * 4 * 64)]), r >= 10);
    for (const float x : {out[79 * 4 * 64 + 2 * 64], out[79 * 4 * 64 + 3 * 64]}) CHECK(!std::isnan(x));
  }
}

// Slots of very different lengths decode together; each row as if it were alone, and near the CPU's.
TEST("rows of slots with uneven lengths over codes: the same bits as each alone") {
  constexpr int64_t kLengths[] = {0, 1, 63, 64, 65, 200, 517};
  const Case c{6, 2, 64, 8, 4, 1};
  const int64_t n_slots = std::size(kLengths), capacity = 520, q_width = c.heads * c.dim, kv_width = c.kv_heads * c.dim;
  const auto rows_of = [&](Backend& b, const std::vector<std::vector<int64_t>>& groups) {
    const auto cache = [&](int bits) {
      return b.allocate(n_slots * c.kv_heads * tqn::cache::tiles(capacity) * tqn::cache::tile_bytes(bits, c.dim));
    };
    const BufferPtr k_cache = cache(c.k_bits), v_cache = cache(c.v_bits);
    // Rows (slot, position) of a pass; what they hold depends on these alone.
    const auto pass = [&](const std::vector<std::pair<int64_t, int64_t>>& at) {
      std::vector<float> q, k, v;
      Rows rows(static_cast<int>(at.size()));
      for (size_t r = 0; r < at.size(); r++) {
        Random random{uint64_t(at[r].first * 1000 + at[r].second)};
        for (auto [to, width] : {std::pair{&q, q_width}, {&k, kv_width}, {&v, kv_width}}) {
          const std::vector<float> x = random.normals(width);
          to->insert(to->end(), x.begin(), x.end());
        }
        rows.slots[r] = int32_t(at[r].first), rows.positions[r] = int32_t(at[r].second);
      }
      TestPlane q_plane(b, q, q_width), k_plane(b, k, kv_width), v_plane(b, v, kv_width), out(b, int64_t(at.size()), q_width);
      Op op{.kind = Op::attention};
      op.attention_op = {.q = q_plane.plane,
                         .k = k_plane.plane,
                         .v = v_plane.plane,
                         .out = out.plane,
                         .shape = {c.heads, c.kv_heads, c.dim, 1 / std::sqrt(float(c.dim)), 0},
                         .k_cache = k_cache.get(),
                         .v_cache = v_cache.get(),
                         .k_bits = c.k_bits,
                         .v_bits = c.v_bits,
                         .capacity = capacity};
      const auto program = b.prepare({op}, int64_t(at.size()));
      b.run(*program, rows.batch());
      return read(b, *out.buffer);
    };
    for (int64_t slot = 0; slot < n_slots; slot++)
      for (int64_t first = 0; first < kLengths[slot]; first += 32) {
        std::vector<std::pair<int64_t, int64_t>> at;
        for (int64_t p = first; p < std::min(first + 32, kLengths[slot]); p++) at.emplace_back(slot, p);
        pass(at);
      }
    std::vector<float> all(size_t(n_slots * q_width));
    for (const auto& group : groups) {
      std::vector<std::pair<int64_t, int64_t>> at;
      for (const int64_t slot : group) at.emplace_back(slot, kLengths[slot]);
      const std::vector<float> out = pass(at);
      for (size_t i = 0; i < group.size(); i++) std::copy_n(out.begin() + int64_t(i) * q_width, q_width, all.begin() + group[i] * q_width);
    }
    return all;
  };
  const auto cuda = device_backend(Precision::f32), cpu = make_cpu_backend({.threads = 1, .precision = Precision::f32});
  const std::vector<std::vector<int64_t>> together{{0, 1, 2, 3, 4, 5, 6}}, alone{{0}, {1}, {2}, {3}, {4}, {5}, {6}},
      some{{6, 0, 3}, {5, 1}, {2, 4}};
  const std::vector<float> all = rows_of(*cuda, together);
  CHECK(rows_of(*cuda, alone) == all);
  CHECK(rows_of(*cuda, some) == all);
  CHECK_NEAR(check::largest_difference(all, rows_of(*cpu, alone)), 0, 0.02);
}

TEST("prompts over codes: groups of one to six heads, against the CPU") {
  for (const Case& c : {Case{6, 2, 128, 8, 8, 100}, Case{8, 2, 64, 8, 4, 100}, Case{6, 1, 192, 4, 4, 100}, Case{8, 2, 96, 8, 8, 100}}) {
    const Inputs in(c);
    const std::vector<float> expected = run(*make_cpu_backend({.threads = 1, .precision = Precision::f32}), c, in, {c.rows}).out;
    CHECK_NEAR(check::largest_difference(run(*device_backend(Precision::int8), c, in, {c.rows}).out, expected), 0, 0.1);
  }
}

namespace {

Statistics statistics_of(const Case& c) {
  Random random{uint64_t(c.dim)};
  Statistics s{random.normals(c.kv_heads * c.dim), random.normals(c.kv_heads * c.dim)};
  for (float& m : s.mean) m *= 10;
  for (float& b : s.balance) b = std::exp2(b);
  return s;
}

const Case kStatisticsCases[] = {
    {4, 2, 64, 8, 8, 70}, {3, 1, 80, 8, 4, 70}, {2, 2, 96, 4, 4, 70}, {8, 2, 128, 8, 8, 70}, {2, 1, 256, 4, 8, 70}};

}  // namespace

// Single rows, few rows and prompts go through different kernels.
TEST("keys centred and balanced on the device: the same bits as keys and queries treated before") {
  const auto device = device_backend(Precision::f32);
  for (Case c : kStatisticsCases) {
    c.turned = false;
    Inputs in(c);
    const Statistics all = statistics_of(c);
    for (size_t i = 0; i < in.k.size(); i++) in.k[i] += all.mean[i % all.mean.size()];
    for (const Statistics& s : {all, Statistics{all.mean, {}}, Statistics{{}, all.balance}}) {
      Inputs before = in;
      for (int64_t r = 0; r < c.rows; r++) {
        for (int64_t h = 0; h < c.heads; h++)
          balance_query(s.of_head(h / (c.heads / c.kv_heads), c.dim), c.dim, before.q.data() + (r * c.heads + h) * c.dim);
        for (int64_t h = 0; h < c.kv_heads; h++) balance_key(s.of_head(h, c.dim), c.dim, before.k.data() + (r * c.kv_heads + h) * c.dim);
      }
      for (const std::vector<int64_t>& passes : {std::vector<int64_t>{1}, {33, 1, 7}, {70}}) {
        const Result found = run(*device, c, in, passes, s), expected = run(*device, c, before, passes);
        CHECK(found.k_tiles == expected.k_tiles);
        CHECK(found.v_tiles == expected.v_tiles);
        CHECK(found.k == expected.k);
        CHECK(found.out == expected.out);
      }
      CHECK(run(*device, c, in, {1}, s).k_tiles != run(*device, c, in, {1}).k_tiles);
    }
  }
}

TEST("turned keys, centred and balanced: the same codes in any passes, near the CPU's, rows and prompts") {
  const auto device = device_backend(Precision::f32);
  for (const Case& c : kStatisticsCases) {
    const Inputs in(c);
    Statistics s = statistics_of(c);
    for (float& m : s.mean) m /= 10;  // of the keys' own size: prompts keep halves of queries that rows round to integers
    const auto cpu = make_cpu_backend({.threads = 1, .precision = Precision::f32});
    const std::vector<float> expected = run(*cpu, c, in, {c.rows}, s).out;
    std::vector<uint8_t> tiles;
    for (const std::vector<int64_t>& passes : {std::vector<int64_t>{c.rows}, {1}, {33, 1, 7}}) {
      const Result found = run(*device, c, in, passes, s);
      CHECK(found.k_tiles == encoded(CacheSide::key, c.k_bits, c, found.k));
      CHECK(tiles.empty() || found.k_tiles == tiles);
      CHECK_NEAR(check::largest_difference(found.out, expected), 0, 0.02);
      tiles = found.k_tiles;
    }
    CHECK_NEAR(check::largest_difference(run(*device_backend(Precision::int8), c, in, {c.rows}, s).out, expected), 0, 0.1);
  }
}
