// Each operation of the CPU backend against plain double arithmetic, with several numbers of threads and rows.
#include <algorithm>
#include <memory>
#include <random>
#include <thread>
#include <tuple>

#include "backend/backend.h"
#include "check.h"
#include "format/reference.h"

using namespace tq;

namespace {

using Floats = std::vector<float>;
std::mt19937 rng(1);

Floats random_floats(int64_t n, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  Floats values(static_cast<size_t>(n));
  for (float& v : values) v = normal(rng);
  return values;
}

struct Device {
  explicit Device(int threads, Precision precision = Precision::f32)
      : backend(make_cpu_backend({.threads = threads, .precision = precision, .crowd_cores = true})) {}

  Plane plane(int64_t width, const Floats& values) {
    buffers.push_back(backend->allocate(int64_t(values.size() * sizeof(float))));
    backend->upload(*buffers.back(), 0, values.data(), buffers.back()->bytes);
    return {buffers.back().get(), width};
  }
  Plane plane(int64_t rows, int64_t width) { return plane(width, Floats(size_t(rows * width))); }
  Floats read(const Plane& p) const {
    Floats values(size_t(p.buffer->bytes) / sizeof(float));
    backend->download(*p.buffer, 0, values.data(), p.buffer->bytes);
    return values;
  }
  Matrix* dense(int64_t n_out, int64_t n_in, const Floats& w) {
    matrices.push_back(backend->matrix({"dense", false, {}, {kernels::DType::f32, n_out, n_in, w.data()}}));
    return matrices.back().get();
  }
  Matrix* packed(const TqnMatrix& w) {
    matrices.push_back(backend->matrix({"packed", true, w, {}}));
    return matrices.back().get();
  }
  void run(const Op& op, const Batch& batch) {
    const auto program = backend->prepare({op}, int64_t(batch.tokens.size()));
    backend->run(*program, batch);
  }

  std::unique_ptr<Backend> backend;
  std::vector<BufferPtr> buffers;
  std::vector<MatrixPtr> matrices;
};

// Rows of one slot from position `first` on.
struct Rows {
  explicit Rows(int64_t n, int32_t first = 0, int32_t slot = 0) : tokens(size_t(n)), positions(size_t(n)), slots(size_t(n), slot) {
    for (int32_t i = 0; i < n; i++) tokens[size_t(i)] = i, positions[size_t(i)] = first + i;
  }
  Batch batch() const { return {tokens, positions, slots, outputs}; }
  std::vector<int32_t> tokens, positions, slots, outputs;
};

// A packed matrix with random codes, scales and outliers.
struct Packed {
  Packed(int k, int64_t n_out, int64_t n_in, uint64_t seed) {
    tqn::PlaneBytes bytes;
    tqn::plane_bytes(uint64_t(n_out), uint64_t(n_in), k, &bytes);
    codes.resize(bytes.codes);
    for (uint8_t& byte : codes) byte = uint8_t(rng());
    row_scale.assign(bytes.row_scale / 2, 0);
    for (int64_t r = 0; r < n_out; r++) row_scale[size_t(r)] = f32_to_f16(0.5f + 0.5f * float(r % 7) / 7);
    for (int64_t r = 0; r < n_out; r++) {
      ptr.push_back(int32_t(col.size()));
      if (r % 3 == 0) col.push_back(uint16_t(r % n_in)), val.push_back(f32_to_f16(0.25f * float(r % 5)));
    }
    ptr.push_back(int32_t(col.size()));
    w = {n_out,
         n_in,
         k,
         codes.data(),
         row_scale.data(),
         k == 8 ? nullptr : reference::default_codebook(k).data(),
         0.01f,
         Rotation::hartley_hadamard,
         seed,
         {}};
    w.outliers = {int64_t(col.size()), ptr.data(), col.data(), nullptr, val.data()};
  }
  std::vector<uint8_t> codes;
  std::vector<uint16_t> row_scale, col, val;
  std::vector<int32_t> ptr;
  TqnMatrix w;
};

std::vector<double> dense_product(const Floats& w, const double* x, int64_t n_out, int64_t n_in) {
  std::vector<double> y(static_cast<size_t>(n_out));
  for (int64_t i = 0; i < n_out; i++)
    for (int64_t j = 0; j < n_in; j++) y[size_t(i)] += double(w[size_t(i * n_in + j)]) * x[j];
  return y;
}

double silu(double x) { return x / (1 + std::exp(-x)); }

void check_near(const Floats& found, const std::vector<double>& expected, double relative, const char* what) {
  double largest = 0;
  for (const double v : expected) largest = check::worse(largest, v, 0);
  const double error = std::isfinite(largest) ? check::largest_difference(found, expected) : INFINITY;
  ++check::checks;
  if (!std::isfinite(error) || error > relative * largest)
    check::fail(__FILE__, __LINE__, std::string(what) + ": error " + std::to_string(error) + " of " + std::to_string(largest));
}

std::vector<double> rms_norm(const Floats& x, const Floats& weight, float eps) {
  double sum = 0;
  for (float v : x) sum += double(v) * v;
  const double factor = 1 / std::sqrt(sum / double(x.size()) + eps);
  std::vector<double> y(x.size());
  for (size_t i = 0; i < x.size(); i++) y[i] = x[i] * factor * weight[i];
  return y;
}

constexpr double kFloatPath = 2e-5;  // sums of at most 200 rounded products in float32

}  // namespace

TEST("linear: norm, three matrices of which one is dense, bias, alpha and residual") {
  const int64_t n_in = 96;
  const Packed a(3, 130, n_in, 5), b(2, 64, n_in, 6);
  const Floats c = random_floats(50 * n_in), weight = random_floats(n_in), bias = random_floats(130);
  for (int threads : {1, 3})
    for (int64_t n : {1, 2, 9}) {
      Device device(threads);
      const Floats x = random_floats(n * n_in), y = random_floats(n * 130);
      const Plane in = device.plane(n_in, x), out = device.plane(130, y), shared = device.plane(n, 120);
      Op op{.kind = Op::linear};
      op.linear_op.in = {.kind = LinearInput::rms_norm, .x = in, .weight = device.plane(n_in, weight).buffer, .eps = 1e-5f};
      op.linear_op.out = {{.matrix = device.packed(a.w), .y = out, .bias = device.plane(130, bias).buffer, .alpha = 0.5f, .add = true},
                          {.matrix = device.packed(b.w), .y = shared},
                          {.matrix = device.dense(50, n_in, c), .y = shared, .y_offset = 64}};
      device.run(op, Rows(n).batch());
      std::vector<double> expected_out, expected_shared;
      for (int64_t r = 0; r < n; r++) {
        const auto normed = rms_norm(Floats(x.begin() + r * n_in, x.begin() + (r + 1) * n_in), weight, 1e-5f);
        const Floats rounded(normed.begin(), normed.end());
        std::vector<double> product(130), second(64);
        reference::matvec(a.w, rounded.data(), product.data());
        for (size_t i = 0; i < 130; i++) expected_out.push_back(y[size_t(r) * 130 + i] + 0.5 * (product[i] + bias[i]));
        reference::matvec(b.w, rounded.data(), second.data());
        expected_shared.insert(expected_shared.end(), second.begin(), second.end());
        const auto third = dense_product(c, normed.data(), 50, n_in);
        expected_shared.insert(expected_shared.end(), third.begin(), third.end());
        expected_shared.resize(size_t(r + 1) * 120);  // columns that no matrix writes
      }
      check_near(device.read(out), expected_out, kFloatPath, "residual output");
      check_near(device.read(shared), expected_shared, kFloatPath, "shared plane");
    }
}

TEST("linear: the int8 path rounds as the reference does") {
  const Packed a(4, 70, 128, 9);
  for (int64_t n : {1, 5}) {
    Device device(2, Precision::int8);
    const Floats x = random_floats(n * 128);
    const Plane out = device.plane(n, 70);
    Op op{.kind = Op::linear};
    op.linear_op = {{.x = device.plane(128, x)}, {{.matrix = device.packed(a.w), .y = out}}, false};
    device.run(op, Rows(n).batch());
    std::vector<double> expected(size_t(n) * 70);
    for (int64_t r = 0; r < n; r++) reference::matvec_int8(a.w, &x[size_t(r) * 128], &expected[size_t(r) * 70]);
    // The rotation in float32 may move a value over a rounding boundary: one step of s in one column, of about n_in steps in a sum.
    check_near(device.read(out), expected, 4.0 / 128, "int8 product");
  }
}

TEST("linear: logits of the output rows only, packed") {
  const Packed a(2, 64, 32, 3);
  const Floats x = random_floats(6 * 32), up = random_floats(6 * 32);
  Device device(2);
  const Plane out = device.plane(3, 64);
  Op op{.kind = Op::linear};
  op.linear_op = {
      {.kind = LinearInput::gated, .x = device.plane(32, x), .up = device.plane(32, up)}, {{.matrix = device.packed(a.w), .y = out}}, true};
  Rows rows(6);
  rows.outputs = {1, 4, 5};
  device.run(op, rows.batch());
  std::vector<double> expected(3 * 64);
  for (size_t i = 0; i < 3; i++) {
    Floats gated(32);
    for (size_t j = 0; j < 32; j++) gated[j] = float(silu(x[size_t(rows.outputs[i]) * 32 + j]) * up[size_t(rows.outputs[i]) * 32 + j]);
    reference::matvec(a.w, gated.data(), &expected[i * 64]);
  }
  check_near(device.read(out), expected, kFloatPath, "logits");
}

namespace {

struct AttentionCase {
  int heads, kv_heads, dim;
  int64_t window;
  float soft_cap;
  bool pairs, f32, turns = true;
  QueryGrowth growth{};
  bool sinks = false;
};

// Of head h.
double sink(int h) { return 1.5 - h; }

void rope(double* x, const Floats& inv_freq, int64_t position, bool pairs) {
  const size_t half = inv_freq.size();
  for (size_t i = 0; i < half; i++) {
    double &a = x[pairs ? 2 * i : i], &b = x[pairs ? 2 * i + 1 : i + half];
    const double angle = double(position) * inv_freq[i], c = std::cos(angle), s = std::sin(angle), old = a;
    a = old * c - b * s, b = b * c + old * s;
  }
}

// All positions of one sequence at once; q, k, v: (n, heads * dim).
std::vector<double> attention(const AttentionCase& t, const Floats& inv_freq, const Floats& q, const Floats& k, const Floats& v,
                              int64_t n) {
  const auto turned = [&](const Floats& x, int heads) {
    std::vector<double> y(x.begin(), x.end());
    if (!t.turns) return y;
    for (int64_t r = 0; r < n; r++)
      for (int h = 0; h < heads; h++) rope(&y[size_t((r * heads + h) * t.dim)], inv_freq, r, t.pairs);
    return y;
  };
  auto tq = turned(q, t.heads);
  const auto tk = turned(k, t.kv_heads);
  if (t.growth.length > 0)
    for (size_t i = 0; i < tq.size(); i++)
      tq[i] *= 1 + t.growth.beta * std::log(1 + std::floor(double(int64_t(i) / (t.heads * t.dim)) / double(t.growth.length)));
  std::vector<double> out(q.size());
  for (int64_t r = 0; r < n; r++)
    for (int h = 0; h < t.heads; h++) {
      const int kv = h / (t.heads / t.kv_heads);
      const int64_t first = t.window ? std::max<int64_t>(0, r + 1 - t.window) : 0;
      double sum = t.sinks ? std::exp(sink(h)) : 0;
      for (int64_t p = first; p <= r; p++) {
        double score = 0;
        for (int d = 0; d < t.dim; d++) score += tq[size_t((r * t.heads + h) * t.dim + d)] * tk[size_t((p * t.kv_heads + kv) * t.dim + d)];
        score *= 0.3;
        const double weight = std::exp(t.soft_cap > 0 ? t.soft_cap * std::tanh(score / t.soft_cap) : score);
        sum += weight;
        for (int d = 0; d < t.dim; d++) out[size_t((r * t.heads + h) * t.dim + d)] += weight * v[size_t((p * t.kv_heads + kv) * t.dim + d)];
      }
      for (int d = 0; d < t.dim; d++) out[size_t((r * t.heads + h) * t.dim + d)] /= sum;
    }
  return out;
}

void check_attention(const AttentionCase& t, int threads) {
  const int64_t n = 300, capacity = 310, prompt = 280;
  Device device(threads);
  const Floats q = random_floats(n * t.heads * t.dim), k = random_floats(n * t.kv_heads * t.dim), v = random_floats(n * t.kv_heads * t.dim);
  Floats inv_freq;
  for (int i = 0; i < t.dim / 2; i++) inv_freq.push_back(float(std::pow(100.0, -2.0 * i / t.dim)));
  const std::vector<double> expected = attention(t, inv_freq, q, k, v, n);
  const int64_t cache = 2 * t.kv_heads * capacity * t.dim * (t.f32 ? 4 : 2);
  device.buffers = {device.backend->allocate(cache), device.backend->allocate(cache)};
  if (!t.turns) inv_freq.clear();
  Floats sinks;
  for (int h = 0; h < t.heads; h++) sinks.push_back(float(sink(h)));
  const Plane sink_plane = device.plane(t.heads, sinks);
  const RopeTable table = !t.turns ? RopeTable{} : RopeTable{device.plane(t.dim / 2, inv_freq).buffer, t.dim, 1, t.pairs};
  // The prompt at once, then one to three rows at a time, as a model runs.
  for (int64_t first = 0; first < n;) {
    const int64_t rows = first == 0 ? prompt : std::min(1 + first % 3, n - first);
    const auto part = [&](const Floats& x, int heads) {
      return Floats(x.begin() + first * heads * t.dim, x.begin() + (first + rows) * heads * t.dim);
    };
    const Plane out = device.plane(rows, t.heads * t.dim);
    Op op{.kind = Op::attention};
    op.attention_op = {.q = device.plane(t.heads * t.dim, part(q, t.heads)),
                       .k = device.plane(t.kv_heads * t.dim, part(k, t.kv_heads)),
                       .v = device.plane(t.kv_heads * t.dim, part(v, t.kv_heads)),
                       .out = out,
                       .rope = table,
                       .shape = {t.heads, t.kv_heads, t.dim, 0.3f, t.soft_cap},
                       .window = t.window,
                       .k_cache = device.buffers[0].get(),
                       .v_cache = device.buffers[1].get(),
                       .cache_f32 = t.f32,
                       .capacity = capacity,
                       .growth = t.growth,
                       .sinks = t.sinks ? sink_plane.buffer : nullptr};
    device.run(op, Rows(rows, int32_t(first), 1).batch());
    const auto at = expected.begin() + first * t.heads * t.dim;
    // float16 keys move scores by up to |q| |k| 2^-11 * 0.3, values by 2^-11.
    check_near(device.read(out), {at, at + rows * t.heads * t.dim}, t.f32 ? 1e-4 : 1e-2, "attention");
    // another layer's heads over the same keys and values
    AttentionOp& other = op.attention_op;
    other.q = device.plane(t.heads * t.dim, part(q, t.heads)), other.out = device.plane(rows, t.heads * t.dim);
    other.k.buffer = other.v.buffer = nullptr;
    device.run(op, Rows(rows, int32_t(first), 1).batch());
    check_near(device.read(other.out), {at, at + rows * t.heads * t.dim}, t.f32 ? 1e-4 : 1e-2, "attention over another layer's keys");
    first += rows;
  }
}

}  // namespace

TEST("attention: ropes and none, growing queries, sinks, groups, windows, soft caps, cache types, ranges over threads") {
  for (int threads : {1, 4}) {
    check_attention({4, 2, 16, 0, 0, false, true}, threads);
    check_attention({3, 1, 8, 0, 0, true, true}, threads);
    check_attention({5, 5, 12, 100, 0, false, true}, threads);
    check_attention({2, 1, 20, 0, 2.0f, true, true}, threads);
    check_attention({4, 1, 32, 0, 0, false, false}, threads);
    check_attention({4, 2, 16, 64, 0, false, true, false}, threads);
    check_attention({4, 2, 16, 0, 0, true, true, true, {.beta = 0.4f, .length = 70}}, threads);
    check_attention({2, 2, 32, 0, 0, false, false, false, {.beta = 0.2f, .length = 282}}, threads);
    check_attention({4, 2, 16, 60, 0, false, true, true, {}, true}, threads);
    check_attention({3, 1, 16, 0, 0, false, false, true, {}, true}, threads);
    check_attention({7, 1, 64, 0, 0, false, false, true, {}, true}, threads);
    check_attention({6, 2, 48, 100, 3.0f, false, false}, threads);
    check_attention({6, 2, 80, 0, 0, false, true}, threads);
  }
}

TEST("attention: slots of uneven lengths in one pass, several rows of one, read only what is theirs") {
  const int64_t capacity = 210;
  for (const bool f32 : {false, true})
    for (const int threads : {1, 3}) {
      const AttentionCase t{6, 2, 32, 0, 0, false, f32, false};
      Device device(threads);
      const auto all = [&](int64_t rows, int heads) { return random_floats(rows * heads * t.dim); };
      const int64_t cache = 3 * t.kv_heads * capacity * t.dim * (f32 ? 4 : 2);
      device.buffers = {device.backend->allocate(cache), device.backend->allocate(cache)};
      Buffer *const k_cache = device.buffers[0].get(), *const v_cache = device.buffers[1].get();
      const auto run = [&](const Rows& rows, const Floats& q, const Floats& k, const Floats& v) {
        const Plane out = device.plane(int64_t(rows.tokens.size()), t.heads * t.dim);
        Op op{.kind = Op::attention};
        op.attention_op = {.q = device.plane(t.heads * t.dim, q),
                           .k = device.plane(t.kv_heads * t.dim, k),
                           .v = device.plane(t.kv_heads * t.dim, v),
                           .out = out,
                           .shape = {t.heads, t.kv_heads, t.dim, 0.3f, 0},
                           .k_cache = k_cache,
                           .v_cache = v_cache,
                           .cache_f32 = f32,
                           .capacity = capacity};
        device.run(op, rows.batch());
        return device.read(out);
      };
      struct Text {
        int64_t before, rows;
        Floats q, k, v;
      };
      std::vector<Text> texts;
      Rows together(0);
      Floats q, k, v;
      for (const auto& [before, rows] : {std::pair<int64_t, int64_t>{199, 2}, {1, 1}, {66, 3}}) {
        const int32_t slot = int32_t(texts.size());
        texts.push_back({before, rows, all(before + rows, t.heads), all(before + rows, t.kv_heads), all(before + rows, t.kv_heads)});
        const auto part = [&](const Floats& x, int heads, int64_t first, int64_t last) {
          return Floats(x.begin() + first * heads * t.dim, x.begin() + last * heads * t.dim);
        };
        const Text& text = texts.back();
        run(Rows(before, 0, slot), part(text.q, t.heads, 0, before), part(text.k, t.kv_heads, 0, before),
            part(text.v, t.kv_heads, 0, before));
        const auto append = [&](Floats& to, const Floats& x, int heads) {
          const Floats rest = part(x, heads, text.before, text.before + text.rows);
          to.insert(to.end(), rest.begin(), rest.end());
        };
        append(q, text.q, t.heads), append(k, text.k, t.kv_heads), append(v, text.v, t.kv_heads);
        for (int64_t i = 0; i < rows; i++) {
          together.tokens.push_back(0), together.slots.push_back(slot);
          together.positions.push_back(int32_t(before + i));
        }
      }
      const Floats found = run(together, q, k, v);
      auto at = found.begin();
      for (const Text& text : texts) {
        const auto expected = attention(t, {}, text.q, text.k, text.v, text.before + text.rows);
        const int64_t width = text.rows * t.heads * t.dim;
        check_near({at, at + width}, {expected.end() - width, expected.end()}, f32 ? 1e-4 : 1e-2, "rows of a slot");
        at += width;
      }
    }
}

TEST("embedding: whole rows of a table, and some of its columns") {
  const int64_t n_vocab = 9, width = 21, n = 5;
  const Floats table = random_floats(n_vocab * width);
  for (const auto& [column, count] : {std::pair<int64_t, int64_t>{0, 21}, {0, 7}, {7, 7}, {20, 1}}) {
    Device device(2);
    Op op{.kind = Op::embed};
    op.embed_op = {device.dense(n_vocab, width, table), device.plane(n, count), 1.5f, column};
    device.run(op, Rows(n).batch());
    std::vector<double> expected;
    for (int64_t r = 0; r < n; r++)
      for (int64_t i = 0; i < count; i++) expected.push_back(1.5 * table[size_t(r * width + column + i)]);
    check_near(device.read(op.embed_op.y), expected, 1e-6, "embedding");
  }
}

TEST("experts: the chosen ones only, weighted, with a shared one") {
  const int64_t n_embd = 32, n_ff = 44, n_shared = 60, n_experts = 5;
  const Floats router = random_floats(n_experts * n_embd), shared_router = random_floats(n_embd);
  std::vector<Floats> gate, up, down;
  for (int64_t e = 0; e <= n_experts; e++) {
    const int64_t width = e == n_experts ? n_shared : n_ff;
    gate.push_back(random_floats(width * n_embd, 0.3f)), up.push_back(random_floats(width * n_embd, 0.3f)),
        down.push_back(random_floats(width * n_embd, 0.3f));
  }
  const auto expert = [&](size_t e, const double* x, int64_t width) {
    auto hidden = dense_product(gate[e], x, width, n_embd);
    const auto second = dense_product(up[e], x, width, n_embd);
    for (size_t i = 0; i < hidden.size(); i++) hidden[i] = silu(hidden[i]) * second[i];
    return dense_product(down[e], hidden.data(), n_embd, width);
  };
  for (const auto& [threads, n, apart] : {std::tuple{1, 1, false}, {1, 7, true}, {3, 1, true}, {3, 7, false}, {3, 7, true}}) {
    Device device(threads);
    const Floats x = random_floats(n * n_embd), y = random_floats(n * n_embd), ones(size_t(n_embd), 1.f);
    Op op{.kind = Op::moe};
    MoeOp& moe = op.moe_op;
    moe.in = {.x = device.plane(n_embd, x)}, moe.y = device.plane(n_embd, y);
    if (apart) moe.add = false, moe.router_in = {.kind = LinearInput::rms_norm, .x = moe.in.x, .eps = 1e-5f};
    moe.router = device.dense(n_experts, n_embd, router), moe.shared_router = device.dense(1, n_embd, shared_router);
    for (size_t e = 0; e < size_t(n_experts); e++) {
      moe.gate.push_back(device.dense(n_ff, n_embd, gate[e])), moe.up.push_back(device.dense(n_ff, n_embd, up[e]));
      moe.down.push_back(device.dense(n_embd, n_ff, down[e]));
    }
    moe.shared_gate = device.dense(n_shared, n_embd, gate.back()), moe.shared_up = device.dense(n_shared, n_embd, up.back());
    moe.shared_down = device.dense(n_embd, n_shared, down.back());
    moe.top_k = 2, moe.normalize = true, moe.alpha = 0.5f;
    device.run(op, Rows(n).batch());
    std::vector<double> expected(y.begin(), y.end());
    if (apart) std::fill(expected.begin(), expected.end(), 0);
    for (int64_t r = 0; r < n; r++) {
      const std::vector<double> row(x.begin() + r * n_embd, x.begin() + (r + 1) * n_embd);
      const auto seen = apart ? rms_norm({row.begin(), row.end()}, ones, 1e-5f) : row;
      auto logits = dense_product(router, seen.data(), n_experts, n_embd);
      std::vector<size_t> order{0, 1, 2, 3, 4};
      std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
      const double total = std::exp(logits[order[0]]) + std::exp(logits[order[1]]);
      const auto add = [&](size_t e, double weight, int64_t width) {
        const auto out = expert(e, row.data(), width);
        for (size_t i = 0; i < out.size(); i++) expected[size_t(r * n_embd) + i] += 0.5 * weight * out[i];
      };
      for (size_t j = 0; j < 2; j++) add(order[j], std::exp(logits[order[j]]) / total, n_ff);
      add(size_t(n_experts), 1 / (1 + std::exp(-dense_product(shared_router, row.data(), 1, n_embd)[0])), n_shared);
    }
    check_near(device.read(moe.y), expected, kFloatPath, "mixture");
  }
}

TEST("experts with biases and clamped gates") {
  const int64_t n_embd = 32, n_ff = 44, n_experts = 5;
  const Floats router = random_floats(n_experts * n_embd), router_bias = random_floats(n_experts);
  const Floats gate_bias = random_floats(n_experts * n_ff, 6), up_bias = random_floats(n_experts * n_ff, 6),
               down_bias = random_floats(n_experts * n_embd);
  std::vector<Floats> gate, up, down;
  for (int64_t e = 0; e < n_experts; e++)
    gate.push_back(random_floats(n_ff * n_embd, 0.3f)), up.push_back(random_floats(n_ff * n_embd, 0.3f)),
        down.push_back(random_floats(n_ff * n_embd, 0.3f));
  const auto expert = [&](size_t e, const double* x) {
    auto hidden = dense_product(gate[e], x, n_ff, n_embd);
    const auto second = dense_product(up[e], x, n_ff, n_embd);
    for (size_t i = 0; i < hidden.size(); i++) {
      const double g = std::min(hidden[i] + gate_bias[e * n_ff + i], 7.), u = std::clamp(second[i] + up_bias[e * n_ff + i], -7., 7.);
      hidden[i] = g / (1 + std::exp(-1.702 * g)) * (u + 1);
    }
    auto out = dense_product(down[e], hidden.data(), n_embd, n_ff);
    for (size_t i = 0; i < out.size(); i++) out[i] += down_bias[e * n_embd + i];
    return out;
  };
  for (int threads : {1, 3})
    for (int64_t n : {1, 7}) {
      Device device(threads);
      const Floats x = random_floats(n * n_embd), y = random_floats(n * n_embd);
      Op op{.kind = Op::moe};
      MoeOp& moe = op.moe_op;
      moe.in = {.x = device.plane(n_embd, x)}, moe.y = device.plane(n_embd, y);
      moe.router = device.dense(n_experts, n_embd, router), moe.router_bias = device.plane(n_experts, router_bias).buffer;
      moe.gate_bias = device.plane(n_ff, gate_bias).buffer, moe.up_bias = device.plane(n_ff, up_bias).buffer;
      moe.down_bias = device.plane(n_embd, down_bias).buffer;
      for (size_t e = 0; e < size_t(n_experts); e++) {
        moe.gate.push_back(device.dense(n_ff, n_embd, gate[e])), moe.up.push_back(device.dense(n_ff, n_embd, up[e]));
        moe.down.push_back(device.dense(n_embd, n_ff, down[e]));
      }
      moe.top_k = 2, moe.normalize = true, moe.alpha = 0.5f;
      moe.activation = GatedActivation::clamped_swiglu;
      device.run(op, Rows(n).batch());
      std::vector<double> expected(y.begin(), y.end());
      for (int64_t r = 0; r < n; r++) {
        const std::vector<double> row(x.begin() + r * n_embd, x.begin() + (r + 1) * n_embd);
        auto logits = dense_product(router, row.data(), n_experts, n_embd);
        for (size_t e = 0; e < logits.size(); e++) logits[e] += router_bias[e];
        std::vector<size_t> order{0, 1, 2, 3, 4};
        std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
        const double total = std::exp(logits[order[0]]) + std::exp(logits[order[1]]);
        for (size_t j = 0; j < 2; j++) {
          const auto out = expert(order[j], row.data());
          for (size_t i = 0; i < out.size(); i++) expected[size_t(r * n_embd) + i] += 0.5 * std::exp(logits[order[j]]) / total * out[i];
        }
      }
      check_near(device.read(moe.y), expected, kFloatPath, "mixture");
    }
}

TEST("passes from several threads take turns while threads are changed") {
  Device device(2);
  const Packed a(4, 256, 64, 11);
  const Floats x = random_floats(64);
  std::vector<double> expected(256);
  reference::matvec(a.w, x.data(), expected.data());
  Op op{.kind = Op::linear};
  std::vector<Plane> outs;
  std::vector<std::unique_ptr<Program>> programs;
  for (int i = 0; i < 3; i++) {
    outs.push_back(device.plane(1, 256));
    op.linear_op = {{.x = device.plane(64, x)}, {{.matrix = device.packed(a.w), .y = outs.back()}}, false};
    programs.push_back(device.backend->prepare({op}, 1));
  }
  std::vector<std::thread> users;
  for (auto& program : programs)
    users.emplace_back([&device, &program] {
      const Rows rows(1);
      for (int i = 0; i < 50; i++) device.backend->run(*program, rows.batch());
    });
  for (int i = 0; i < 20; i++) device.backend->set_threads(1 + i % 3, 2);
  for (auto& user : users) user.join();
  for (const Plane& out : outs) check_near(device.read(out), expected, kFloatPath, "concurrent pass");
}
