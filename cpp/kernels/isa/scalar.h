// The vocabulary in portable C++: one lane. It is also the plainest statement of what each word of an instruction set must mean.
//
//   F32, I32: kLanes floats or int32.
//   Bytes: the 32 lanes of a plane, of kSide tiles side by side, or one of kHalves parts of them, which +, field<Bits, Shift> (Bits bits
//   from bit Shift of each byte, the rest from the lowest bits of a second vector; what stands above them is only to be kept out of an
//   index), next_lane (lane l is lane l + 1, the last the first; also given: the plane in memory and how much further its lanes are),
//   Tables (T[i mod 16] + U[j mod 16] of Indices) and Codebook (the value of a 6-bit field + kOffset) work on. kSplitSigns: Codebook gives
//   magnitudes and signs apart, which dot and store_values take too.
//   Row: four columns of kLanes rows, part i = 0 .. kParts - 1 of Bytes or a register of a panel; Acts, PanelActs: the four activations
//   that meet them (of two tiles: load_acts with `both`; of the same four everywhere: broadcast_acts).
//   dot: I32 += per lane the 4-way product of a value + kOffset; small_dot: of small unsigned ones; panel_dot<small>: either, on a panel.
//   kPairSums: small values are summed as Pairs instead (add_pairs, no_pairs, add_widened), 16-bit sums of two products.
//   kDirectTokens: so many tokens are multiplied straight from the decoder's registers. kRepeatedTokens: the same at k = 4, whose decoding
//   is cheap enough to be repeated for every kDirectTokens of them. kPanelRegisters x kPanelTokens: accumulators of the panel kernels, what
//   the register file holds; kFloatTokens: in place of the latter for floats.  kFloatRegisters: F32s that the register file holds.
//   kPanelSide: the tokens, and the tiles, that one operand of the panel kernels takes (dot_panel.h: 1; neoni8mm.h: 2). Caches in codes
//   (format/cache.h): with_key_offset makes of keys what dot takes; Levels looks up 4-bit codes. Wide: kPairs pairs of positions of 8
//   channels as int16, PairSums the int32 sums of their products; wide_8 and wide_4 (of the upper or the lower halves) read them,
//   pair_weights makes one of the weights of as many pairs, store_channels sums up for each channel.
#pragma once
#include <cstdint>
#include <cstring>

#include "format/cache.h"
#include "format/matrix.h"

namespace tq::kernels::scalar {

inline constexpr char kName[] = "scalar";
inline constexpr int kLanes = 1;
inline constexpr int kDirectTokens = 1, kRepeatedTokens = 1;
inline constexpr int kSide = 1, kHalves = 1, kParts = 8;
inline constexpr bool kPairSums = false;
inline constexpr int kPanelRegisters = 4, kPanelTokens = 2, kFloatTokens = 2;
inline constexpr int kFloatRegisters = 16;
inline constexpr int kOffset = 0;

using F32 = float;
using I32 = int32_t;
struct Row {
  int8_t v[4];
};
using Acts = Row;
inline constexpr int kRowBytes = 4;

inline F32 load(const float* p) { return *p; }
inline void store(float* p, F32 x) { *p = x; }
inline F32 set1(float x) { return x; }
inline F32 fma(F32 a, F32 b, F32 c) { return a * b + c; }
inline F32 maximum(F32 a, F32 b) { return a > b ? a : b; }  // b where a is NaN
inline F32 minimum(F32 a, F32 b) { return a < b ? a : b; }
inline F32 absolute(F32 a) { return __builtin_fabsf(a); }
inline F32 round_even(F32 x) { return __builtin_nearbyintf(x); }
inline F32 select_less(F32 a, F32 b, F32 yes, F32 no) { return a < b ? yes : no; }
inline F32 pow2(F32 n) {  // n: an integer in [-126, 127], or NaN
  if (n != n) return n;
  const uint32_t bits = uint32_t(int32_t(n) + 127) << 23;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}
// Blocks of D lanes (D a power of two < kLanes). low: a, but where a lane's number has bit D, b's lane D below; high: b, but where it has
// not, a's lane D above.
template <int D>
F32 exchange_low(F32 a, F32) {
  return a;
}
template <int D>
F32 exchange_high(F32, F32 b) {
  return b;
}
inline F32 gather(const float* x, const uint16_t* at) { return x[*at]; }
inline F32 lane_numbers() { return 0; }
inline float sum(F32 x) { return x; }
inline float largest(F32 x) { return x; }
inline F32 hadamard_lanes(F32 x) { return x; }  // the Walsh-Hadamard transform, not normalized, of the lanes
inline F32 load_f16(const uint16_t* p) { return f16_to_f32(*p); }
inline void store_f16(uint16_t* p, F32 x) { *p = f32_to_f16(x); }
inline float f16_value(uint16_t bits) { return f16_to_f32(bits); }
inline float bf16_value(uint16_t bits) { return bf16_to_f32(bits); }
inline F32 load_bf16(const uint16_t* p) { return bf16_to_f32(*p); }
inline void store_i8(int8_t* p, F32 integers) { *p = int8_t(integers); }  // lanes are integers in [-127, 127]

inline I32 set1_i32(int32_t x) { return x; }
inline I32 load_i32(const int32_t* p) { return *p; }
inline void store_i32(int32_t* p, I32 x) { *p = x; }
inline F32 to_f32(I32 x) { return float(x); }

inline Row load_row(const int8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
inline void store_row(int8_t* p, Row w) { std::memcpy(p, w.v, 4); }
inline Acts broadcast_acts(const int8_t* p) { return load_row(p); }
inline Acts load_acts(const int8_t* p, bool) { return broadcast_acts(p); }
inline I32 dot(I32 acc, Row w, Acts a) { return acc + w.v[0] * a.v[0] + w.v[1] * a.v[1] + w.v[2] * a.v[2] + w.v[3] * a.v[3]; }
inline I32 small_dot(I32 acc, Row w, Acts a) { return dot(acc, w, a); }
template <int C, int Offset>
F32 column(Row w) {
  return float(w.v[C] - Offset);
}

typedef uint8_t Lanes __attribute__((vector_size(32)));  // the compiler cuts it to what the machine has
struct Bytes {
  Lanes v;
  friend Bytes operator+(Bytes a, Bytes b) { return {a.v + b.v}; }
};
template <int>
Bytes load_plane(const uint8_t* p, const uint8_t*) {
  Bytes b;
  std::memcpy(&b, p, sizeof b);
  return b;
}
template <int, int>
Bytes next_lane(Bytes b, const uint8_t*) {
  Bytes out;
  for (int i = 0; i < 32; i++) out.v[i] = b.v[(i + 1) % 32];
  return out;
}
template <int Bits, int Shift>
Bytes field(Bytes low, Bytes high) {
  constexpr uint8_t mask = (1 << Bits) - 1;
  if constexpr (Shift + Bits <= 8) return {low.v >> Shift & mask};
  return {(low.v >> Shift | high.v << (8 - Shift)) & mask};
}
inline Bytes with_offset(Bytes b) { return b; }
struct Tables {
  const int8_t* codebook;
  explicit Tables(const int8_t* codebook) : codebook(codebook) {}
  Bytes operator()(tqn::Indices<Bytes> at) const {
    Bytes out;
    for (int i = 0; i < 32; i++) out.v[i] = uint8_t(codebook[at.first.v[i] % 16] + codebook[16 + at.second.v[i] % 16]);
    return out;
  }
};
inline constexpr bool kSplitSigns = false;
struct Codebook {
  const int8_t* values;
  explicit Codebook(const int8_t* codebook) : values(codebook) {}
  template <int Shift>
  Bytes at(Bytes low, Bytes high) const {
    const Bytes at = field<6, Shift>(low, high);
    Bytes out;
    for (int i = 0; i < 32; i++) out.v[i] = uint8_t(values[at.v[i]]);
    return out;
  }
};
inline Row part(Bytes w, int i) {
  Row row;
  std::memcpy(&row, reinterpret_cast<const char*>(&w) + 4 * i, 4);
  return row;
}
inline void store_values(int8_t* p, Bytes w) { std::memcpy(p, &w, sizeof w); }
inline void store_sums(int32_t* acc, const I32* sums, int32_t start) {
  for (int i = 0; i < kParts; i++) acc[i] = sums[i] + start;
}

inline constexpr int kPairs = 1;
inline Row with_key_offset(Row w) { return w; }
struct Wide {
  int16_t v[16];
};
struct PairSums {
  int32_t v[8];
};
inline Wide wide_8(const uint8_t* p) {
  Wide w;
  for (int i = 0; i < 16; i++) w.v[i] = int8_t(p[i]);
  return w;
}
inline Wide pair_weights(const int16_t* w) {
  Wide pairs;
  for (int i = 0; i < 16; i++) pairs.v[i] = w[i % 2];
  return pairs;
}
inline PairSums no_sums() { return {}; }
inline PairSums add_products(PairSums sum, Wide v, Wide w) {
  for (int i = 0; i < 16; i++) sum.v[i / 2] += v.v[i] * w.v[i];
  return sum;
}
inline void store_channels(int32_t* out, PairSums sum) { std::memcpy(out, sum.v, sizeof sum.v); }
struct Levels {
  static Row row_of(Row codes, int shift) {
    Row row;
    for (int i = 0; i < 4; i++) row.v[i] = tqn::cache::kLevel[uint8_t(codes.v[i]) >> shift & 15];
    return row;
  }
  Row lower_row(Row codes) const { return row_of(codes, 0); }
  Row upper_row(Row codes) const { return row_of(codes, 4); }
  Wide wide_4(const uint8_t* p, bool upper) const {
    Wide w;
    for (int i = 0; i < 16; i++) w.v[i] = tqn::cache::kLevel[p[i] >> (upper ? 4 : 0) & 15];
    return w;
  }
};

}  // namespace tq::kernels::scalar

#include "kernels/isa/dot_panel.h"
#include "kernels/isa/no_pairs.h"
