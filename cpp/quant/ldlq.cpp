#include "quant/ldlq.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "common/error.h"
#include "common/text.h"
#include "format/tqn.h"
#include "quant/isa.h"

namespace tq::quant {
namespace {

constexpr int64_t kPanel = kFactorPanel, kCols = tqn::kTileCols;
constexpr double kLeastRaisedDamp = 1e-8;

[[noreturn]] void refuse(const std::string& what) { throw Error(Cause::invalid_argument, what); }

// The lower Cholesky factor of a symmetric matrix in blocks of kPanel columns, in place; only the lower triangle counts.
class Cholesky {
 public:
  Cholesky(int64_t n, int threads, const Watch& watch)
      : n_((n + kPanel - 1) / kPanel * kPanel), threads_(threads), watch_(watch), a_(size_t(n_ * n_)) {}

  double* row(int64_t i) { return &a_[size_t(i * n_)]; }
  int64_t padded() const { return n_; }

  bool factor() {  // false: not positive definite
    for (int64_t b = 0; b < n_; b += kPanel) {
      if (!factor_diagonal(b)) return false;
      for_row_blocks(b + kPanel, [&](int64_t i0) { solve_panel(b, i0); });
      for_row_blocks(b + kPanel, [&](int64_t i0) {
        for (int64_t j0 = b + kPanel; j0 <= i0; j0 += kPanel) isa().subtract_product(row(i0) + b, row(j0) + b, n_, row(i0) + j0);
      });
    }
    return true;
  }

 private:
  template <class Rows>
  void for_row_blocks(int64_t first, const Rows& rows) {
    const int64_t blocks = (n_ - first) / kPanel;
    Progress progress;  // the last blocks have the most columns: they go first
    parallel_for(blocks, threads_, progress, [&](int64_t item, int) { rows(n_ - (item + 1) * kPanel); }, watch_);
  }

  bool factor_diagonal(int64_t b) {
    for (int64_t j = b; j < b + kPanel; j++) {
      double* aj = row(j);
      for (int64_t k = b; k < j; k++) aj[j] -= aj[k] * aj[k];
      if (!(aj[j] > 0)) return false;
      aj[j] = std::sqrt(aj[j]);
      for (int64_t i = j + 1; i < b + kPanel; i++) reduce(row(i), aj, b, j);
    }
    return true;
  }

  void solve_panel(int64_t b, int64_t i0) {
    for (int64_t i = i0; i < i0 + kPanel; i++)
      for (int64_t j = b; j < b + kPanel; j++) reduce(row(i), row(j), b, j);
  }

  static void reduce(double* ai, const double* aj, int64_t b, int64_t j) {
    double sum = ai[j];
    for (int64_t k = b; k < j; k++) sum -= ai[k] * aj[k];
    ai[j] = sum / aj[j];
  }

  const int64_t n_;
  const int threads_;
  const Watch& watch_;
  std::vector<double> a_;
};

template <class Number>
double checked_top(std::span<const Number> h, int64_t n) {
  if (n < 1 || n % kCols || uint64_t(n) * uint64_t(n) != h.size())
    refuse("hessian has " + std::to_string(h.size()) + " elements, must be square of a multiple of 4");
  double top = 0;
  for (int64_t i = 0; i < n; i++) {
    for (int64_t j = i; j < n; j++)
      if (!std::isfinite(h[size_t(i * n + j)]))
        refuse("hessian[" + std::to_string(i) + ", " + std::to_string(j) + "] is " + number(double(h[size_t(i * n + j)])) +
               ", must be finite");
    const double diagonal = double(h[size_t(i * n + i)]);
    if (diagonal < 0)
      refuse("hessian[" + std::to_string(i) + ", " + std::to_string(i) + "] is " + number(diagonal) + ", must not be negative");
    top = std::max(top, diagonal);
  }
  return top;
}

// Columns and rows in reverse, so that errors of the first columns can flow into the later ones; divided by `top`; the padding is the
// identity.
template <class Number>
void load(std::span<const Number> h, int64_t n, double top, double damp, Cholesky* a) {
  double mean = 0;
  for (int64_t i = 0; i < n; i++) mean += double(h[size_t(i * n + i)]) / top / double(n);
  for (int64_t i = 0; i < a->padded(); i++) {
    double* row = a->row(i);
    std::fill(row, row + a->padded(), 0.0);
    for (int64_t j = 0; i < n && j <= i; j++) row[j] = double(h[size_t((n - 1 - i) * n + n - 1 - j)]) / top;
    row[i] += i < n ? damp * mean : 1;
  }
}

// Row i of U from row n - 1 - i of the factor L: each block of 4 columns times the inverse of its diagonal block.
void unit_row(Cholesky& factor, int64_t n, int64_t i, float* u) {
  const double* row = factor.row(n - 1 - i);
  for (int64_t b = 0; b < (n - 1 - i) / kCols * kCols; b += kCols) {
    double x[kCols];
    for (int64_t c = kCols - 1; c >= 0; c--) {
      x[c] = row[b + c];
      for (int64_t d = c + 1; d < kCols; d++) x[c] -= x[d] * factor.row(b + d)[b + c];
      x[c] /= factor.row(b + c)[b + c];
      u[n - 1 - (b + c)] = float(x[c]);
    }
  }
}

}  // namespace

template <class Number>
std::vector<float> feedback(std::span<const Number> hessian, int64_t n, double damp, int threads, const Watch& watch) {
  if (!(damp >= 0) || !std::isfinite(damp)) refuse("damp is " + number(damp) + ", must be finite and not negative");
  const double top = checked_top(hessian, n);
  std::vector<float> u(hessian.size());
  if (top == 0) return u;
  Cholesky factor(n, threads, watch);
  load(hessian, n, top, damp, &factor);
  while (!factor.factor()) {
    if (damp >= 1) refuse("hessian is not positive semidefinite");
    damp = std::min(1.0, std::max(10 * damp, kLeastRaisedDamp));
    load(hessian, n, top, damp, &factor);
  }
  Progress progress;
  parallel_for(n, threads, progress, [&](int64_t i, int) { unit_row(factor, n, i, &u[size_t(i * n)]); }, watch);
  return u;
}

template std::vector<float> feedback(std::span<const float>, int64_t, double, int, const Watch&);
template std::vector<float> feedback(std::span<const double>, int64_t, double, int, const Watch&);

}  // namespace tq::quant
