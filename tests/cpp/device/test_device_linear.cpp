// Linear layers on the device against the scalar oracle.
#include <optional>

#include "device_check.h"

using namespace device_check;

namespace {

constexpr auto& kFormats = tqn::Formats::bits;

// y (rows, sum of n_out) of several matrices that read x.
std::vector<float> device_product(Backend& b, const std::vector<HostMatrix>& hosts, const std::vector<float>& x, int rows, float alpha = 1,
                                  bool add = false, const std::vector<float>& bias = {}) {
  int64_t n_in = hosts[0].n_in(), width = 0;
  for (const HostMatrix& h : hosts) width += h.n_out();
  const std::vector<float> before(size_t(rows * width), add ? 3.f : NAN);
  TestPlane in(b, x, n_in), out(b, before, width);
  std::vector<MatrixPtr> matrices;
  std::optional<TestPlane> biases;
  if (!bias.empty()) biases.emplace(b, bias, int64_t(bias.size()));
  Op op{.kind = Op::linear};
  op.linear_op.in.x = in.plane;
  int64_t offset = 0;
  for (const HostMatrix& h : hosts) {
    matrices.push_back(b.matrix(h));
    op.linear_op.out.push_back({matrices.back().get(), out.plane, offset, biases ? biases->buffer.get() : nullptr, alpha, add});
    offset += h.n_out();
  }
  const auto program = b.prepare({op}, rows);
  b.run(*program, Rows(rows).batch());
  return read(b, *out.buffer);
}

// Activations whose largest value is 127 and that are whole: the device must keep them, so that y is the int32 sum itself.
std::vector<float> whole_numbers(Random& random, int64_t rows, int64_t n) {
  std::vector<float> x(size_t(rows * n));
  for (size_t i = 0; i < x.size(); i++) x[i] = i % size_t(n) == 0 ? 127.f : float(random.below(31) - 15);
  return x;
}

void check_sums(Backend& b, int k, int64_t n_out, int64_t n_in, int rows) {
  Random random{uint64_t(k * 1000 + rows)};
  const Packed w(random, n_out, n_in, k, Rotation::none, 0, true);
  const std::vector<float> x = whole_numbers(random, rows, n_in), y = device_product(b, {w.host}, x, rows);
  int wrong = 0;
  std::vector<int32_t> sums(tqn::padded_rows(uint64_t(n_out)));
  for (int t = 0; t < rows; t++) {
    const std::vector<int8_t> a(x.begin() + t * n_in, x.begin() + (t + 1) * n_in);
    reference::accumulate(w.host.tqn, a.data(), sums.data());
    for (int64_t r = 0; r < n_out; r++) wrong += y[size_t(t * n_out + r)] != float(sums[size_t(r)]);
  }
  if (wrong) std::fprintf(stderr, "k %d, %lld x %lld, %d rows: %d wrong\n", k, (long long)n_out, (long long)n_in, rows, wrong);
  CHECK_EQ(wrong, 0);
}

// Against the oracle's int8 path: the rotation's rounding may move a few activations by one step, worth at most 128 codebook units each.
void check_int8(Backend& b, int k, int64_t n_out, int64_t n_in, int rows, int outliers) {
  Random random{uint64_t(k * 77 + rows) + uint64_t(n_in)};
  const Packed w(random, n_out, n_in, k, Rotation::hartley_hadamard, outliers);
  const std::vector<float> x = random.normals(rows * n_in), y = device_product(b, {w.host}, x, rows);
  std::vector<double> expected(static_cast<size_t>(n_out));
  double worst = 0;
  for (int t = 0; t < rows; t += std::max(1, rows / 5)) {
    reference::matvec_int8(w.host.tqn, x.data() + t * n_in, expected.data());
    for (int64_t r = 0; r < n_out; r++) worst = check::worse(worst, y[size_t(t * n_out + r)], expected[size_t(r)]);
  }
  const double step = 0.01 * 128 * 6 / 127;  // scale * largest value * (largest activation / 127)
  CHECK_NEAR(worst, 0, 4 * step);
}

}  // namespace

TEST("int32 sums are exact for every format, shape and batch size") {
  const auto b = device_backend(Precision::int8);
  for (const int k : kFormats) {
    if (small_cases()) {
      for (const int rows : {1, 10, 20, 33, 70}) check_sums(*b, k, 130, 132, rows);
      continue;
    }
    for (const int rows : {1, 2, 7, 8}) check_sums(*b, k, 192, 576, rows);
    for (const int rows : {1, 9, 16, 17, 32, 33, 64, 65, 130, 300}) check_sums(*b, k, 200, 260, rows);
    check_sums(*b, k, 1, 4, 1), check_sums(*b, k, 65, 36, 3), check_sums(*b, k, 70, 12, 70);
    check_sums(*b, k, 2048, 4096, 1), check_sums(*b, k, 704, 4864, 100);
  }
}

TEST("rotated int8 products with outliers match the oracle") {
  const auto b = device_backend(Precision::int8);
  if (small_cases()) {
    check_int8(*b, 2, 70, 300, 2, 3), check_int8(*b, 3, 70, 264, 70, 3);
    for (const int64_t n_in : {2304, 5120, 4 * 17 * 113}) check_int8(*b, 2, 64, n_in, 1, 3);  // every way to rotate a vector
    return;
  }
  for (const int k : kFormats)
    for (const int64_t n_in : {300, 576, 896, 1536, 4864})
      for (const int rows : {1, 5, 80}) check_int8(*b, k, 136, n_in, rows, 3);
  check_int8(*b, 2, 64, 28672, 2, 5), check_int8(*b, 2, 64, 65536, 2, 0), check_int8(*b, 3, 64, 64 * 37 * 11, 70, 0);
}

TEST("the float path matches the oracle") {
  const auto b = device_backend(Precision::f32);
  for (const int k : kFormats)
    for (const int rows : {1, 11}) {
      Random random{uint64_t(k * 5 + rows)};
      const int64_t n_out = 100, n_in = 576;
      const Packed w(random, n_out, n_in, k, Rotation::hartley_hadamard, 2);
      const std::vector<float> x = random.normals(rows * n_in), y = device_product(*b, {w.host}, x, rows);
      std::vector<double> expected(static_cast<size_t>(n_out));
      double worst = 0;
      for (int t = 0; t < rows; t++) {
        reference::matvec(w.host.tqn, x.data() + t * n_in, expected.data());
        for (int64_t r = 0; r < n_out; r++) worst = check::worse(worst, y[size_t(t * n_out + r)], expected[size_t(r)]);
      }
      // Float sums of 576 products of about 0.01 * 128 * 4, and a rotation of ten passes: 2^-24 each, far from all in one direction.
      CHECK_NEAR(worst, 0, 576 * 0.01 * 128 * 4 * std::ldexp(1.0, -24) * 16);
    }
}

TEST("several matrices of several formats share an input; bias, alpha and the residual apply") {
  const auto b = device_backend(Precision::int8);
  for (const int rows : {1, 40, 90}) {
    Random random{uint64_t(rows) + 5};
    const int64_t n_in = 256, n_out = 130;
    const Packed w2(random, n_out, n_in, 2, Rotation::none, 0, true), w3(random, n_out, n_in, 3, Rotation::none, 0, true),
        w2b(random, n_out, n_in, 2, Rotation::none, 0, true);
    const std::vector<float> x = whole_numbers(random, rows, n_in);
    std::vector<float> bias(size_t(n_out), 2);
    const std::vector<float> y = device_product(*b, {w2.host, w3.host, w2b.host}, x, rows, 0.5f, true, bias);
    std::vector<int32_t> sums(tqn::padded_rows(uint64_t(n_out)));
    int wrong = 0;
    for (int t = 0; t < rows; t++) {
      const std::vector<int8_t> a(x.begin() + t * n_in, x.begin() + (t + 1) * n_in);
      int64_t offset = 0;
      for (const Packed* w : {&w2, &w3, &w2b}) {
        reference::accumulate(w->host.tqn, a.data(), sums.data());
        for (int64_t r = 0; r < n_out; r++) wrong += y[size_t(t * 3 * n_out + offset + r)] != 3 + 0.5f * (float(sums[size_t(r)]) + 2);
        offset += n_out;
      }
    }
    CHECK_EQ(wrong, 0);
  }
}

TEST("matrices of one input, with the same codebook and with others, for one token") {
  const auto b = device_backend(Precision::int8);
  for (const int k : {1, 2, 3, 4, 6})
    for (const int64_t n_in : {512, 65536}) {  // short and long runs of a block
      if (n_in > 512 && (small_cases() || k > 3)) continue;
      Random random{uint64_t(k) + 9};
      const int64_t n_out = n_in > 512 ? 1000 : 134;
      const Packed first(random, n_out, n_in, k, Rotation::none, 0, true), same(random, n_out, n_in, k, Rotation::none, 0, true);
      Packed other(random, n_out, n_in, k, Rotation::none, 0, true);
      for (const size_t entry : {2, 9, 13, 20}) other.codebook[entry] = int8_t(k == 6 ? -100 + int(entry) : entry % 16 / 2);
      const std::vector<float> x = whole_numbers(random, 1, n_in), y = device_product(*b, {first.host, other.host, same.host}, x, 1);
      const std::vector<int8_t> a(x.begin(), x.end());
      std::vector<int32_t> sums(tqn::padded_rows(uint64_t(n_out)));
      int wrong = 0;
      int64_t offset = 0;
      for (const Packed* w : {&first, static_cast<const Packed*>(&other), &same}) {
        reference::accumulate(w->host.tqn, a.data(), sums.data());
        for (int64_t r = 0; r < n_out; r++) wrong += y[size_t(offset + r)] != float(sums[size_t(r)]);
        offset += n_out;
      }
      CHECK_EQ(wrong, 0);
    }
}

TEST("dense matrices of every type") {
  for (const auto type : {kernels::DType::f32, kernels::DType::f16, kernels::DType::bf16})
    for (const Precision precision : {Precision::int8, Precision::f32})
      for (const auto& [rows, n_in] : {std::pair<int, int64_t>{1, 580}, {8, 580}, {9, 580}, {200, 580}, {3, 6}, {9, 577}}) {
        const auto b = device_backend(precision);
        Random random{uint64_t(rows)};
        const int64_t n_out = 150;
        const Dense w(random, n_out, n_in, type);
        const std::vector<float> x = random.normals(rows * n_in), y = device_product(*b, {w.host}, x, rows);
        double worst = 0;
        for (int t = 0; t < rows; t++)
          for (int64_t r = 0; r < n_out; r++) {
            double sum = 0;
            for (int64_t i = 0; i < n_in; i++) sum += double(w.f32[size_t(r * n_in + i)]) * x[size_t(t * n_in + i)];
            worst = check::worse(worst, y[size_t(t * n_out + r)], sum);
          }
        // Rounding the activations to the matrix's type costs at most 2^-9 (bf16) or 2^-12 (f16) of each product, in random directions:
        // sqrt(580) of them, six times the standard deviation. Else float sums.
        const bool rounded = precision == Precision::int8 && rows > 8 && type != kernels::DType::f32;
        const double unit = !rounded ? std::ldexp(1.0, -20) : std::ldexp(1.0, type == kernels::DType::bf16 ? -9 : -12);
        CHECK_NEAR(worst, 0, 6 * std::sqrt(580.0) * unit);
      }
}
