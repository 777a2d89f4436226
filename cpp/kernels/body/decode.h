// Cuts tiles into vectors of weights. A tile's k planes are k vectors of 32 lanes, (row mod 8, column), and its step r = 0 .. 7 are the
// rows 8r .. 8r + 7: for all lanes at once the nibble of a window is a shift and a mask of a plane; a nibble of the steps behind the last
// one is one of the next lane. Each nibble serves several steps.
//
// Values come as unsigned or as signed bytes, each value + kValueOffset<K>.
#pragma once
#include "format/tqn.h"
#include "kernels/kernels.h"

namespace tq::kernels::TQ_ISA_NAMESPACE {

// Sums of T and U are small unsigned bytes; the other formats have the operands of the general dot product.
template <int K>
inline constexpr int kValueOffset = tqn::is_trellis(K) ? tqn::offset(K) : kOffset;

template <int R>
struct Step {
  static constexpr int r = R;
};

// Bits [bit, bit + Bits) of every lane's bytes.
template <int Bits, int Bit>
inline Bytes field_of(const Bytes* plane) {
  return field<Bits, Bit % 8>(plane[Bit / 8], plane[Bit / 8 + (Bit % 8 + Bits > 8)]);
}

// Calls f(Step<r>, Bytes) for the eight steps of kSide tiles side by side, in order. second: the second tile where kSide is 2.
template <int K>
class Decoder {
 public:
  explicit Decoder(const int8_t* codebook) : tables_(codebook) {}
  template <class F>
  void operator()(const uint8_t* tile, const uint8_t* second, const F& f) const {
    Bytes plane[kPlanes];
    for (int p = 0; p < K; p++) plane[p] = load_plane(tile + p * tqn::kTileLanes, second + p * tqn::kTileLanes);
    for (int p = K; p < kPlanes; p++) plane[p] = next_lane(plane[p - K]);
    Bytes nibble[kNibbles];
    first_nibbles<0>(plane, nibble);
    steps<0>(plane, nibble, f);
  }

 private:
  static constexpr int kAhead = (tqn::kReach<K> - 4) / K;    // steps from one to the last whose nibble it needs
  static constexpr int kNibbles = tqn::kLaneSteps + kAhead;  // nibble n begins at bit K * n of a lane
  static constexpr int kPlanes = (K * (kNibbles - 1) + 3) / 8 + 1;
  static_assert((tqn::kReach<K> - 4) % K == 0);

  template <int N>
  static void first_nibbles(const Bytes* plane, Bytes* nibble) {
    if constexpr (N < kAhead) {
      nibble[N] = field_of<4, K * N>(plane);
      first_nibbles<N + 1>(plane, nibble);
    }
  }
  template <int R, class F>
  void steps(const Bytes* plane, Bytes* nibble, const F& f) const {
    if constexpr (R < tqn::kLaneSteps) {
      nibble[R + kAhead] = field_of<4, K*(R + kAhead)>(plane);
      const auto at = [&]<int B>(tqn::Bit<B>) { return nibble[R + B / K]; };
      f(Step<R>(), tables_(tqn::table_indices<K>(at)));
      steps<R + 1>(plane, nibble, f);
    }
  }
  Tables tables_;
};

template <>
class Decoder<6> {
 public:
  explicit Decoder(const int8_t* codebook) : codebook_(codebook) {}
  template <class F>
  void operator()(const uint8_t* tile, const uint8_t* second, const F& f) const {
    Bytes plane[6];
    for (int p = 0; p < 6; p++) plane[p] = load_plane(tile + p * tqn::kTileLanes, second + p * tqn::kTileLanes);
    steps<0>(plane, f);
  }

 private:
  template <int R, class F>
  void steps(const Bytes* plane, const F& f) const {
    if constexpr (R < tqn::kLaneSteps) {
      f(Step<R>(), codebook_(field_of<6, 6 * R>(plane)));
      steps<R + 1>(plane, f);
    }
  }
  Codebook codebook_;
};

template <>
class Decoder<8> {
 public:
  explicit Decoder(const int8_t*) {}
  template <class F>
  void operator()(const uint8_t* tile, const uint8_t* second, const F& f) const {
    steps<0>(tile, second, f);
  }

 private:
  template <int R, class F>
  static void steps(const uint8_t* tile, const uint8_t* second, const F& f) {
    if constexpr (R < tqn::kLaneSteps) {
      f(Step<R>(), with_offset(load_plane(tile + R * tqn::kTileLanes, second + R * tqn::kTileLanes)));
      steps<R + 1>(tile, second, f);
    }
  }
};

inline constexpr int kTileValues = tqn::kTileSteps;  // bytes of a decoded tile, row by row

// (n_tiles, 64 rows, 4 columns) values + kValueOffset<K>; there is room for a whole number of kSide tiles.
template <int K>
inline void decode_tiles(const uint8_t* codes, const Decoder<K>& decode, int64_t n_tiles, int8_t* values) {
  for (int64_t i = 0; i < n_tiles; i += kSide, codes += kSide * tqn::tile_bytes(K), values += kSide * kTileValues)
    decode(codes, codes + (i + 1 < n_tiles ? tqn::tile_bytes(K) : 0),
           [&](auto step, Bytes w) { store_values(values + step.r * tqn::kTileLanes, w); });
}

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
