// The constants of a rotation, in double and rounded once.
#include <cmath>
#include <numbers>
#include <string>

#include "common/error.h"
#include "format/reference.h"
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

}  // namespace

RotationPlan RotationPlan::make(int64_t n, uint64_t seed) {
  if (n < 4 || n % 4 != 0 || n > tqn::kMaxInputs)
    throw Error(Cause::invalid_argument, "rotation: width " + std::to_string(n) + " is not a multiple of 4 in [4, 65536]");
  RotationPlan plan;
  plan.n = n;
  plan.signs.resize(size_t(n));
  reference::rotation_signs(seed, n, plan.signs.data());
  for (; n % 2 == 0; n /= 2) plan.log2_block++;
  for (int q = 3; n > 1; q += 2)
    for (; n % q == 0; n /= q) {
      plan.primes.push_back(q);
      plan.hartley.push_back(hartley_matrix(q));
    }
  return plan;
}

}  // namespace tq::kernels
