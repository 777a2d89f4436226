// half: storage of 16 bits; arithmetic in float, rounded to half by each operation as a GPU does.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

namespace metal {

namespace emulated {

inline float float_of_half(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 1023;
  if (exponent == 0) return (sign ? -0x1p-24f : 0x1p-24f) * float(mantissa);  // zero or subnormal
  const uint32_t out = sign | (exponent == 31 ? 0x7F800000u : (exponent + 112) << 23) | mantissa << 13;
  float value;
  std::memcpy(&value, &out, 4);
  return value;
}
struct HalfTable {
  HalfTable() : values(1 << 16) {
    for (uint32_t i = 0; i < values.size(); i++) values[i] = float_of_half(uint16_t(i));
  }
  std::vector<float> values;
};
inline const HalfTable half_table;

}  // namespace emulated

inline float half_bits_to_float(uint16_t bits) { return emulated::half_table.values.data()[bits]; }

// To nearest, ties to even.
inline uint16_t float_to_half_bits(float value) {
  uint32_t x;
  std::memcpy(&x, &value, 4);
  const uint32_t sign = x >> 16 & 0x8000;
  x &= 0x7FFFFFFF;
  if (x >= 0x47800000) return uint16_t(sign | (x > 0x7F800000 ? 0x7E00 : 0x7C00));
  if (x < 0x38800000) {  // the sum with 0.5 leaves a multiple of 2^-24 in the low bits, rounded
    float shifted;
    std::memcpy(&shifted, &x, 4);
    shifted += 0.5f;
    std::memcpy(&x, &shifted, 4);
    return uint16_t(sign | (x - 0x3F000000));
  }
  x += 0xFFF + (x >> 13 & 1);
  return uint16_t(sign | ((x - 0x38000000) >> 13));
}

struct half {
  half() = default;
  template <class T>
  half(T value) : bits(float_to_half_bits(float(value))) {}
  operator float() const { return half_bits_to_float(bits); }
  template <class T>
  half& operator+=(T other) {
    return *this = half(float(*this) + float(other));
  }
  template <class T>
  half& operator-=(T other) {
    return *this = half(float(*this) - float(other));
  }
  template <class T>
  half& operator*=(T other) {
    return *this = half(float(*this) * float(other));
  }
  uint16_t bits;
};
inline half operator+(half a, half b) { return half(float(a) + float(b)); }
inline half operator-(half a, half b) { return half(float(a) - float(b)); }
inline half operator*(half a, half b) { return half(float(a) * float(b)); }
inline half operator/(half a, half b) { return half(float(a) / float(b)); }
inline half operator-(half a) {
  a.bits ^= 0x8000;
  return a;
}

}  // namespace metal
