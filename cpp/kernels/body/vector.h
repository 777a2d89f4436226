// Element-wise operations and reductions over one row.
#pragma once
#include "kernels/body/math.h"
#include "kernels/kernels.h"

namespace tq::kernels::TQ_ISA_NAMESPACE {

// Calls f(load, store offset) for whole registers; the rest goes through a zero-padded buffer, so that f is written once.
// f: F32 of the F32s read at i from each input.
template <class F, class... In>
inline void map(int64_t n, float* out, const F& f, const In*... in) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, f(load(in + i)...));
  if (i == n) return;
  const auto padded = [&](const float* p) {
    float buffer[kLanes] = {};
    for (int64_t j = i; j < n; j++) buffer[j - i] = p[j];
    return load(buffer);
  };
  float buffer[kLanes];
  store(buffer, f(padded(in)...));
  for (int64_t j = i; j < n; j++) out[j] = buffer[j - i];
}

inline float quantize(const float* x, int64_t n, int8_t* a) {
  F32 most = set1(0), not_finite = set1(0);  // 0 * x is NaN where x is not finite: the scale then says so
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    most = maximum(absolute(load(x + i)), most);
    not_finite = fma(load(x + i), set1(0), not_finite);
  }
  float m = largest(most), poison = sum(not_finite);
  for (; i < n; i++) {
    m = __builtin_fabsf(x[i]) > m ? __builtin_fabsf(x[i]) : m;
    poison += 0 * x[i];
  }
  const float scale = m / tqn::kActivationMax + poison;
  if (!(scale > 0)) {
    for (i = 0; i < n; i++) a[i] = 0;
    return scale;
  }
  const F32 limit = set1(tqn::kActivationMax);  // binds only where the scale is subnormal
  for (i = 0; i + kLanes <= n; i += kLanes)
    store_i8(a + i, maximum(minimum(round_even(load(x + i) / set1(scale)), limit), set1(0) - limit));
  for (; i < n; i++) {
    const float v = __builtin_nearbyintf(x[i] / scale);
    a[i] = int8_t(v > tqn::kActivationMax ? tqn::kActivationMax : v < -tqn::kActivationMax ? -tqn::kActivationMax : v);
  }
  return scale;
}

inline void rms_norm(const float* x, const float* weight, int64_t n, float eps, float* out) {
  F32 even = set1(0), odd = set1(0);
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    even = fma(load(x + i), load(x + i), even);
    odd = fma(load(x + i + kLanes), load(x + i + kLanes), odd);
  }
  float total = sum(even + odd);
  for (; i < n; i++) total += x[i] * x[i];
  const float factor = 1 / __builtin_sqrtf(total / float(n) + eps);
  if (weight)
    map(n, out, [=](F32 v, F32 w) { return v * set1(factor) * w; }, x, weight);
  else
    map(n, out, [=](F32 v) { return v * set1(factor); }, x);
}

inline void silu_mul(const float* gate, const float* up, int64_t n, float* out) {
  map(n, out, [](F32 g, F32 u) { return g * sigmoid(g) * u; }, gate, up);
}

inline void sigmoid_mul(const float* gate, const float* x, int64_t n, float* out) {
  map(n, out, [](F32 g, F32 v) { return sigmoid(g) * v; }, gate, x);
}

// 0.5 g (1 + tanh(z)) = g * sigmoid(2 z), z = sqrt(2 / pi) (g + 0.044715 g^3)
inline void gelu_mul(const float* gate, const float* up, int64_t n, float* out) {
  map(
      n, out,
      [](F32 g, F32 u) {
        const F32 z2 = g * fma(g * g, set1(0.0713548162726f), set1(1.59576912161f));
        return g * sigmoid(z2) * u;
      },
      gate, up);
}

inline void clamped_swiglu(const float* gate, const float* up, int64_t n, float* out) {
  map(
      n, out,
      [](F32 g, F32 u) {
        g = minimum(set1(7.f), g), u = minimum(set1(7.f), maximum(set1(-7.f), u));
        return g * sigmoid(g * set1(1.702f)) * (u + set1(1.f));
      },
      gate, up);
}

inline void add_scaled(float* y, const float* x, float alpha, int64_t n) {
  map(n, y, [=](F32 a, F32 b) { return fma(b, set1(alpha), a); }, y, x);
}

inline void soft_cap(float* x, float cap, int64_t n) {
  map(n, x, [=](F32 v) { return set1(cap) * tanh(v / set1(cap)); }, x);
}

inline void rope_neox(float* x, const float* cos, const float* sin, int dims) {
  float* y = x + dims / 2;
  for (int i = 0; i < dims / 2; i++) {
    const float a = x[i], b = y[i];
    x[i] = a * cos[i] - b * sin[i];
    y[i] = b * cos[i] + a * sin[i];
  }
}
inline void rope_pairs(float* x, const float* cos, const float* sin, int dims) {
  for (int i = 0; i < dims / 2; i++) {
    const float a = x[2 * i], b = x[2 * i + 1];
    x[2 * i] = a * cos[i] - b * sin[i];
    x[2 * i + 1] = b * cos[i] + a * sin[i];
  }
}

inline void to_f16(const float* x, int64_t n, uint16_t* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_f16(out + i, load(x + i));
  for (; i < n; i++) out[i] = f32_to_f16(x[i]);
}
inline void to_f32(const uint16_t* x, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load_f16(x + i));
  for (; i < n; i++) out[i] = f16_value(x[i]);
}

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
