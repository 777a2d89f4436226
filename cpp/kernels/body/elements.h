// Elements of unquantized rows (matrices, caches) as floats.
#pragma once
#include "kernels/kernels.h"

namespace tq::kernels::TQ_ISA_NAMESPACE {

struct ElementF32 {
  using Type = float;
  static F32 load(const float* p) { return TQ_ISA_NAMESPACE::load(p); }
  static float value(float x) { return x; }
};
struct ElementF16 {
  using Type = uint16_t;
  static F32 load(const uint16_t* p) { return load_f16(p); }
  static float value(uint16_t x) { return f16_value(x); }
};
struct ElementBF16 {
  using Type = uint16_t;
  static F32 load(const uint16_t* p) { return load_bf16(p); }
  static float value(uint16_t x) { return bf16_value(x); }
};
template <class F>
inline void with_element(DType type, const F& f) {
  if (type == DType::f32) return f(ElementF32{});
  if (type == DType::f16) return f(ElementF16{});
  f(ElementBF16{});
}

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
