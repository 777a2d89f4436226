// Rotary embedding of one head's vector by one simdgroup, in place.
#pragma once
#include "arguments.h"
#include "kernel.h"

namespace tq {
using namespace metal_args;

inline void rope(constant AttentionArgs& a, device float* x, device const float* cos, device const float* sin, uint lane) {
  const uint half_dims = a.rope_dims / 2;
  for (uint i = lane; i < half_dims; i += 32) {
    const uint first = (a.flags & kRopePairs) ? 2 * i : i, second = (a.flags & kRopePairs) ? 2 * i + 1 : i + half_dims;
    const float u = x[first], v = x[second];
    x[first] = u * cos[i] - v * sin[i], x[second] = u * sin[i] + v * cos[i];
  }
}

}  // namespace tq
