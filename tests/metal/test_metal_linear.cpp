// Packed matrices times few and many tokens, every format, against the scalar oracle: integer sums to the bit.
#include <algorithm>
#include <cmath>
#include <random>

#include "check.h"
#include "launch.h"
#include "tiles.h"

using namespace tq;
using namespace tq::metal_args;

namespace {

struct Shape {
  int64_t n_out, n_in;
};
constexpr Shape kShapes[] = {{64, 256}, {1, 4}, {65, 36}, {130, 260}, {200, 1028}, {63, 2052}};

// What a product reads and gives, in the buffers of gemv.
struct Linear {
  Linear(Shape shape, int k, int64_t rows, bool outliers) : matrix(shape.n_out, shape.n_in, k, uint32_t(k + rows)), rows(rows) {
    std::mt19937 random(uint32_t(7 * k + rows));
    const int64_t n = shape.n_in;
    x.resize(size_t(rows * n));
    for (auto& v : x) v = int8_t(int(random() % 255) - 127);
    for (int64_t i = 0; i < std::min<int64_t>(n, 4); i++) x[size_t(i)] = 127;  // large sums too
    x_scale = tests::gaussian(rows, 1, 3), plain = tests::gaussian(rows * n, 1, 4), bias = tests::gaussian(shape.n_out, 1, 5);
    y = start = tests::gaussian(rows * (shape.n_out + 3), 1, 6);
    args.n_out = uint32_t(shape.n_out), args.n_in = uint32_t(n), args.rows = uint32_t(rows), args.x_stride = uint32_t(n);
    args.y_stride = uint32_t(shape.n_out + 3), args.y_offset = 2, args.splits = 1, args.flags = outliers ? uint32_t(kOutliers) : 0u;
    args.scale = matrix.view().scale, args.alpha = 1;
  }

  void launch(const std::string& kernel, shim::Size3 groups, uint32_t threads, shim::Order order) {
    const Buffers buffers = {at(args), at(matrix.codes), at(matrix.row_scale), at(matrix.codebook), at(x),     at(x_scale), at(y),
                             at(bias), at(matrix.ptr),   at(matrix.col),       at(matrix.val),      at(plain), at(partials)};
    tests::launch(kernel, buffers, groups, threads, order);
  }
  uint32_t strips() const { return uint32_t(tqn::strips(args.n_out)); }

  void gemv(int m, uint32_t splits, shim::Order order) {
    const std::string name = "gemv_k" + std::to_string(matrix.view().k) + "_m" + std::to_string(m);
    args.splits = splits;
    partials.assign(size_t(splits * rows * strips() * 64), 0x7FFFFFFF);
    launch(name, {strips(), splits, uint32_t((rows + m - 1) / m)}, kGemvThreads, order);
    if (splits > 1) launch("gemv_finish", {strips(), 1, uint32_t(rows)}, kGemvThreads, order);
  }

  void gemm(shim::Order order) {
    launch("gemm_k" + std::to_string(matrix.view().k), {strips(), uint32_t((rows + kGemmTokens - 1) / kGemmTokens)}, kGemmThreads, order);
  }

  // The oracle's y in double, and what float arithmetic may differ by.
  void check(const char* what) const {
    const TqnMatrix w = matrix.view();
    std::vector<int32_t> acc(args.n_out);
    double worst = 0;
    for (int64_t row = 0; row < rows; row++) {
      reference::accumulate(w, x.data() + row * w.n_in, acc.data());
      for (int64_t r = 0; r < w.n_out; r++) {
        double extra = 0, size = 0;
        for (int32_t i = matrix.ptr[size_t(r)]; (args.flags & kOutliers) && i < matrix.ptr[size_t(r) + 1]; i++) {
          const double term = double(f16_to_f32(matrix.val[size_t(i)])) * plain[size_t(row * w.n_in + matrix.col[size_t(i)])];
          extra += term, size += std::fabs(term);
        }
        const double product = double(w.scale) * f16_to_f32(matrix.row_scale[size_t(r)]) * x_scale[size_t(row)] * acc[size_t(r)];
        const double added = (args.flags & kBias) ? bias[size_t(r)] : 0, at = row * args.y_stride + args.y_offset + r;
        const double before = (args.flags & kAdd) ? start[size_t(at)] : 0;
        const double expected = before + args.alpha * (product + extra + added);
        const double scale = std::fabs(before) + std::fabs(args.alpha) * (std::fabs(product) + size + std::fabs(added));
        worst = check::worse(worst, (y[size_t(at)] - expected) / (scale * 0x1p-24 + 1e-30), 0);
      }
    }
    // Each term is rounded a few times: conversions, three products, sums.
    if (!(worst <= 12))
      check::fail(__FILE__, __LINE__,
                  std::string(what) + " k " + std::to_string(w.k) + " " + std::to_string(w.n_out) + " x " + std::to_string(w.n_in) +
                      " rows " + std::to_string(rows) + ": " + std::to_string(worst) + " roundings");
    ++check::checks;
    for (int64_t row = 0; row < rows; row++)  // nothing is written beside its columns
      for (int64_t c : {int64_t(0), int64_t(1), int64_t(args.y_stride - 1)})
        CHECK(y[size_t(row * args.y_stride + c)] == start[size_t(row * args.y_stride + c)]);
  }

  tests::Matrix matrix;
  int64_t rows;
  LinearArgs args{};
  std::vector<int8_t> x;
  std::vector<float> x_scale, plain, bias, y, start;
  std::vector<int32_t> partials{0};
};

}  // namespace

TEST("gemv: all formats, odd shapes, one token to seven, split or not, in both orders of lanes") {
  for (const int k : tests::kFormats)
    for (const Shape shape : kShapes)
      for (const int rows : {1, 2, 3, 7})
        for (const uint32_t splits : {1u, 3u}) {
          const int m = rows == 1 ? 1 : rows == 2 ? 2 : 4;
          for (const auto order : {shim::Order::ascending, shim::Order::descending}) {
            Linear linear(shape, k, rows, rows % 2 == 1);
            linear.gemv(m, splits, order);
            linear.check("gemv");
          }
        }
}

TEST("gemv: residual, bias, alpha") {
  for (const uint32_t splits : {1u, 2u}) {
    Linear linear({70, 516}, 3, 2, true);
    linear.args.flags |= kAdd | kBias, linear.args.alpha = -.75f;
    linear.gemv(2, splits, shim::Order::ascending);
    linear.check("residual");
  }
}

TEST("gemv: the largest sums are exact") {
  Linear linear({64, 65536}, 8, 1, false);
  for (auto& code : linear.matrix.codes) code = 0x80;
  std::fill(linear.x.begin(), linear.x.end(), int8_t(-127));
  linear.gemv(1, 1, shim::Order::ascending);
  linear.check("largest");
}

TEST("gemm: all formats, odd shapes, numbers of tokens, in both orders of lanes; residual, bias, alpha") {
  for (const int k : tests::kFormats)
    for (const Shape shape : {Shape{1, 4}, Shape{65, 36}, Shape{130, 260}})
      for (const int rows : {1, 17, 33})
        for (const auto order : {shim::Order::ascending, shim::Order::descending}) {
          if (rows == 17 && shape.n_in == 260) continue;
          Linear linear(shape, k, rows, rows > 1);
          if (rows == 17) linear.args.flags |= kAdd | kBias, linear.args.alpha = -.75f;
          linear.gemm(order);
          linear.check("gemm");
        }
}

// Sums above 2^24: as floats they would have lost their last bits on the way.
TEST("gemm: the largest sums are exact") {
  Linear linear({64, 2116}, 8, 2, false);
  for (auto& code : linear.matrix.codes) code = uint8_t(100 + code % 28);
  for (auto& x : linear.x) x = int8_t(127 - (x & 15));
  std::fill(linear.matrix.row_scale.begin(), linear.matrix.row_scale.end(), f32_to_f16(1));
  std::fill(linear.x_scale.begin(), linear.x_scale.end(), 1.f);
  linear.args.scale = 1;
  linear.gemm(shim::Order::ascending);
  std::vector<int32_t> acc(64);
  for (int64_t row = 0; row < 2; row++) {
    reference::accumulate(linear.matrix.view(), linear.x.data() + row * 2116, acc.data());
    for (size_t r = 0; r < 64; r++) {
      CHECK(acc[r] > 1 << 24);
      CHECK_EQ(linear.y[size_t(row * linear.args.y_stride + 2) + r], float(acc[r]));
    }
  }
}

TEST("gemvf: float inputs") {
  for (const int k : tests::kFormats)
    for (const int rows : {1, 5})
      for (const uint32_t splits : {1u, 2u}) {
        Linear linear({65, 260}, k, rows, true);
        std::vector<float> values = tests::gaussian(rows * 260, 1, 9);
        linear.args.splits = splits;
        linear.partials.assign(size_t(splits * rows * linear.strips() * 64), -1);
        const int m = rows == 1 ? 1 : 4;
        const Buffers buffers = {at(linear.args),
                                 at(linear.matrix.codes),
                                 at(linear.matrix.row_scale),
                                 at(linear.matrix.codebook),
                                 at(values),
                                 at(linear.x_scale),
                                 at(linear.y),
                                 at(linear.bias),
                                 at(linear.matrix.ptr),
                                 at(linear.matrix.col),
                                 at(linear.matrix.val),
                                 at(linear.plain),
                                 at(linear.partials)};
        tests::launch("gemvf_k" + std::to_string(k) + "_m" + std::to_string(m), buffers,
                      {linear.strips(), splits, uint32_t((rows + m - 1) / m)}, kGemvThreads, shim::Order::descending);
        if (splits > 1) tests::launch("gemvf_finish", buffers, {linear.strips(), 1, uint32_t(rows)}, kGemvThreads, shim::Order::ascending);
        const TqnMatrix w = linear.matrix.view();
        double worst = 0;
        for (int64_t row = 0; row < rows; row++)
          for (int64_t r = 0; r < 65; r++) {
            double sum = 0, size = 0;
            for (int64_t c = 0; c < 260; c++) {
              const double term = double(reference::code(w, r, c)) * values[size_t(row * 260 + c)];
              sum += term, size += std::fabs(term);
            }
            const double factor = double(w.scale) * f16_to_f32(linear.matrix.row_scale[size_t(r)]);
            double expected = factor * sum, scale = factor * size;
            for (int32_t i = linear.matrix.ptr[size_t(r)]; i < linear.matrix.ptr[size_t(r) + 1]; i++) {
              const double term =
                  double(f16_to_f32(linear.matrix.val[size_t(i)])) * linear.plain[size_t(row * 260 + linear.matrix.col[size_t(i)])];
              expected += term, scale += std::fabs(term);
            }
            worst = check::worse(worst, (linear.y[size_t(row * linear.args.y_stride + 2 + r)] - expected) / (scale * 0x1p-24), 0);
          }
        CHECK_NEAR(worst, 0, 24);  // four products at a time, steps and lanes one after another
      }
}

TEST("experts: each group of rows by the matrix that the device chose; other formats are left alone") {
  for (const int k : tests::kFormats) {
    constexpr int64_t n_out = 70, n_in = 260;
    const int other = k == 1 ? 2 : 1;
    const std::vector<tests::Matrix> matrices = {{n_out, n_in, k, 1}, {n_out, n_in, other, 2}, {n_out, n_in, k, 3}};
    std::vector<uint8_t> weights;
    const auto put = [&](const auto& plane) {
      weights.resize((weights.size() + 63) / 64 * 64);
      const auto* from = reinterpret_cast<const uint8_t*>(plane.data());
      const uint64_t offset = weights.size();
      weights.insert(weights.end(), from, from + plane.size() * sizeof(plane[0]));
      return offset;
    };
    std::vector<ExpertMatrix> table;
    for (const auto& m : matrices)
      table.push_back({put(m.codes), put(m.row_scale), put(m.codebook), put(m.ptr), put(m.col), put(m.val), m.view().scale, kOutliers,
                       uint32_t(m.view().k), 0});
    const std::vector<ExpertGroup> groups = {{2, 0, 4}, {1, 4, 1}, {0, 5, 2}, {7, 0, 9}};
    constexpr int64_t rows = 7;
    Linear input({n_out, n_in}, k, rows, true);
    LinearArgs args = input.args;
    args.y_stride = n_out, args.y_offset = 0;
    std::vector<float> y(size_t(rows * n_out), -7);
    const uint32_t count = 3;
    tests::launch("experts_k" + std::to_string(k),
                  {at(args), at(weights), at(table), at(input.x), at(input.x_scale), at(y), at(input.plain), at(groups), at(count)},
                  {input.strips(), 1, 4}, kGemvThreads, shim::Order::ascending);
    for (int g = 0; g < 3; g++)
      for (uint32_t row = groups[size_t(g)].first; row < groups[size_t(g)].first + groups[size_t(g)].count; row++) {
        const auto& m = matrices[groups[size_t(g)].expert];
        std::vector<int32_t> acc(n_out);
        reference::accumulate(m.view(), input.x.data() + row * n_in, acc.data());
        for (int64_t r = 0; r < n_out; r++) {
          const float found = y[size_t(row * n_out + r)];
          if (m.view().k != k) {
            CHECK_EQ(found, -7.f);
            continue;
          }
          double product = double(m.view().scale) * f16_to_f32(m.row_scale[size_t(r)]) * input.x_scale[row] * acc[size_t(r)],
                 size = std::fabs(product);
          for (int32_t i = m.ptr[size_t(r)]; i < m.ptr[size_t(r) + 1]; i++) {
            const double term = double(f16_to_f32(m.val[size_t(i)])) * input.plain[size_t(row * n_in + m.col[size_t(i)])];
            product += term, size += std::fabs(term);
          }
          CHECK_NEAR(found, product, 12 * 0x1p-24 * size + 1e-30);
        }
      }
  }
}
