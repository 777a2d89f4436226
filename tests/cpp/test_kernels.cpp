// Every instruction set that this machine can run, against the scalar oracle of cpp/format.
#include <algorithm>
#include <bit>
#include <cstdlib>
#include <memory>
#include <random>

#include "check.h"
#include "format/reference.h"
#include "kernels/kernels.h"

using namespace tq;
using kernels::Activations;
using kernels::Kernels;
using kernels::RotationPlan;

namespace {

constexpr auto& kFormats = tqn::Formats::bits;
std::mt19937_64 rng(20240607);

float normal() { return std::normal_distribution<float>()(rng); }
int uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(rng); }
std::vector<float> normals(int64_t n) {
  std::vector<float> x(n);
  for (float& v : x) v = normal();
  return x;
}

struct Aligned {
  std::unique_ptr<void, void (*)(void*)> memory{nullptr, std::free};
  explicit Aligned(int64_t bytes) : memory(std::aligned_alloc(64, (bytes + 63) / 64 * 64), std::free) {}
  void* get() const { return memory.get(); }
};

// A matrix that owns its planes. The codes end where the allocation ends, so that a sanitizer sees every byte read too far, and start at
// any address, as in a mapped file.
struct Fixture {
  std::vector<uint8_t> codes;
  std::vector<uint16_t> row_scale;
  std::vector<int8_t> codebook;
  std::vector<int32_t> ptr;
  std::vector<uint16_t> col, val;
  TqnMatrix w;

  Fixture(int64_t n_out, int64_t n_in, int k, int misalignment = 0) {
    const int64_t rows = tqn::padded_rows(n_out);
    codes.resize(misalignment + rows * n_in * k / 8);
    for (auto& byte : codes) byte = uint8_t(rng());
    for (int64_t r = 0; r < rows; r++) row_scale.push_back(r < n_out ? f32_to_f16(float(uniform(0, 1000)) / 1000) : 0);
    const bool trellis = tqn::is_trellis(k);
    for (int i = 0; i < tqn::codebook_size(k); i++)
      codebook.push_back(int8_t(trellis ? uniform(0, tqn::largest_entry(k)) : uniform(-127, 0)));
    if (k == 6) make_odd();
    w.n_out = n_out, w.n_in = n_in, w.k = k;
    w.codes = codes.data() + misalignment, w.row_scale = row_scale.data(), w.codebook = k == 8 ? nullptr : codebook.data();
    w.scale = 0.01f, w.seed = 7;
  }

  // As TQN6 wants its codebook: the upper half are the lower one's negatives. (Its order does not matter to kernels.)
  void make_odd() {
    for (int i = 0; i < 32; i++) codebook[63 - i] = int8_t(-codebook[i]);
  }

  void add_outliers(int a_row) {
    ptr.push_back(0);
    for (int64_t r = 0; r < w.n_out; r++) {
      int64_t c = uniform(0, 3);
      for (int i = 0; i < a_row && c < w.n_in && r % 3 != 1; i++, c += 1 + uniform(0, int(w.n_in / a_row))) {
        col.push_back(uint16_t(c));
        val.push_back(f32_to_f16(normal()));
      }
      ptr.push_back(int32_t(col.size()));
    }
    w.outliers = {int64_t(col.size()), ptr.data(), col.data(), nullptr, val.data()};
  }

  std::vector<int8_t> values() const {  // (padded rows, n_in)
    std::vector<int8_t> c(tqn::padded_rows(w.n_out) * w.n_in);
    int8_t tile[tqn::kTileSteps];
    for (int64_t s = 0; s < int64_t(tqn::strips(w.n_out)); s++)
      for (int64_t t = 0; t < w.n_in / 4; t++) {
        reference::decode_tile(w.codes + tqn::tile_offset(s, t, w.n_in, w.k), w.k, w.codebook, tile);
        for (int i = 0; i < tqn::kTileSteps; i++) c[(s * 64 + tqn::row_of_step(i)) * w.n_in + 4 * t + tqn::col_of_step(i)] = tile[i];
      }
    return c;
  }
};

std::vector<int32_t> products(const std::vector<int8_t>& c, const std::vector<int8_t>& a, int64_t n_in,
                              int64_t n_tokens) {  // (n_tokens, rows)
  const int64_t rows = int64_t(c.size()) / n_in;
  std::vector<int32_t> acc(n_tokens * rows);
  for (int64_t t = 0; t < n_tokens; t++)
    for (int64_t r = 0; r < rows; r++) {
      int32_t total = 0;
      for (int64_t i = 0; i < n_in; i++) total += c[r * n_in + i] * a[t * n_in + i];
      acc[t * rows + r] = total;
    }
  return acc;
}

std::vector<int8_t> random_activations(int64_t n) {
  std::vector<int8_t> a(n);
  for (auto& v : a) v = int8_t(uniform(-127, 127));
  return a;
}

Activations int8_input(const std::vector<int8_t>& a, int64_t n_in, int64_t n_tokens) {
  Activations x;
  x.n_tokens = n_tokens, x.n_in = n_in, x.quantized = a.data();
  return x;
}

void check_accumulators(const Fixture& m, const std::vector<int8_t>& a, int64_t n_tokens, std::initializer_list<int> token_counts) {
  const int64_t rows = tqn::padded_rows(m.w.n_out);
  const auto expected = products(m.values(), a, m.w.n_in, n_tokens);
  for (const Kernels* k : kernels::all_kernels())
    for (int count : token_counts) {
      const Activations x = int8_input(a, m.w.n_in, count);
      const Aligned scratch(k->linear_scratch_bytes(m.w.n_in, count));
      std::vector<int32_t> acc(count * rows, 12345);
      k->accumulate(m.w, 0, tqn::strips(m.w.n_out), x, acc.data(), rows, scratch.get());
      const bool equal = std::equal(acc.begin(), acc.end(), expected.begin());
      if (!equal) std::fprintf(stderr, "%s k=%d %ldx%ld tokens=%d\n", k->isa.data(), m.w.k, long(m.w.n_out), long(m.w.n_in), count);
      CHECK(equal);
    }
}

}  // namespace

TEST("accumulators equal the oracle's to the bit: formats, rows, columns, tokens") {
  const int rows[] = {1, 2, 15, 16, 17, 33, 63, 64, 65, 127, 128, 129, 130};
  const int cols[] = {4, 8, 12, 28, 60, 64, 68, 252, 256, 260, 1020, 1024, 1028};
  int at = 0;
  for (int k : kFormats)
    for (int n_out : rows)
      for (int n_in : cols) {
        if (at++ % 5 != 0) continue;  // 169 = 4 (mod 5): every format meets other pairs
        const Fixture m(n_out, n_in, k);
        check_accumulators(m, random_activations(64 * n_in), 64, {1, 2, 3, 4, 5, 6, 7, 8, 9, 64});
      }
}

TEST("accumulators: wide matrices, more than one panel, unaligned codes") {
  for (int k : kFormats)
    for (int n_in : {4096, 4100}) {
      const Fixture m(70, n_in, k, 1 + k);
      check_accumulators(m, random_activations(9 * n_in), 9, {1, 2, 3, 4, 5, 9});
    }
}

TEST("accumulators: extreme activations and codebooks at the widest row cannot overflow") {
  for (int k : kFormats)
    for (int value : {-128, 127})
      for (int a : {-127, 127}) {
        Fixture m(1, k == 3 ? tqn::kMaxInputs : 4096, k);
        const int entry = !tqn::is_trellis(k) ? value : value < 0 ? 0 : tqn::largest_entry(k);
        std::fill(m.codebook.begin(), m.codebook.end(), int8_t(entry));
        if (k == 6) std::fill(m.codebook.begin(), m.codebook.end(), int8_t(-127)), m.make_odd();
        if (k == 6) std::fill(m.codes.begin(), m.codes.end(), uint8_t(value < 0 ? 0 : 255));  // the lowest or the highest entry
        if (k == 8) std::fill(m.codes.begin(), m.codes.end(), uint8_t(value));
        check_accumulators(m, std::vector<int8_t>(3 * m.w.n_in, int8_t(a)), 3, {1, 3});
      }
}

TEST("the oracle's own accumulators agree with its decoded tiles") {
  for (int k : kFormats) {
    const Fixture m(65, 68, k);
    const auto a = random_activations(68);
    const auto expected = products(m.values(), a, 68, 1);
    std::vector<int32_t> acc(65);
    reference::accumulate(m.w, a.data(), acc.data());
    CHECK(std::equal(acc.begin(), acc.end(), expected.begin()));
  }
}

namespace {

// Inputs of a layer as an engine prepares them, through one table's own rotate and quantize.
struct Prepared {
  std::vector<float> plain, rotated, scale, blocked;
  std::vector<int8_t> quantized;
  Activations x;
  Prepared(const Kernels& k, int64_t n_in, int64_t n_tokens, const RotationPlan* plan)
      : plain(normals(n_tokens * n_in)), rotated(plain), scale(n_tokens), quantized(n_tokens * n_in) {
    for (int64_t t = 0; t < n_tokens; t++) {
      float* row = rotated.data() + t * n_in;
      if (plan) k.rotate(*plan, row, row);
      scale[t] = k.quantize(row, n_in, quantized.data() + t * n_in);
    }
    x = {n_tokens, n_in, plain.data(), rotated.data(), quantized.data(), scale.data()};
    constexpr int64_t kBlock = kernels::kTokenBlock;
    if (n_tokens < kBlock) return;
    blocked.resize((n_tokens + kBlock - 1) / kBlock * kBlock * n_in);
    for (int64_t t = 0; t < n_tokens; t++)
      for (int64_t c = 0; c < n_in; c++) blocked[(t / kBlock * n_in + c) * kBlock + t % kBlock] = plain[t * n_in + c];
    x.blocked = blocked.data();
  }
};

// One row of y, and the sum of the magnitudes that it adds: float32 rounds each to 2^-24 of that sum at most once per operation in depth.
struct Expected {
  double y = 0, magnitude = 0;
};

Expected expected_row(const Fixture& m, const std::vector<int8_t>& c, const Prepared& p, int64_t t, int64_t r, bool int8) {
  const int64_t n = m.w.n_in;
  const double factor = double(m.w.scale) * f16_to_f32(m.row_scale[r]);
  Expected e;
  for (int64_t i = 0; i < n; i++) {
    const double x = int8 ? double(p.quantized[t * n + i]) * p.scale[t] : double(p.rotated[t * n + i]);
    e.y += factor * c[r * n + i] * x;
    e.magnitude += std::fabs(factor * c[r * n + i] * x);
  }
  if (m.w.outliers.count == 0) return e;
  for (int32_t i = m.ptr[r]; i < m.ptr[r + 1]; i++) {
    const double term = double(f16_to_f32(m.val[i])) * p.plain[t * n + m.col[i]];
    e.y += term;
    e.magnitude += std::fabs(term);
  }
  return e;
}

void check_layer(const Kernels& k, const Fixture& m, int64_t n_tokens, bool int8, bool add) {
  const int64_t ldy = m.w.n_out + 3;
  const float alpha = 0.75f, old = 0.5f;
  const Prepared p(k, m.w.n_in, n_tokens, nullptr);
  const Aligned scratch(k.linear_scratch_bytes(m.w.n_in, n_tokens));
  std::vector<float> y(n_tokens * ldy, old);
  const auto layer = int8 ? k.linear_int8 : k.linear_float;
  const int64_t strips = tqn::strips(m.w.n_out), middle = strips / 2;
  layer(m.w, 0, middle, p.x, alpha, add, y.data(), ldy, scratch.get());
  layer(m.w, middle, strips, p.x, alpha, add, y.data(), ldy, scratch.get());
  const auto c = m.values();
  const double depth =
      int8 ? 16 + 30 : double(m.w.n_in) / 16 + 40;  // int8: conversion, scales, outliers of a row; float: blocks of 128 and their sum
  for (int64_t t = 0; t < n_tokens; t++) {
    for (int64_t r = 0; r < m.w.n_out; r++) {
      const Expected e = expected_row(m, c, p, t, r, int8);
      CHECK_NEAR(y[t * ldy + r], alpha * e.y + (add ? old : 0), depth * 0x1p-24 * (alpha * e.magnitude + old));
    }
    for (int64_t r = m.w.n_out; r < ldy; r++) CHECK_EQ(y[t * ldy + r], old);  // nothing beyond the matrix's rows
  }
}

}  // namespace

TEST("linear layers: scales, residual, outliers, both paths") {
  for (const Kernels* isa : kernels::all_kernels())
    for (int k : kFormats)
      for (int n_out : {1, 64, 130})
        for (int n_tokens : {1, 3, 7, 17}) {
          Fixture m(n_out, k % 2 ? 260 : 128, k);
          if (n_tokens != 3) m.add_outliers(6);
          check_layer(*isa, m, n_tokens, true, n_tokens != 7);
          check_layer(*isa, m, n_tokens, false, n_tokens != 7);
        }
}

TEST("linear layers: rows with more outliers than any buffer holds") {
  for (const Kernels* isa : kernels::all_kernels())
    for (int n_tokens : {1, 2, 16}) {
      Fixture m(66, 2500, 2);
      m.add_outliers(2500);
      CHECK(m.w.outliers.count > 66 * 500);
      check_layer(*isa, m, n_tokens, true, false);
    }
}

TEST("linear layers: the oracle's matvec and matvec_int8, with rotation and outliers") {
  for (const Kernels* isa : kernels::all_kernels())
    for (int n_in : {64, 96, 576}) {
      Fixture m(67, n_in, 3);
      m.add_outliers(4);
      m.w.rotation = Rotation::hartley_hadamard;
      const RotationPlan plan = RotationPlan::make(n_in, m.w.seed);
      const Prepared p(*isa, n_in, 1, &plan);
      const Aligned scratch(isa->linear_scratch_bytes(n_in, 1));
      std::vector<float> y(67);
      std::vector<double> expected(67);
      isa->linear_float(m.w, 0, 2, p.x, 1, false, y.data(), 67, scratch.get());
      reference::matvec(m.w, p.plain.data(), expected.data());
      for (int r = 0; r < 67; r++) CHECK_NEAR(y[r], expected[r], 2e-4);
      isa->linear_int8(m.w, 0, 2, p.x, 1, false, y.data(), 67, scratch.get());
      reference::matvec_int8(m.w, p.plain.data(), expected.data());
      // A rotated value on the edge between two integers may round to either: one step of one activation, a few times.
      const double step = 128.0 * m.w.scale * p.scale[0];
      for (int r = 0; r < 67; r++) CHECK_NEAR(y[r], expected[r], 2 * step + 1e-4);
    }
}

TEST("all-zero input and zero rows give exact zeros; input that is not finite gives NaN") {
  for (const Kernels* isa : kernels::all_kernels()) {
    Fixture m(64, 64, 2);
    std::fill(m.row_scale.begin(), m.row_scale.begin() + 8, uint16_t(0));
    Prepared p(*isa, 64, 1, nullptr);
    const Aligned scratch(isa->linear_scratch_bytes(64, 1));
    std::vector<float> y(64, 9.f);
    isa->linear_int8(m.w, 0, 1, p.x, 1, false, y.data(), 64, scratch.get());
    for (int r = 0; r < 8; r++) CHECK(y[r] == 0);
    for (float bad : {INFINITY, -INFINITY, NAN}) {
      std::vector<float> x(68, 1.f);
      std::vector<int8_t> a(68);
      for (int at : {3, 66}) {
        x[at] = bad;
        CHECK(std::isnan(isa->quantize(x.data(), 68, a.data())));
        x[at] = 1;
      }
    }
    std::vector<float> zeros(64);
    CHECK(isa->quantize(zeros.data(), 64, p.quantized.data()) == 0);
    CHECK(std::all_of(p.quantized.begin(), p.quantized.end(), [](int8_t v) { return v == 0; }));
  }
}

TEST("quantize rounds to nearest even against max / 127") {
  for (const Kernels* isa : kernels::all_kernels())
    for (int n : {1, 4, 15, 64, 68, 1000}) {
      auto x = normals(n);
      std::vector<int8_t> a(n);
      float most = 0;
      for (float v : x) most = std::max(most, std::fabs(v));
      CHECK(isa->quantize(x.data(), n, a.data()) == most / 127);
      for (int i = 0; i < n; i++) CHECK_EQ(int(a[i]), int(std::nearbyint(x[i] / (most / 127))));
      for (float& v : x) v *= 1e-44f;  // a subnormal scale must not push a value past 127
      isa->quantize(x.data(), n, a.data());
      CHECK(std::all_of(a.begin(), a.end(), [](int8_t v) { return v >= -127; }));
    }
}

TEST("unquantized matrices: float32, float16, bfloat16") {
  for (const Kernels* isa : kernels::all_kernels())
    for (auto type : {kernels::DType::f32, kernels::DType::f16, kernels::DType::bf16})
      for (int n_in : {1, 7, 64, 100, 2049, 4100})
        for (int n_tokens : {1, 2, 5, 13, 40}) {
          const int n_out = n_tokens < 40 ? 11 : 83, first = 2;
          auto w = normals(n_out * n_in), x = normals(n_tokens * n_in);
          std::vector<uint16_t> half(w.size());
          for (size_t i = 0; i < w.size(); i++) {
            if (type == kernels::DType::f16) w[i] = f16_to_f32(half[i] = f32_to_f16(w[i]));
            if (type == kernels::DType::bf16) w[i] = bf16_to_f32(half[i] = f32_to_bf16(w[i]));
          }
          const kernels::DenseMatrix m{type, n_out, n_in, type == kernels::DType::f32 ? static_cast<const void*>(w.data()) : half.data()};
          std::vector<float> y(n_tokens * n_out, 2.f);
          const bool add = n_tokens != 2;
          isa->linear_dense(m, first, n_out, x.data(), n_tokens, 0.5f, add, y.data(), n_out);
          for (int t = 0; t < n_tokens; t++)
            for (int r = 0; r < n_out; r++) {
              double expected = r >= first && !add ? 0 : 2, magnitude = 2;
              for (int i = 0; i < n_in && r >= first; i++) {
                expected += 0.5 * w[r * n_in + i] * x[t * n_in + i];
                magnitude += std::fabs(0.5 * w[r * n_in + i] * x[t * n_in + i]);
              }
              CHECK_NEAR(y[t * n_out + r], expected, (std::min(n_in, 2048) + 8) * 0x1p-24 * magnitude);
            }
          std::vector<float> row(n_in);
          isa->dense_row(m, 5, row.data());
          CHECK(std::equal(row.begin(), row.end(), w.begin() + 5 * n_in));
        }
}

TEST("a single row of a packed matrix") {
  for (const Kernels* isa : kernels::all_kernels())
    for (int k : kFormats)
      for (bool rotated : {false, true}) {
        Fixture m(130, 96, k);
        m.add_outliers(3);
        m.w.rotation = rotated ? Rotation::hartley_hadamard : Rotation::none;
        const RotationPlan plan = RotationPlan::make(96, m.w.seed);
        std::vector<float> row(96);
        std::vector<double> expected(96);
        for (int r : {0, 1, 63, 64, 129}) {
          isa->tqn_row(m.w, rotated ? &plan : nullptr, r, row.data());
          reference::decode_row(m.w, r, expected.data());
          for (int i = 0; i < 96; i++) CHECK_NEAR(row[i], expected[i], 16 * 0x1p-24 * 10);
        }
      }
}

TEST("rotation: the oracle's, and its inverse undoes it") {
  for (const Kernels* isa : kernels::all_kernels())
    for (int n : {4, 8, 12, 16, 20, 32, 36, 48, 64, 180, 576, 1536, 2048, 4096 + 4, 8192, 7 * 2048, 43 * 256}) {
      const RotationPlan plan = RotationPlan::make(n, 99);
      const auto x = normals(n);
      std::vector<double> expected(x.begin(), x.end());
      reference::rotate(expected.data(), n, 99, false);
      std::vector<float> y(x);
      isa->rotate(plan, y.data(), y.data());  // in place
      double length = 0;
      for (float v : x) length += double(v) * v;
      // log2(n) additions and q-term sums, each rounding to 2^-24 of intermediates that the length of x bounds
      double depth = 4 + plan.log2_block;
      for (int q : plan.primes) depth += q;
      const double bound = depth * 0x1p-24 * std::sqrt(length);
      for (int i = 0; i < n; i++) CHECK_NEAR(y[i], expected[i], bound);
      std::vector<float> back(n);
      isa->rotate_inverse(plan, y.data(), back.data());
      for (int i = 0; i < n; i++) CHECK_NEAR(back[i], x[i], 2 * bound);
    }
  CHECK_THROWS(RotationPlan::make(6, 1), Cause::invalid_argument, "width 6");
  CHECK_THROWS(RotationPlan::make(1 << 17, 1), Cause::invalid_argument, "131072");
}

TEST("norm, gates, soft cap, scaled addition") {
  for (const Kernels* isa : kernels::all_kernels())
    for (int n : {1, 3, 16, 31, 64, 576, 1001}) {
      auto x = normals(n), weight = normals(n), out = x;
      for (float& v : x) v *= 8;
      if (n > 16) x[0] = 200, x[1] = -200, x[2] = 1e-20f, x[3] = -0.0f;
      double squares = 0;
      for (float v : x) squares += double(v) * v;
      const double factor = 1 / std::sqrt(squares / n + 1e-5);
      isa->rms_norm(x.data(), weight.data(), n, 1e-5f, out.data());
      for (int i = 0; i < n; i++) CHECK_NEAR(out[i], x[i] * factor * weight[i], 1e-5 * std::fabs(x[i] * factor * weight[i]));
      out = x;
      isa->rms_norm(out.data(), nullptr, n, 1e-5f, out.data());
      for (int i = 0; i < n; i++) CHECK_NEAR(out[i], x[i] * factor, 1e-5 * std::fabs(x[i] * factor));
      isa->silu_mul(x.data(), weight.data(), n, out.data());
      for (int i = 0; i < n; i++) {
        const double exact = x[i] / (1 + std::exp(-double(x[i]))) * weight[i];
        CHECK_NEAR(out[i], exact, 1e-6 * std::fabs(exact) + 1e-30);
      }
      isa->gelu_mul(x.data(), weight.data(), n, out.data());
      for (int i = 0; i < n; i++) {
        // the sigmoid turns the relative error of z, a few 2^-24, into |z| times it
        const double g = x[i], z = std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g), exact = g / (1 + std::exp(-2 * z)) * weight[i];
        CHECK_NEAR(out[i], exact, (1e-6 + 5e-7 * std::fabs(std::min(z, 0.))) * std::fabs(exact) + 1e-30);
      }
      isa->clamped_swiglu(x.data(), weight.data(), n, out.data());
      for (int i = 0; i < n; i++) {
        const double g = std::min<double>(x[i], 7), u = std::clamp<double>(weight[i], -7, 7);
        const double exact = g / (1 + std::exp(-1.702 * g)) * (u + 1);
        // u + 1 cancels near -1, and the sigmoid's argument is off by a few 2^-24 of itself
        const double bound =
            (1e-6 + 1e-6 * std::fabs(std::min(g, 0.))) * std::fabs(exact) + 2e-7 * std::fabs(g / (1 + std::exp(-1.702 * g)));
        CHECK_NEAR(out[i], exact, bound + 1e-30);
      }
      out = x;
      isa->soft_cap(out.data(), 30, n);
      for (int i = 0; i < n; i++)
        CHECK_NEAR(out[i], 30 * std::tanh(double(x[i]) / 30), 1e-6 * std::fabs(30 * std::tanh(double(x[i]) / 30)));
      out = x;
      isa->add_scaled(out.data(), weight.data(), 0.3f, n);
      for (int i = 0; i < n; i++) CHECK_NEAR(out[i], x[i] + double(0.3f) * weight[i], 0x1p-23 * (std::fabs(x[i]) + std::fabs(weight[i])));
    }
}

TEST("rope turns pairs, both layouts, and leaves the rest of the head") {
  for (const Kernels* isa : kernels::all_kernels())
    for (int dims : {2, 8, 32, 80}) {
      const auto x = normals(96), angle = normals(dims / 2);
      std::vector<float> cosine, sine;
      for (float a : angle) cosine.push_back(std::cos(a)), sine.push_back(std::sin(a));
      for (bool pairs : {false, true}) {
        auto y = x;
        (pairs ? isa->rope_pairs : isa->rope_neox)(y.data(), cosine.data(), sine.data(), dims);
        for (int i = 0; i < dims / 2; i++) {
          const int a = pairs ? 2 * i : i, b = pairs ? 2 * i + 1 : i + dims / 2;
          CHECK_NEAR(y[a], double(x[a]) * cosine[i] - double(x[b]) * sine[i], 0x1p-22 * 8);
          CHECK_NEAR(y[b], double(x[b]) * cosine[i] + double(x[a]) * sine[i], 0x1p-22 * 8);
        }
        CHECK(std::equal(y.begin() + dims, y.end(), x.begin() + dims));
      }
    }
}

TEST("float16 rows convert as the scalar functions do") {
  for (const Kernels* isa : kernels::all_kernels()) {
    std::vector<uint16_t> bits;
    for (int i = 0; i < 65536; i += 7)
      if ((i & 0x7C00) != 0x7C00 || (i & 0x3FF) == 0) bits.push_back(uint16_t(i));
    std::vector<float> x(bits.size());
    isa->to_f32(bits.data(), int64_t(bits.size()), x.data());
    for (size_t i = 0; i < bits.size(); i++) CHECK(std::bit_cast<uint32_t>(x[i]) == std::bit_cast<uint32_t>(f16_to_f32(bits[i])));
    for (float& v : x) v *= 1.0003f;
    std::vector<uint16_t> back(bits.size());
    isa->to_f16(x.data(), int64_t(x.size()), back.data());
    for (size_t i = 0; i < bits.size(); i++) CHECK_EQ(back[i], f32_to_f16(x[i]));
  }
}

TEST("an instruction set is chosen by name; an unknown one is an error that lists the usable ones") {
  CHECK(kernels::kernels_named("scalar").isa == "scalar");
  CHECK(kernels::all_kernels().back()->isa == "scalar");
  CHECK_THROWS(kernels::kernels_named("sse9"), Cause::invalid_argument, "scalar");
}
