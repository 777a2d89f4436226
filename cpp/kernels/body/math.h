// exp, sigmoid and tanh in float32, a few units in the last place.
#pragma once

namespace tq::kernels::TQ_ISA_NAMESPACE {

// exp(x); below -87 it stays at exp(-87) (1.6e-38), above 88 at exp(88) (1.7e38), so that it is never infinite or subnormal. NaN stays NaN.
inline F32 exp(F32 x) {
  x = minimum(set1(88.f), maximum(set1(-87.f), x));
  const F32 n = round_even(x * set1(1.44269504089f));
  const F32 r = fma(n, set1(-1.42860677e-6f), fma(n, set1(-0.693145752f), x));  // x - n ln 2, ln 2 in two parts
  F32 p = set1(1.f / 720);
  p = fma(p, r, set1(1.f / 120));
  p = fma(p, r, set1(1.f / 24));
  p = fma(p, r, set1(1.f / 6));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r, set1(1.f));
  p = fma(p, r, set1(1.f));
  return p * pow2(n);
}

inline F32 sigmoid(F32 x) { return set1(1.f) / (set1(1.f) + exp(set1(0.f) - x)); }

// Odd polynomial (Cephes tanhf) near 0, where 1 - 2 / (e^2x + 1) would cancel.
inline F32 tanh(F32 x) {
  const F32 z = x * x;
  F32 p = set1(-5.70498872745e-3f);
  p = fma(p, z, set1(2.06390887954e-2f));
  p = fma(p, z, set1(-5.37397155531e-2f));
  p = fma(p, z, set1(1.33314422036e-1f));
  p = fma(p, z, set1(-3.33332819422e-1f));
  const F32 near = fma(p * z, x, x);
  const F32 far = set1(1.f) - set1(2.f) / (exp(x + x) + set1(1.f));
  return select_less(absolute(x), set1(0.625f), near, far);
}

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
