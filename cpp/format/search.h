// What the search for the codes of a tile minimizes, in integers, so that every instruction set and device finds the same codes: of a step
// with target x and weight w, a value c costs round(w * kUnit) * c^2 + round(-2 * x * w * kUnit) * c, the squared error without x^2.
#pragma once
#include <math.h>

#include "format/tqn.h"

#if defined(__CUDACC__)
#define TQN_CALL __host__ __device__ inline
#else
#define TQN_CALL inline
#endif

namespace tqn {

struct StepCost {
  int16_t slope, weight;
  TQN_FN int32_t of(int value) const { return value * slope + value * value * weight; }
};

inline constexpr int32_t kUnreachable = 1 << 29;  // above what the steps of a window cost

// Targets beyond about twice the largest value count as that: sums over a tile, times 2^k, stay within 32 bits.
TQN_CALL StepCost step_cost(int k, float x, float row_weight) {
  const float unit = k == 4 ? 128 : 512, limit = k == 4 ? 16383 : 32767;
  const float weight = row_weight >= 1 ? unit : row_weight > 0 ? rintf(row_weight * unit) : 0;
  const float whole = row_weight > 0 && weight < 1 ? 1 : weight, slope = x * (-2 * whole);
  return {int16_t(rintf(slope > limit ? limit : slope < -limit ? -limit : slope)), int16_t(whole)};
}

}  // namespace tqn
