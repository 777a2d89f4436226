// simdgroup operations: every lane shows the others its value, then takes what it wants.
#pragma once
#include "shim.h"
#include "vector.h"

namespace metal {

namespace emulated {

template <class T>
T value_of(const shim::Slot& slot) {
  T value;
  std::memcpy(&value, slot, sizeof(T));
  return value;
}
// What a lane that takes no part would give is undefined; here it ends the process.
template <class T>
T from_lane(const shim::Meeting& m, uint32_t lane, const char* operation) {
  if (lane >= shim::kSimdLanes || !(m.active >> lane & 1)) shim::fail("%s reads lane %u, which is not there", operation, lane);
  return value_of<T>(m.values[lane]);
}
// Pairs of lanes 1, 2, 4 ... apart.
template <class T, class Combine>
T reduce(T value, const char* operation, Combine combine) {
  const shim::Meeting m = shim::meet(&value, sizeof(T), operation);
  T all[shim::kSimdLanes];
  uint32_t active = m.active;
  for (uint32_t l = 0; l < shim::kSimdLanes; l++)
    if (active >> l & 1) all[l] = value_of<T>(m.values[l]);
  for (uint32_t d = 1; d < shim::kSimdLanes; d *= 2)
    for (uint32_t l = 0; l < shim::kSimdLanes; l += 2 * d) {
      const bool low = active >> l & 1, high = active >> (l + d) & 1;
      if (high) all[l] = low ? combine(all[l], all[l + d]) : all[l + d], active |= 1u << l;
    }
  return all[0];
}

}  // namespace emulated

template <class T>
T simd_sum(T value) {
  return emulated::reduce(value, "simd_sum", [](T a, T b) { return T(a + b); });
}
template <class T>
T simd_max(T value) {
  return emulated::reduce(value, "simd_max", [](T a, T b) { return a < b || a != a ? b : a; });
}
template <class T>
T simd_min(T value) {
  return emulated::reduce(value, "simd_min", [](T a, T b) { return b < a || a != a ? b : a; });
}
template <class T>
T simd_or(T value) {
  return emulated::reduce(value, "simd_or", [](T a, T b) { return T(a | b); });
}
template <class T>
T simd_shuffle(T value, ushort lane) {
  return emulated::from_lane<T>(shim::meet(&value, sizeof(T), "simd_shuffle"), lane, "simd_shuffle");
}
template <class T>
T simd_shuffle_xor(T value, ushort mask) {
  return emulated::from_lane<T>(shim::meet(&value, sizeof(T), "simd_shuffle_xor"), shim::this_lane() ^ mask, "simd_shuffle_xor");
}
// Lanes that would read beyond the simdgroup keep their own value, which MSL does not promise: no kernel may use it.
template <class T>
T simd_shuffle_down(T value, ushort delta) {
  const shim::Meeting m = shim::meet(&value, sizeof(T), "simd_shuffle_down");
  const uint32_t lane = shim::this_lane() + delta;
  return lane < shim::kSimdLanes ? emulated::from_lane<T>(m, lane, "simd_shuffle_down") : value;
}
template <class T>
T simd_shuffle_up(T value, ushort delta) {
  const shim::Meeting m = shim::meet(&value, sizeof(T), "simd_shuffle_up");
  const uint32_t lane = shim::this_lane();
  return lane >= delta ? emulated::from_lane<T>(m, lane - delta, "simd_shuffle_up") : value;
}
template <class T>
T simd_broadcast(T value, ushort lane) {
  return emulated::from_lane<T>(shim::meet(&value, sizeof(T), "simd_broadcast"), lane, "simd_broadcast");
}
template <class T>
T simd_prefix_exclusive_sum(T value) {
  const shim::Meeting m = shim::meet(&value, sizeof(T), "simd_prefix_exclusive_sum");
  T sum = 0;
  for (uint32_t l = 0; l < shim::this_lane(); l++)
    if (m.active >> l & 1) sum += emulated::value_of<T>(m.values[l]);
  return sum;
}

// An 8 x 8 matrix that a simdgroup holds together: lane l keeps elements 2 l and 2 l + 1 of it, row by row. (Where elements lie on a GPU is
// not documented, so that kernels must not look.)
template <class T>
struct simdgroup_matrix_8x8 {
  simdgroup_matrix_8x8() = default;
  explicit simdgroup_matrix_8x8(T diagonal) {
    for (uint32_t i = 0; i < 2; i++) own[i] = (2 * shim::this_lane() + i) % 9 == 0 ? diagonal : T(0);
  }
  T own[2];
};
using simdgroup_float8x8 = simdgroup_matrix_8x8<float>;
using simdgroup_half8x8 = simdgroup_matrix_8x8<half>;

template <class T, int Columns, int Rows>
simdgroup_matrix_8x8<T> make_filled_simdgroup_matrix(T value) {
  static_assert(Columns == 8 && Rows == 8);
  simdgroup_matrix_8x8<T> m;
  m.own[0] = m.own[1] = value;
  return m;
}

template <class T>
size_t simdgroup_place(uint32_t element, size_t elements_per_row, bool transpose) {
  const uint32_t row = element / 8, column = element % 8;
  return transpose ? column * elements_per_row + row : row * elements_per_row + column;
}
template <class T, class P>
void simdgroup_load(simdgroup_matrix_8x8<T>& m, const P* from, size_t elements_per_row = 8, int origin = 0, bool transpose = false) {
  static_assert(sizeof(T) == sizeof(P));
  if (origin != 0) shim::fail("simdgroup_load: origins are not emulated");
  shim::meet(&from, sizeof(from), "simdgroup_load");
  for (uint32_t i = 0; i < 2; i++) m.own[i] = from[simdgroup_place<T>(2 * shim::this_lane() + i, elements_per_row, transpose)];
}
template <class T>
void simdgroup_store(const simdgroup_matrix_8x8<T>& m, T* to, size_t elements_per_row = 8, int origin = 0, bool transpose = false) {
  if (origin != 0) shim::fail("simdgroup_store: origins are not emulated");
  shim::meet(&to, sizeof(to), "simdgroup_store");
  for (uint32_t i = 0; i < 2; i++) to[simdgroup_place<T>(2 * shim::this_lane() + i, elements_per_row, transpose)] = m.own[i];
}
// d = a b + c, products and sums in float and rounded once to T: what a GPU rounds between is not documented.
template <class T, class A, class B>
void simdgroup_multiply_accumulate(simdgroup_matrix_8x8<T>& d, const simdgroup_matrix_8x8<A>& a, const simdgroup_matrix_8x8<B>& b,
                                   const simdgroup_matrix_8x8<T>& c) {
  struct Both {
    A a[2];
    B b[2];
  } both{{a.own[0], a.own[1]}, {b.own[0], b.own[1]}};
  const shim::Meeting m = shim::meet(&both, sizeof(both), "simdgroup_multiply_accumulate");
  const auto at = [&](uint32_t element) { return emulated::value_of<Both>(m.values[element / 2]); };
  for (uint32_t i = 0; i < 2; i++) {
    const uint32_t element = 2 * shim::this_lane() + i, row = element / 8, column = element % 8;
    float sum = float(c.own[i]);
    for (uint32_t l = 0; l < 8; l++) sum += float(at(8 * row + l).a[l % 2]) * float(at(8 * l + column).b[column % 2]);
    d.own[i] = T(sum);
  }
}
template <class T, class A, class B>
void simdgroup_multiply(simdgroup_matrix_8x8<T>& d, const simdgroup_matrix_8x8<A>& a, const simdgroup_matrix_8x8<B>& b) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<T, 8, 8>(T(0)));
}

enum class mem_flags : uint8_t { mem_none, mem_device, mem_threadgroup, mem_device_and_threadgroup };
inline void threadgroup_barrier(mem_flags) { shim::group_barrier(); }
inline void simdgroup_barrier(mem_flags) {
  const char nothing = 0;
  shim::meet(&nothing, 1, "simdgroup_barrier");
}

}  // namespace metal
