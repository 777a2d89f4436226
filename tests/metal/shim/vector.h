// The vector types of MSL: elementwise arithmetic and conversions; components by index and as x, y, z, w (no swizzles).
#pragma once
#include <cstddef>
#include <cstdint>

#include "half.h"

namespace metal {

using uchar = uint8_t;
using ushort = uint16_t;
using uint = uint32_t;
using ulong = uint64_t;

template <class T, int N>
struct Storage;
template <class T>
struct alignas(2 * sizeof(T)) Storage<T, 2> {
  union {
    T values[2];
    struct {
      T x, y;
    };
  };
};
template <class T>
struct alignas(4 * sizeof(T)) Storage<T, 3> {
  union {
    T values[3];
    struct {
      T x, y, z;
    };
  };
};
template <class T>
struct alignas(4 * sizeof(T)) Storage<T, 4> {
  union {
    T values[4];
    struct {
      T x, y, z, w;
    };
  };
};

template <class T, int N>
struct vec : Storage<T, N> {
  using Storage<T, N>::values;
  vec() = default;
  vec(T all) {
    for (int i = 0; i < N; i++) values[i] = all;
  }
  template <class... U>
    requires(sizeof...(U) == N)
  vec(U... each) {
    int i = 0;
    ((values[i++] = T(each)), ...);
  }
  template <class U>
  explicit vec(const vec<U, N>& other) {
    for (int i = 0; i < N; i++) values[i] = T(other.values[i]);
  }
  T& operator[](int i) { return values[i]; }
  const T& operator[](int i) const { return values[i]; }
};

#define SHIM_OPERATOR(op)                                      \
  template <class T, int N>                                    \
  inline vec<T, N> operator op(vec<T, N> a, vec<T, N> b) {     \
    vec<T, N> out;                                             \
    for (int i = 0; i < N; i++) out[i] = T(a[i] op b[i]);      \
    return out;                                                \
  }                                                            \
  template <class T, int N>                                    \
  inline vec<T, N> operator op(vec<T, N> a, decltype(T()) b) { \
    return a op vec<T, N>(b);                                  \
  }                                                            \
  template <class T, int N>                                    \
  inline vec<T, N> operator op(decltype(T()) a, vec<T, N> b) { \
    return vec<T, N>(a) op b;                                  \
  }                                                            \
  template <class T, int N, class U>                           \
  inline vec<T, N>& operator op## = (vec<T, N> & a, U b) {     \
    return a = a op b;                                         \
  }
SHIM_OPERATOR(+)
SHIM_OPERATOR(-)
SHIM_OPERATOR(*)
SHIM_OPERATOR(/)
SHIM_OPERATOR(&)
SHIM_OPERATOR(|)
SHIM_OPERATOR(^)
SHIM_OPERATOR(<<)
SHIM_OPERATOR(>>)
#undef SHIM_OPERATOR
template <class T, int N>
inline vec<T, N> operator-(vec<T, N> a) {
  for (int i = 0; i < N; i++) a[i] = T(-a[i]);
  return a;
}
template <class T, int N>
inline vec<T, N> operator~(vec<T, N> a) {
  for (int i = 0; i < N; i++) a[i] = T(~a[i]);
  return a;
}

#define SHIM_VECTORS(name, type) \
  using name##2 = vec<type, 2>;  \
  using name##3 = vec<type, 3>;  \
  using name##4 = vec<type, 4>;
SHIM_VECTORS(char, int8_t)
SHIM_VECTORS(uchar, uint8_t)
SHIM_VECTORS(short, int16_t)
SHIM_VECTORS(ushort, uint16_t)
SHIM_VECTORS(int, int32_t)
SHIM_VECTORS(uint, uint32_t)
SHIM_VECTORS(half, half)
SHIM_VECTORS(float, float)
#undef SHIM_VECTORS

}  // namespace metal
