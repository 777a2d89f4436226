// The types of unquantized matrices and caches, and what turns logits.
#pragma once
#include "kernel.h"

namespace tq {

struct Float32 {
  typedef float Stored;
  typedef float4 Stored4;
  static float to_float(float x) { return x; }
  static float4 to_float4(float4 x) { return x; }
  static float from_float(float x) { return x; }
};
struct Float16 {
  typedef half Stored;
  typedef half4 Stored4;
  static float to_float(half x) { return float(x); }
  static float4 to_float4(half4 x) { return float4(x); }
  static half from_float(float x) { return half(x); }
};
struct BFloat16 {  // as its bits: MSL's own type is not in every version
  typedef ushort Stored;
  typedef ushort4 Stored4;
  static float to_float(ushort x) { return as_type<float>(uint(x) << 16); }
  static float4 to_float4(ushort4 x) { return float4(to_float(x.x), to_float(x.y), to_float(x.z), to_float(x.w)); }
};

// Elements i to i + 3 of a row of n; `whole`: n, i and the row's start are multiples of 4. Zeros behind the end.
template <class E>
inline float4 four(device const typename E::Stored* row, uint i, uint n, bool whole) {
  if (whole) return E::to_float4(*(device const typename E::Stored4*)(row + i));
  return float4(E::to_float(row[i]), i + 1 < n ? E::to_float(row[i + 1]) : 0.0f, i + 2 < n ? E::to_float(row[i + 2]) : 0.0f,
                i + 3 < n ? E::to_float(row[i + 3]) : 0.0f);
}

// cap * tanh(x / cap); tanh beyond 15 is 1 in float, and not specified in MSL.
inline float capped(float x, float cap) { return cap * tanh(min(max(x / cap, -15.0f), 15.0f)); }

}  // namespace tq
