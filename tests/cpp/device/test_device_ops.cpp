// Every other operation, and a small model's whole list of them, on the device against the CPU backend.
#include "device_check.h"

using namespace device_check;

namespace {

// The same operations on both backends; planes are made through `make(backend)`, which returns the buffer to compare.
template <class Make>
double difference(Precision precision, const Rows& rows, int runs, Make&& make) {
  std::vector<float> results[2];
  const std::unique_ptr<Backend> backends[2] = {make_cpu_backend({.threads = 1, .precision = precision}), device_backend(precision)};
  for (int i = 0; i < 2; i++) {
    auto model = make(*backends[i]);
    const auto program = backends[i]->prepare(model.ops, int64_t(rows.tokens.size()));
    for (int run = 0; run < runs; run++) backends[i]->run(*program, rows.batch());
    results[i] = read(*backends[i], *model.result.buffer);
  }
  return check::largest_difference(results[1], results[0]);
}

struct Model {
  std::vector<Op> ops;
  TestPlane result;
  std::vector<TestPlane> planes;
  std::vector<MatrixPtr> matrices;
  std::vector<BufferPtr> buffers;
};

struct AttentionCase {
  int heads, kv_heads, dim, rows, first_position;
  int64_t window = 0;
  float soft_cap = 0;
  bool pairs = false;
  int rope_dims = 0;  // 0: all; -1: none
  QueryGrowth growth{};
  bool sinks = false;
};

// `first_position` earlier rows fill the cache in a pass of their own.
double attention_difference(const AttentionCase& c, Precision precision) {
  Random random{uint64_t(c.heads * c.dim + c.rows)};
  const int64_t q_width = c.heads * c.dim, kv_width = c.kv_heads * c.dim, capacity = c.first_position + c.rows + 3;
  const int total = c.first_position + c.rows, dims = c.rope_dims > 0 ? c.rope_dims : c.dim;
  const std::vector<float> q = random.normals(total * q_width), k = random.normals(total * kv_width), v = random.normals(total * kv_width);
  std::vector<float> inv_freq;
  for (int i = 0; i < dims / 2; i++) inv_freq.push_back(std::pow(10000.f, -2.f * float(i) / float(dims)));
  const bool f32 = precision == Precision::f32;
  std::vector<float> results[2];
  const std::unique_ptr<Backend> backends[2] = {make_cpu_backend({.threads = 1, .precision = precision}), device_backend(precision)};
  for (int i = 0; i < 2; i++) {
    Backend& b = *backends[i];
    const BufferPtr k_cache = b.allocate(2 * kv_width * capacity * 4), v_cache = b.allocate(2 * kv_width * capacity * 4);
    TestPlane freq(b, inv_freq, dims / 2), sinks(b, std::vector<float>(q.begin(), q.begin() + c.heads), c.heads);
    for (const auto& [first, count] : {std::pair{0, c.first_position}, std::pair{c.first_position, c.rows}}) {
      if (count == 0) continue;
      const auto piece = [from = first, n = count](const std::vector<float>& x, int64_t width) {
        return std::vector<float>(x.begin() + from * width, x.begin() + (from + n) * width);
      };
      TestPlane pq(b, piece(q, q_width), q_width), pk(b, piece(k, kv_width), kv_width), pv(b, piece(v, kv_width), kv_width),
          out(b, count, q_width);
      Op op{.kind = Op::attention};
      op.attention_op = {.q = pq.plane,
                         .k = pk.plane,
                         .v = pv.plane,
                         .out = out.plane,
                         .rope = {c.rope_dims < 0 ? nullptr : freq.buffer.get(), dims, 1.f, c.pairs},
                         .shape = {c.heads, c.kv_heads, c.dim, 1 / std::sqrt(float(c.dim)), c.soft_cap},
                         .window = c.window,
                         .k_cache = k_cache.get(),
                         .v_cache = v_cache.get(),
                         .cache_f32 = f32,
                         .capacity = capacity,
                         .growth = c.growth,
                         .sinks = c.sinks ? sinks.buffer.get() : nullptr};
      Rows rows(count);
      for (int r = 0; r < count; r++) rows.positions[size_t(r)] = first + r, rows.slots[size_t(r)] = 1;
      const auto program = b.prepare({op}, count);
      b.run(*program, rows.batch());
      results[i] = read(b, *out.buffer);
      // another layer's heads over the same keys and values
      TestPlane again(b, piece(q, q_width), q_width), other(b, count, q_width);
      op.attention_op.q = again.plane, op.attention_op.out = other.plane;
      op.attention_op.k.buffer = op.attention_op.v.buffer = nullptr;
      const auto shared = b.prepare({op}, count);
      b.run(*shared, rows.batch());
      const std::vector<float> seen = read(b, *other.buffer);
      results[i].insert(results[i].end(), seen.begin(), seen.end());
    }
  }
  return check::largest_difference(results[1], results[0]);
}

}  // namespace

TEST("attention: grouped heads, windows, soft caps, both ropes and none, growing queries, sinks, head sizes 64 to 512") {
  const AttentionCase cases[] = {{4, 4, 64, 1, 0},
                                 {9, 3, 64, 1, 130},
                                 {8, 2, 128, 3, 700},
                                 {4, 1, 256, 2, 90, 50},
                                 {4, 2, 96, 1, 300, 0, 30},
                                 {2, 1, 80, 5, 10, 0, 0, true},
                                 {4, 4, 64, 100, 0},
                                 {9, 3, 64, 200, 77},
                                 {8, 2, 128, 70, 1000, 64},
                                 {4, 1, 256, 65, 0, 0, 20},
                                 {4, 2, 96, 130, 3, 0, 0, true, 48},
                                 {2, 2, 192, 64, 64},
                                 {4, 2, 64, 3, 40, 0, 0, false, -1, {.beta = 0.3f, .length = 20}},
                                 {8, 2, 128, 80, 40, 0, 0, true, 0, {.beta = 0.3f, .length = 30}},
                                 {4, 1, 512, 1, 90},
                                 {2, 1, 384, 70, 20, 30},
                                 {8, 2, 64, 1, 300, 0, 0, false, 0, {}, true},
                                 {8, 1, 64, 3, 90, 40, 0, false, 0, {}, true},
                                 {4, 2, 64, 100, 30, 20, 0, false, 0, {}, true}};
  for (const AttentionCase& c : cases) {
    if (small_cases() && c.rows + c.first_position > 140) continue;
    // Float: sums of at most 1072 positions of weights that add to 1 and values up to about 5.
    CHECK_NEAR(attention_difference(c, Precision::f32), 0, 1e-4);
    // Half-precision queries and weights: scores of standard deviation 1 are off by about 2^-11 of their terms, outputs by 2^-11 of values
    // up to 5.
    CHECK_NEAR(attention_difference(c, Precision::int8), 0, 0.02);
  }
}

TEST("norms, soft cap and embeddings") {
  for (const int n : {1, 3, 60}) {
    Rows rows(n);
    for (int i = 0; i < n; i++) rows.tokens[size_t(i)] = (i * 37) % 70, rows.outputs.push_back(i);
    for (const Rotation rotation : {Rotation::none, Rotation::hartley_hadamard}) {
      Random random{uint64_t(n)};
      const Packed table(random, 70, 576, 4, rotation, 2);
      Dense dense(random, 70, 600, kernels::DType::f16);
      dense.host.only_looked_up = rotation == Rotation::none;
      const std::vector<float> weight = random.normals(576), head_weight = random.normals(64);
      const auto make = [&](Backend& b) {
        Model m{{}, TestPlane(b, n, 576), {}, {}, {}};
        m.planes.emplace_back(b, n, 576);
        m.planes.emplace_back(b, weight, 576);
        m.planes.emplace_back(b, head_weight, 64);
        m.matrices = {b.matrix(table.host), b.matrix(dense.host)};
        const Plane y = m.result.plane, x = m.planes[0].plane;
        m.ops.resize(5);
        m.ops[0].kind = Op::embed, m.ops[0].embed_op = {m.matrices[0].get(), y, 2.f};
        m.ops[1].kind = Op::embed, m.ops[1].embed_op = {m.matrices[1].get(), x, 1.f, 24};
        m.ops[2].kind = Op::add_norm, m.ops[2].add_norm_op = {x, y, m.planes[1].buffer.get(), 1e-5f, 0.7f, 0.9f};
        m.ops[3].kind = Op::norm, m.ops[3].norm_op = {y, 9, m.planes[2].buffer.get(), 1e-6f, y};
        m.ops[4].kind = Op::soft_cap, m.ops[4].soft_cap_op = {y, 3.f};
        return m;
      };
      CHECK_NEAR(difference(Precision::f32, rows, 1, make), 0, 1e-4);
    }
  }
}

TEST("a list of operations gives the CPU's result, again and again, as a graph and as launches") {
  for (const int n : {1, 4, small_cases() ? 20 : 50}) {
    Rows rows(n);
    rows.outputs = {0, int32_t(n - 1)};
    if (n == 1) rows.outputs = {0};
    Random random{uint64_t(n) + 9};
    const int64_t width = 576, n_ff = 896, n_vocab = 130;
    const Packed gate(random, n_ff, width, 3, Rotation::hartley_hadamard, 2), up(random, n_ff, width, 2, Rotation::hartley_hadamard, 2),
        down(random, width, n_ff, 4, Rotation::hartley_hadamard, 0);
    const Dense head(random, n_vocab, width, kernels::DType::f32);
    const std::vector<float> x = random.normals(n * width), weight = random.normals(width);
    const auto make = [&](Backend& b) {
      Model m{{}, TestPlane(b, std::min(n, 2), n_vocab), {}, {}, {}};
      m.planes.emplace_back(b, x, width);
      m.planes.emplace_back(b, n, n_ff), m.planes.emplace_back(b, n, n_ff);
      m.planes.emplace_back(b, weight, width);
      m.planes.emplace_back(b, n, width);
      for (const HostMatrix* h : {&gate.host, &up.host, &down.host, &head.host}) m.matrices.push_back(b.matrix(*h));
      Buffer* norm = m.planes[3].buffer.get();
      m.ops.resize(3);
      for (Op& op : m.ops) op.kind = Op::linear;
      LinearInput normed{.kind = LinearInput::rms_norm, .x = m.planes[0].plane, .weight = norm, .eps = 1e-5f};
      LinearInput gated{.kind = LinearInput::gated,
                        .x = m.planes[1].plane,
                        .up = m.planes[2].plane,
                        .activation = n == 4   ? GatedActivation::gelu_tanh
                                      : n == 1 ? GatedActivation::clamped_swiglu
                                               : GatedActivation::silu};
      m.ops[0].linear_op = {normed, {{m.matrices[0].get(), m.planes[1].plane}, {m.matrices[1].get(), m.planes[2].plane}}, false};
      m.ops[1].linear_op = {gated, {{m.matrices[2].get(), m.planes[4].plane}}, false};
      m.ops[2].linear_op = {{.kind = LinearInput::rms_norm, .x = m.planes[4].plane, .weight = norm, .eps = 1e-5f},
                            {{m.matrices[3].get(), m.result.plane}},
                            true};
      return m;
    };
    // Logits are sums of 576 unit products: standard deviation 24. Float against float; then int8, where a rounding that falls the other
    // way moves one activation of 576 by 1/127 of the largest.
    CHECK_NEAR(difference(Precision::f32, rows, 3, make), 0, 24 * 1e-4);
    CHECK_NEAR(difference(Precision::int8, rows, 3, make), 0, 24 * 0.03);
  }
}

TEST("mixture of experts") {
  for (const bool shared : {false, true})
    for (const int n : {1, 12}) {
      Random random{uint64_t(n) + 31};
      const int64_t width = 64, n_ff = 128;
      const int n_experts = 5;
      std::vector<std::unique_ptr<Packed>> packed;
      for (int e = 0; e < n_experts + 1; e++)
        for (const auto& [o, i] : {std::pair{n_ff, width}, std::pair{n_ff, width}, std::pair{width, n_ff}})
          packed.push_back(std::make_unique<Packed>(random, o, i, 4, Rotation::hartley_hadamard, 0));
      const Dense router(random, n_experts, width, kernels::DType::f32), shared_router(random, 1, width, kernels::DType::f32);
      const std::vector<float> x = random.normals(n * width), weight = random.normals(width);
      const auto make = [&](Backend& b) {
        Model m{{}, TestPlane(b, x, width), {}, {}, {}};
        m.planes.emplace_back(b, weight, width);
        m.ops.resize(1);
        m.ops[0].kind = Op::moe;
        MoeOp& op = m.ops[0].moe_op;
        const auto add = [&](const HostMatrix& h) { return m.matrices.emplace_back(b.matrix(h)).get(); };
        op.in = {.kind = LinearInput::rms_norm, .x = m.result.plane, .weight = m.planes[0].buffer.get(), .eps = 1e-5f};
        op.router = add(router.host);
        for (size_t e = 0; e < size_t(n_experts); e++)
          op.gate.push_back(add(packed[3 * e]->host)), op.up.push_back(add(packed[3 * e + 1]->host)),
              op.down.push_back(add(packed[3 * e + 2]->host));
        if (shared) {
          const size_t e = size_t(n_experts) * 3;
          op.shared_gate = add(packed[e]->host), op.shared_up = add(packed[e + 1]->host), op.shared_down = add(packed[e + 2]->host),
          op.shared_router = add(shared_router.host);
        }
        op.top_k = 2, op.alpha = 0.5f, op.y = m.result.plane;
        return m;
      };
      CHECK_NEAR(difference(Precision::f32, Rows(n), 1, make), 0, 1e-2);
    }
}

namespace {

// A mixture of packed experts, every third of another format, some with outliers; shared: with an expert that all rows visit.
struct Mixture {
  static constexpr int64_t kWidth = 192, kFeedForward = 320;
  int n_experts, top_k;
  bool shared, normalize, biased = false, apart = false;
  std::vector<std::unique_ptr<Packed>> packed;
  std::unique_ptr<Dense> router, shared_router;

  Mixture(int experts, int choices, bool with_shared, bool normalized)
      : n_experts(experts), top_k(choices), shared(with_shared), normalize(normalized) {
    Random random{uint64_t(experts)};
    for (int e = 0; e < n_experts + 1; e++)
      for (const auto& [o, i] : {std::pair{kFeedForward, kWidth}, std::pair{kFeedForward, kWidth}, std::pair{kWidth, kFeedForward}})
        packed.push_back(std::make_unique<Packed>(random, o, i, e % 3 == 2 ? 4 : 2, Rotation::hartley_hadamard, e % 2 ? 3 : 0));
    router = std::make_unique<Dense>(random, n_experts, kWidth, kernels::DType::f32);
    shared_router = std::make_unique<Dense>(random, 1, kWidth, kernels::DType::f32);
  }

  // y after `runs` passes over the first n rows of x, starting from zeros.
  std::vector<float> run(Backend& b, const std::vector<float>& x, int n, int runs) const {
    std::vector<MatrixPtr> matrices;
    const auto add = [&](const HostMatrix& h) { return matrices.emplace_back(b.matrix(h)).get(); };
    const TestPlane in(b, {x.begin(), x.begin() + n * kWidth}, kWidth), y(b, n, kWidth);
    Op op{.kind = Op::moe};
    MoeOp& moe = op.moe_op;
    moe.in = {.kind = LinearInput::rms_norm, .x = in.plane, .eps = 1e-5f};
    if (apart) moe.router_in = {.x = in.plane}, moe.add = false;
    moe.router = add(router->host);
    for (size_t e = 0; e < size_t(n_experts); e++)
      moe.gate.push_back(add(packed[3 * e]->host)), moe.up.push_back(add(packed[3 * e + 1]->host)),
          moe.down.push_back(add(packed[3 * e + 2]->host));
    if (shared) {
      const size_t e = size_t(n_experts) * 3;
      moe.shared_gate = add(packed[e]->host), moe.shared_up = add(packed[e + 1]->host), moe.shared_down = add(packed[e + 2]->host);
      moe.shared_router = add(shared_router->host);
    }
    Random random{9};
    const TestPlane router_bias(b, random.normals(n_experts), n_experts), down_bias(b, random.normals(n_experts * kWidth), kWidth);
    const TestPlane gate_bias(b, random.normals(n_experts * kFeedForward), kFeedForward);
    const TestPlane up_bias(b, random.normals(n_experts * kFeedForward), kFeedForward);
    if (biased) {
      moe.router_bias = router_bias.buffer.get(), moe.gate_bias = gate_bias.buffer.get();
      moe.up_bias = up_bias.buffer.get(), moe.down_bias = down_bias.buffer.get();
      moe.activation = GatedActivation::clamped_swiglu;
    }
    moe.top_k = top_k, moe.normalize = normalize, moe.alpha = 0.5f, moe.y = y.plane;
    const auto program = b.prepare({op}, n);
    for (int i = 0; i < runs; i++) b.run(*program, Rows(n).batch());
    return read(b, *y.buffer);
  }
};

double largest(const std::vector<float>& x) {
  double most = 0;
  for (const float v : x) most = check::worse(most, v, 0);
  CHECK(std::isfinite(most));
  return most;
}

}  // namespace

// 40 rows go through the host, which sorts them by expert; up to 32 stay on the device. Both multiply the same int8 values, so that only
// the order in which a row's experts are added differs.
TEST("few rows choose their experts on the device, with the result of the way through the host") {
  const auto b = device_backend(Precision::int8), cpu = make_cpu_backend({.threads = 1, .precision = Precision::int8});
  Mixture mixtures[] = {{5, 2, false, true}, {5, 5, true, false}, {70, 8, true, true},
                        {1, 1, false, true}, {6, 2, false, true}, {5, 2, false, true}};
  mixtures[4].biased = true, mixtures[5].apart = true;
  for (const Mixture& m : mixtures) {
    if (small_cases() && m.n_experts > 5) continue;
    Random random{uint64_t(m.top_k)};
    const std::vector<float> x = random.normals(40 * Mixture::kWidth), expected = m.run(*b, x, 40, 3);
    for (const int n : {1, 3, 9, 32}) {
      if (small_cases() && (n == 3 || n == 32)) continue;
      const std::vector<float> y = m.run(*b, x, n, 3), on_cpu = m.run(*cpu, x, n, 3);
      const std::vector<float> first_rows(expected.begin(), expected.begin() + std::ptrdiff_t(y.size()));
      const double worst = check::largest_difference(y, first_rows), from_cpu = check::largest_difference(y, on_cpu);
      // Three passes of at most nine additions, and weights whose exponentials and sums are rounded otherwise: 2^-24 each.
      CHECK_NEAR(worst / largest(expected), 0, 256 * std::ldexp(1.0, -24));
      CHECK_NEAR(from_cpu / largest(on_cpu), 0, 0.03);  // a few activations of 192 and 320 rounded the other way, 1/127 each
    }
  }
}

TEST("a router's ties go to the lower expert") {
  const auto b = device_backend(Precision::int8), cpu = make_cpu_backend({.threads = 1, .precision = Precision::int8});
  Mixture m(40, 3, false, true);
  std::fill(m.router->f32.begin(), m.router->f32.end(), 0.f);
  Random random{3};
  const std::vector<float> x = random.normals(5 * Mixture::kWidth), y = m.run(*b, x, 5, 1), expected = m.run(*cpu, x, 5, 1);
  for (size_t i = 0; i < y.size(); i++) CHECK_NEAR(y[i], expected[i], 0.03 * largest(expected));
}

TEST("the best tokens of each output row") {
  const auto b = device_backend(Precision::int8);
  for (const int width : {1, 3, 96, 4096, 4097, 128256, 300000})
    for (const int rows : {1, 3, 33}) {
      if (small_cases() && width * rows > 20000) continue;
      Random random{uint64_t(width + rows)};
      std::vector<float> x = random.normals(int64_t(rows) * width);
      for (size_t i = 0; i < x.size(); i++) {
        if (i % 5 == 0) x[i] = std::round(x[i]);  // ties, zeros of both signs
        if (i % 97 == 1) x[i] = i % 2 ? NAN : -INFINITY;
      }
      if (width > 3) x[3] = INFINITY;
      for (const int k : {1, 40, kMaxCandidates}) {
        const TestPlane in(*b, x, width);
        const BufferPtr best = b->allocate(rows * k * int64_t(sizeof(Candidate)));
        Op op{.kind = Op::top};
        op.top_op = {in.plane, k, best.get()};
        Rows batch(rows);
        for (int r = 0; r < rows; r++) batch.outputs.push_back(r);
        const auto program = b->prepare({op}, rows);
        for (int run = 0; run < 2; run++) b->run(*program, batch.batch());
        std::vector<Candidate> found(size_t(rows * k)), expected(static_cast<size_t>(k));
        b->download(*best, 0, found.data(), best->bytes);
        int wrong = 0;
        for (int r = 0; r < rows; r++) {
          std::fill(expected.begin(), expected.end(), kNoCandidate);
          take_best(&x[size_t(r) * size_t(width)], width, k, expected.data());
          for (int i = 0; i < k; i++) {
            const Candidate &a = found[size_t(r * k + i)], &e = expected[size_t(i)];
            wrong += a.token != e.token || a.logit != e.logit;
          }
        }
        if (wrong) std::fprintf(stderr, "width %d, %d rows, k %d: %d wrong\n", width, rows, k, wrong);
        CHECK_EQ(wrong, 0);
      }
    }
}

TEST("running out of memory is an error, and the backend goes on") {
  const auto b = device_backend(Precision::int8);
  CHECK_THROWS(b->allocate(int64_t(1) << 45), Cause::out_of_memory, ("device " + kDevice + ": cannot allocate").c_str());
  const std::vector<float> x(100, 1.5f);
  TestPlane plane(*b, x, 100);
  CHECK(read(*b, *plane.buffer) == x);
}

TEST("copies stay within the device, and each backend counts its own memory") {
  const auto b = device_backend(Precision::int8), other = device_backend(Precision::int8);
  Random random{8};
  const std::vector<float> x = random.normals(100);
  std::vector<float> expected(200);
  std::copy_n(x.begin() + 10, 20, expected.begin() + 110);
  const TestPlane from(*b, x, 100), to(*b, 2, 100);
  b->copy(*from.buffer, 40, *to.buffer, 440, 80);
  CHECK(read(*b, *to.buffer) == expected);
  b->copy(*to.buffer, 440, *to.buffer, 0, 80);  // within one buffer
  std::copy_n(x.begin() + 10, 20, expected.begin());
  CHECK(read(*b, *to.buffer) == expected);
  CHECK_EQ(b->memory_bytes(), 1200);
  CHECK_EQ(other->memory_bytes(), 0);
}
