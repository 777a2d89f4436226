// The constants of a rotation, in double and rounded once.
#include <cmath>
#include <numbers>
#include <string>

#include "common/error.h"
#include "kernels/kernels.h"

namespace tq::kernels {
namespace {

std::vector<float> hartley_matrix(int q) {
  std::vector<float> t(size_t(q) * q);
  for (int64_t i = 0; i < q; i++)
    for (int64_t j = 0; j < q; j++) {
      const double angle = 2 * std::numbers::pi * double(i * j % q) / q;
      t[i * q + j] = float((std::cos(angle) + std::sin(angle)) / std::sqrt(double(q)));
    }
  return t;
}

std::vector<float> random_signs(uint64_t seed, int64_t n) {
  tqn::SplitMix64 stream{seed};
  std::vector<float> signs(n);
  uint64_t bits = 0;
  for (int64_t j = 0; j < n; j++, bits >>= 1) {
    if (j % 64 == 0) bits = stream.next();
    signs[j] = bits & 1 ? -1.f : 1.f;
  }
  return signs;
}

}  // namespace

RotationPlan RotationPlan::make(int64_t n, uint64_t seed) {
  if (n < 4 || n % 4 != 0 || n > tqn::kMaxInputs)
    throw Error(Cause::invalid_argument, "rotation: width " + std::to_string(n) + " is not a multiple of 4 in [4, 65536]");
  RotationPlan plan;
  plan.n = n;
  plan.signs = random_signs(seed, n);
  for (; n % 2 == 0; n /= 2) plan.log2_block++;
  for (int q = 3; n > 1; q += 2)
    for (; n % q == 0; n /= q) {
      plan.primes.push_back(q);
      plan.hartley.push_back(hartley_matrix(q));
    }
  return plan;
}

}  // namespace tq::kernels
