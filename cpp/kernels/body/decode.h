// Cuts tiles into vectors of weights. A tile's k planes are k vectors of 32 lanes, (row mod 8, column), and its step r = 0 .. 7 are the
// rows 8r .. 8r + 7: for all lanes at once the nibble of a window is a shift and a mask of a plane; a nibble of the steps behind the last
// one is one of the next lane. Each nibble serves several steps.
//
// Values come as unsigned or as signed bytes, each value + kValueOffset<K>.
#pragma once
#include "format/tqn.h"
#include "kernels/kernels.h"

// A tile's planes, nibbles and sums live in registers only where all of it is one function; GCC does not see that by itself on Arm.
#define TQ_INLINE __attribute__((always_inline))

namespace tq::kernels::TQ_ISA_NAMESPACE {

// Sums of T and U are small unsigned bytes; the other formats have the operands of the general dot product.
template <int K>
inline constexpr int kValueOffset = tqn::is_trellis(K) ? tqn::offset(K) : kOffset;
// Of values that are multiplied straight from registers: a magnitude has none.
template <int K>
inline constexpr int kDirectOffset = K == 6 && kSplitSigns ? 0 : kValueOffset<K>;

// Part H of kHalves of step R's lanes, which one register takes.
template <int R, int H>
struct Step {
  static constexpr int r = R, half = H;
  static constexpr int first = (R * kHalves + H) * tqn::kTileLanes / kHalves;  // of a tile's bytes, row by row
};

template <int H, class F>
TQ_INLINE inline void each_half(const F& f) {
  if constexpr (H < kHalves) {
    f(Step<0, H>());
    each_half<H + 1>(f);
  }
}

// Bits [bit, bit + Bits) of every lane's bytes.
template <int Bits, int Bit>
inline Bytes field_of(const Bytes* plane) {
  return field<Bits, Bit % 8>(plane[Bit / 8], plane[Bit / 8 + (Bit % 8 + Bits > 8)]);
}

// Calls f(Step<r, half>, Bytes) for the eight steps of kSide tiles side by side, in order, half by half. second: the second tile where
// kSide is 2.
template <int K>
class Decoder {
 public:
  explicit Decoder(const int8_t* codebook) : tables_(codebook) {}
  template <class F>
  TQ_INLINE void operator()(const uint8_t* tile, const uint8_t* second, const F& f) const {
    each_half<0>([&](auto part) TQ_INLINE {
      Bytes plane[kPlanes];
      for (int p = 0; p < K; p++) plane[p] = load_plane<part.half>(tile + p * tqn::kTileLanes, second + p * tqn::kTileLanes);
      later_planes<K, part.half>(plane, tile);
      Bytes nibble[kNibbles];
      first_nibbles<0>(plane, nibble);
      steps<0, part.half>(plane, nibble, f);
    });
  }

 private:
  // Plane p >= K is plane p mod K of the lane p / K further.
  template <int P, int H>
  TQ_INLINE static void later_planes(Bytes* plane, const uint8_t* tile) {
    if constexpr (P < kPlanes) {
      plane[P] = next_lane<H, P / K>(plane[P - K], tile + P % K * tqn::kTileLanes);
      later_planes<P + 1, H>(plane, tile);
    }
  }
  static constexpr int kAhead = (tqn::kReach<K> - 4) / K;    // steps from one to the last whose nibble it needs
  static constexpr int kNibbles = tqn::kLaneSteps + kAhead;  // nibble n begins at bit K * n of a lane
  static constexpr int kPlanes = (K * (kNibbles - 1) + 3) / 8 + 1;
  static_assert((tqn::kReach<K> - 4) % K == 0);

  // Behind the last step nibbles are the next lane's: one that straddles two bytes is turned rather than put together again, where
  // registers hold whole planes.
  template <int N, int H>
  TQ_INLINE static Bytes nibble_of(const Bytes* plane, const Bytes* nibble) {
    if constexpr (N >= tqn::kLaneSteps && K * N % 8 > 4 && kHalves == 1) return next_lane<H, 1>(nibble[N - tqn::kLaneSteps], nullptr);
    return field_of<4, K * N>(plane);
  }
  template <int N>
  TQ_INLINE static void first_nibbles(const Bytes* plane, Bytes* nibble) {
    if constexpr (N < kAhead) {
      nibble[N] = nibble_of<N, 0>(plane, nibble);
      first_nibbles<N + 1>(plane, nibble);
    }
  }
  template <int R, int H, class F>
  TQ_INLINE void steps(const Bytes* plane, Bytes* nibble, const F& f) const {
    if constexpr (R < tqn::kLaneSteps) {
      nibble[R + kAhead] = nibble_of<R + kAhead, H>(plane, nibble);
      const auto at = [&]<int B>(tqn::Bit<B>) TQ_INLINE { return nibble[R + B / K]; };
      f(Step<R, H>(), tables_(tqn::table_indices<K>(at)));
      steps<R + 1, H>(plane, nibble, f);
    }
  }
  Tables tables_;
};

template <>
class Decoder<6> {
 public:
  explicit Decoder(const int8_t* codebook) : codebook_(codebook) {}
  template <class F>
  TQ_INLINE void operator()(const uint8_t* tile, const uint8_t* second, const F& f) const {
    each_half<0>([&](auto part) TQ_INLINE {
      Bytes plane[6];
      for (int p = 0; p < 6; p++) plane[p] = load_plane<part.half>(tile + p * tqn::kTileLanes, second + p * tqn::kTileLanes);
      steps<0, part.half>(plane, f);
    });
  }

 private:
  template <int R, int H, class F>
  TQ_INLINE void steps(const Bytes* plane, const F& f) const {
    if constexpr (R < tqn::kLaneSteps) {
      constexpr int bit = 6 * R, first = bit / 8, last = (bit + 5) / 8;
      f(Step<R, H>(), codebook_.template at<bit % 8>(plane[first], plane[last]));
      steps<R + 1, H>(plane, f);
    }
  }
  Codebook codebook_;
};

template <>
class Decoder<8> {
 public:
  explicit Decoder(const int8_t*) {}
  template <class F>
  TQ_INLINE void operator()(const uint8_t* tile, const uint8_t* second, const F& f) const {
    each_half<0>([&](auto part) TQ_INLINE { steps<0, part.half>(tile, second, f); });
  }

 private:
  template <int R, int H, class F>
  TQ_INLINE static void steps(const uint8_t* tile, const uint8_t* second, const F& f) {
    if constexpr (R < tqn::kLaneSteps) {
      f(Step<R, H>(), with_offset(load_plane<H>(tile + R * tqn::kTileLanes, second + R * tqn::kTileLanes)));
      steps<R + 1, H>(tile, second, f);
    }
  }
};

inline constexpr int kTileValues = tqn::kTileSteps;  // bytes of a decoded tile, row by row

// (n_tiles, 64 rows, 4 columns) values + kValueOffset<K>; there is room for a whole number of kSide tiles.
template <int K>
inline void decode_tiles(const uint8_t* codes, const Decoder<K>& decode, int64_t n_tiles, int8_t* values) {
  for (int64_t i = 0; i < n_tiles; i += kSide, codes += kSide * tqn::tile_bytes(K), values += kSide * kTileValues)
    decode(codes, codes + (i + 1 < n_tiles ? tqn::tile_bytes(K) : 0),
           [&](auto step, auto w) TQ_INLINE { store_values(values + step.first, w); });
}

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
