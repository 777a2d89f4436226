#include <cmath>
#include <numbers>

#include "common/error.h"
#include "common/parallel.h"
#include "format/reference.h"
#include "quant/quant.h"

namespace tq::quant {
namespace {

// K of one width (docs/format.md), for many rows.
class Mixer {
 public:
  explicit Mixer(int64_t n) : n_(n), odd_(n) {
    while (odd_ % 2 == 0) odd_ /= 2;
    for (int64_t q = 3, rest = odd_; rest > 1; q += 2)
      for (; rest % q == 0; rest /= q) add_prime(q);
  }

  void apply(float* x, std::vector<float>& scratch) const {
    int64_t stride = 1;
    for (; stride < n_ / odd_; stride *= 2) butterflies(x, stride);
    const float norm = float(1 / std::sqrt(double(n_ / odd_)));
    for (int64_t j = 0; j < n_; j++) x[j] *= norm;
    for (const auto& t : hartley_) {
      multiply(t, x, stride, scratch);
      stride *= int64_t(std::lround(std::sqrt(double(t.size()))));
    }
  }

 private:
  void add_prime(int64_t q) {
    std::vector<float> t(size_t(q * q));
    for (int64_t i = 0; i < q; i++)
      for (int64_t j = 0; j < q; j++) {
        const double angle = 2 * std::numbers::pi * double(i * j % q) / double(q);
        t[size_t(i * q + j)] = float((std::cos(angle) + std::sin(angle)) / std::sqrt(double(q)));
      }
    hartley_.push_back(std::move(t));
  }

  void butterflies(float* x, int64_t stride) const {
    for (int64_t base = 0; base < n_; base += 2 * stride)
      for (int64_t i = base; i < base + stride; i++) {
        const float a = x[i], b = x[i + stride];
        x[i] = a + b;
        x[i + stride] = a - b;
      }
  }

  void multiply(const std::vector<float>& t, float* x, int64_t stride, std::vector<float>& scratch) const {
    const int64_t q = int64_t(std::lround(std::sqrt(double(t.size()))));
    scratch.assign(x, x + n_);
    for (int64_t base = 0; base < n_; base += q * stride)
      for (int64_t i = 0; i < q; i++) {
        float* out = x + base + i * stride;
        std::fill(out, out + stride, 0.f);
        for (int64_t j = 0; j < q; j++) {
          const float factor = t[size_t(i * q + j)], *in = &scratch[size_t(base + j * stride)];
          for (int64_t s = 0; s < stride; s++) out[s] += factor * in[s];
        }
      }
  }

  int64_t n_, odd_;
  std::vector<std::vector<float>> hartley_;
};

}  // namespace

void rotate_rows(std::span<float> w, int64_t rows, int64_t n, uint64_t seed, bool inverse, int threads) {
  if (rows < 0 || n < 1 || uint64_t(rows) * uint64_t(n) != w.size())
    throw Error(Cause::invalid_argument, "rotate_rows: " + std::to_string(w.size()) + " elements are no " + std::to_string(rows) + " x " +
                                             std::to_string(n) + " matrix");
  const Mixer mixer(n);
  std::vector<float> signs(static_cast<size_t>(n));
  reference::rotation_signs(seed, n, signs.data());
  constexpr int64_t kRowsPerItem = 16;
  Progress progress;
  parallel_for((rows + kRowsPerItem - 1) / kRowsPerItem, threads, progress, [&](int64_t item, int) {
    std::vector<float> scratch;
    for (int64_t row = item * kRowsPerItem; row < std::min(rows, (item + 1) * kRowsPerItem); row++) {
      float* x = &w[size_t(row * n)];
      if (inverse) mixer.apply(x, scratch);
      for (int64_t j = 0; j < n; j++) x[j] *= signs[size_t(j)];
      if (!inverse) mixer.apply(x, scratch);
    }
  });
}

}  // namespace tq::quant
