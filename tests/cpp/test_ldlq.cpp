#include <algorithm>

#include "check.h"
#include "quant/ldlq.h"
#include "quant/quant.h"
#include "tiles.h"

using namespace tq;
using tests::gaussian;
using Dense = std::vector<double>;  // (n, n) row-major

// E[x x^T] of correlated inputs whose scales fall by a factor of 100.
static Dense hessian_of(int64_t n, int64_t samples, uint32_t seed) {
  const auto x = gaussian(samples * n, 1, seed), mix = gaussian(n * n, 1, seed + 1);
  Dense y(size_t(samples * n), 0.0), h(size_t(n * n), 0.0);
  for (int64_t s = 0; s < samples; s++)
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = 0; j < n; j++)
        y[size_t(s * n + j)] += x[size_t(s * n + i)] * std::pow(.01, double(i) / double(n)) * mix[size_t(i * n + j)];
  for (int64_t s = 0; s < samples; s++)
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = 0; j < n; j++) h[size_t(i * n + j)] += y[size_t(s * n + i)] * y[size_t(s * n + j)] / double(samples);
  return h;
}

// a <- (U + I)^-1 a, by substitution from the last row up.
static void solve(const std::vector<float>& u, int64_t n, Dense& a) {
  for (int64_t i = n - 1; i >= 0; i--)
    for (int64_t j = i + 1; j < n; j++)
      for (int64_t c = 0; c < n; c++) a[size_t(i * n + c)] -= double(u[size_t(i * n + j)]) * a[size_t(j * n + c)];
}

static Dense transposed(const Dense& a, int64_t n) {
  Dense t(a.size());
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < n; j++) t[size_t(j * n + i)] = a[size_t(i * n + j)];
  return t;
}

TEST("U makes the Hessian block diagonal, by its definition") {
  for (int64_t n : {4, 8, 60, 64, 68, 132}) {
    Dense h = hessian_of(n, 2 * n, 3);
    const auto u = quant::feedback<double>(h, n, .01, 2);
    double mean = 0;
    for (int64_t i = 0; i < n; i++) mean += h[size_t(i * n + i)] / double(n);
    for (int64_t i = 0; i < n; i++) h[size_t(i * n + i)] += .01 * mean;
    solve(u, n, h);
    Dense d = transposed(h, n);
    solve(u, n, d);
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = 0; j < n; j++) {
        if (i / 4 >= j / 4) CHECK_EQ(u[size_t(i * n + j)], 0.f);
        if (i / 4 != j / 4) CHECK_NEAR(d[size_t(i * n + j)], 0, 1e-4 * mean);  // U is float32, its elements a few units
      }
  }
}

TEST("float and double Hessians, any magnitude and any number of threads give one U") {
  const int64_t n = 72;
  const Dense h = hessian_of(n, 2 * n, 3);
  const auto wanted = quant::feedback<double>(h, n, .01, 1);
  CHECK(quant::feedback<double>(h, n, .01, 5) == wanted);
  const std::vector<float> narrow(h.begin(), h.end());
  const auto of_float = quant::feedback<float>(narrow, n, .01);
  for (double scale : {1e-300, 1e300}) {
    Dense scaled = h;
    for (double& v : scaled) v *= scale;
    const auto u = quant::feedback<double>(scaled, n, .01);
    for (size_t i = 0; i < u.size(); i++) CHECK_NEAR(u[i], wanted[i], 1e-6);
  }
  for (size_t i = 0; i < wanted.size(); i++) CHECK_NEAR(of_float[i], wanted[i], 1e-4);
}

TEST("zero and singular Hessians, dead channels") {
  for (float v : quant::feedback<double>(Dense(64, 0.0), 8, 0)) CHECK_EQ(v, 0.f);
  const auto x = gaussian(64, 1, 2);
  Dense rank_one(64 * 64);
  for (size_t i = 0; i < 64; i++)
    for (size_t j = 0; j < 64; j++) rank_one[i * 64 + j] = double(x[i]) * x[j];
  for (double damp : {0.0, 1e-12, .01})
    for (float v : quant::feedback<double>(rank_one, 64, damp)) CHECK(std::isfinite(v));
  Dense dead = hessian_of(16, 32, 4);
  for (size_t i = 0; i < 16; i++) dead[5 * 16 + i] = dead[i * 16 + 5] = 0;
  const auto u = quant::feedback<double>(dead, 16, .01);
  for (size_t i = 0; i < 16; i++) CHECK(u[5 * 16 + i] == 0 && u[i * 16 + 5] == 0);
}

TEST("Hessians that cannot be: each by its own text") {
  Dense h = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1};
  const auto refused = [&](const char* text, double damp = .01) {
    CHECK_THROWS(quant::feedback<double>(h, 4, damp), Cause::invalid_argument, text);
  };
  refused("damp is -1", -1);
  refused("damp is nan", NAN);
  h[6] = NAN;
  refused("hessian[1, 2] is nan, must be finite");
  h[6] = 5;
  refused("hessian is not positive semidefinite");
  h[6] = 0, h[10] = -2;
  refused("hessian[2, 2] is -2, must not be negative");
  CHECK_THROWS(quant::feedback<double>(h, 3, .01), Cause::invalid_argument, "hessian has 16 elements");
  CHECK_THROWS(quant::feedback<double>(std::span(h).first(9), 3, .01), Cause::invalid_argument, "must be square of a multiple of 4");
}

// Column block after column block, with a full dot product for each weight. Weights, feedback and scales are small multiples of powers of
// two, so that every sum is exact and the codes must agree to the bit.
static std::vector<uint8_t> encode_plainly(const std::vector<float>& w, int64_t n_out, int64_t n, const std::vector<float>& u, float unit,
                                           int k) {
  const auto codebook = tests::codebook_of(k);
  std::vector<float> error(w.size(), 0.f);
  std::vector<uint8_t> codes;
  for (int64_t first = 0; first < n_out; first += 64)
    for (int64_t col = 0; col < n; col += 4) {
      float x[256] = {}, weight[64] = {};
      tests::Tile tile{};
      for (int64_t row = first; row < std::min(n_out, first + 64); row++) {
        weight[row - first] = 1;
        for (int64_t c = col; c < col + 4; c++) {
          float target = w[size_t(row * n + c)];
          for (int64_t i = 0; i < col; i++) target += error[size_t(row * n + i)] * u[size_t(i * n + c)];
          x[tqn::step_of(int(row - first), int(c - col))] = target / unit;
        }
      }
      reference::encode_tile(x, k, codebook.data(), tile.data(), weight);
      codes.insert(codes.end(), tile.begin(), tile.begin() + 32 * k);
      for (int64_t row = first; row < std::min(n_out, first + 64); row++)
        for (int64_t c = col; c < col + 4; c++)
          error[size_t(row * n + c)] =
              w[size_t(row * n + c)] -
              unit * float(tqn::value(tile.data(), k, tqn::step_of(int(row - first), int(c - col)), codebook.data()));
    }
  return codes;
}

TEST("error feedback: the codes of a brute-force LDLQ, to the bit") {
  const int64_t n_out = 70, n = 140;
  std::vector<float> w = gaussian(n_out * n, 1, 3), u = gaussian(n * n, .2f, 4);
  for (float& v : w) v = std::round(v * 64) / 64;
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < n; j++) u[size_t(i * n + j)] = i / 4 < j / 4 ? std::round(u[size_t(i * n + j)] * 4) / 4 : 0;
  for (int k : {2, 4}) {
    const std::vector<float> units(n_out, 1 / 64.f);
    quant::EncodeOptions options;
    options.k = k, options.unit_scale = units, options.feedback = u;
    const auto packed = quant::encode(w, n_out, n, options);
    CHECK(packed.codes == encode_plainly(w, n_out, n, u, 1 / 64.f, k));
  }
}

TEST("an order of rounding: the tiles of the reordered matrix, each in its column's place") {
  const int64_t n_out = 70, n = 24;
  const auto w = gaussian(n_out * n, 1, 3);
  auto u = gaussian(n * n, .2f, 4);
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < n; j++) u[size_t(i * n + j)] *= i / 4 < j / 4;
  const std::vector<int32_t> order = {3, 0, 5, 1, 4, 2};
  std::vector<float> moved(w.size());
  for (int64_t r = 0; r < n_out; r++)
    for (int64_t c = 0; c < n; c++) moved[size_t(r * n + c)] = w[size_t(r * n + order[size_t(c / 4)] * 4 + c % 4)];
  quant::EncodeOptions options;
  options.k = 3, options.feedback = u;
  const auto plain = quant::encode(moved, n_out, n, options);
  options.order = order;
  const auto packed = quant::encode(w, n_out, n, options);
  CHECK(packed.row_scale == plain.row_scale);
  CHECK_EQ(packed.squared_error, plain.squared_error);
  std::vector<float> values(w.size()), in_order(w.size());
  quant::decode(packed, values), quant::decode(plain, in_order);
  for (int64_t r = 0; r < n_out; r++)
    for (int64_t c = 0; c < n; c++) CHECK_EQ(values[size_t(r * n + order[size_t(c / 4)] * 4 + c % 4)], in_order[size_t(r * n + c)]);
  for (const std::vector<int32_t>& bad : {std::vector<int32_t>{3, 0, 5, 1, 4, 3}, {3, 0, 5, 1, 4, 6}, {3, 0, 5, 1, 4, -2}}) {
    options.order = bad;
    CHECK_THROWS(quant::encode(w, n_out, n, options), Cause::invalid_argument, "order has no place, or two, for block");
  }
  options.order = std::span(order).first(5);
  CHECK_THROWS(quant::encode(w, n_out, n, options), Cause::invalid_argument, "order has 5 elements, must have 6");
}

static double proxy_loss(const std::vector<float>& w, const quant::Packed& p, const Dense& h) {
  std::vector<float> q(w.size());
  quant::decode(p, q);
  const int64_t n = p.n_in;
  double loss = 0;
  for (int64_t r = 0; r < p.n_out; r++)
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = 0; j < n; j++)
        loss += h[size_t(i * n + j)] * (double(w[size_t(r * n + i)]) - q[size_t(r * n + i)]) *
                (double(w[size_t(r * n + j)]) - q[size_t(r * n + j)]);
  return loss;
}

TEST("error feedback lowers tr(E H E^T)") {
  const int64_t n = 64;
  const auto w = gaussian(n * n, 1, 3);
  const Dense h = hessian_of(n, 4 * n, 5);
  const auto u = quant::feedback<double>(h, n, .01);
  quant::EncodeOptions options;
  options.k = 2;
  const double plain = proxy_loss(w, quant::encode(w, n, n, options), h);
  options.feedback = u;
  CHECK(proxy_loss(w, quant::encode(w, n, n, options), h) < .7 * plain);
}
