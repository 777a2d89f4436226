#include <algorithm>
#include <string>

#include "common/error.h"
#include "common/parallel.h"
#include "kernels/kernels.h"
#include "quant/quant.h"

namespace tq::quant {

void rotate_rows(std::span<float> w, int64_t rows, int64_t n, uint64_t seed, bool inverse, int threads) {
  const auto plan = kernels::RotationPlan::make(n, seed);
  if (rows < 0 || uint64_t(rows) * uint64_t(n) != w.size())
    throw Error(Cause::invalid_argument, "rotate_rows: " + std::to_string(w.size()) + " elements are no " + std::to_string(rows) + " x " +
                                             std::to_string(n) + " matrix");
  constexpr int64_t kRowsPerItem = 16;
  const auto rotate = inverse ? kernels::kernels().rotate_inverse : kernels::kernels().rotate;
  Progress progress;
  parallel_for((rows + kRowsPerItem - 1) / kRowsPerItem, threads, progress, [&](int64_t item, int) {
    for (int64_t row = item * kRowsPerItem; row < std::min(rows, (item + 1) * kRowsPerItem); row++)
      rotate(plan, &w[size_t(row * n)], &w[size_t(row * n)]);
  });
}

}  // namespace tq::quant
