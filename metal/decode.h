// Decoding TQN codes in registers. A word of a plane is the four columns of one row mod 8, "group" g of a tile: K words, one a plane, are
// the group's rows g, 8 + g .. 56 + g, and the nibbles of four columns are one shift and one mask. A nibble behind the last step is one of
// the next lane of the tile: of the next column, or of the next group's first.
#pragma once
#include "format/tqn_layout.h"
#include "kernel.h"

namespace tq {

// A group's words, one a plane, and behind them those that the last steps' windows reach into.
template <int K>
struct Codes {
  enum {
    kReached = tqn::is_trellis(K) ? (K * (tqn::kLaneSteps - 1) + tqn::reach(K) - 1) / 8 + 1 : K,  // planes
    kShared = kReached - K < K ? kReached - K : K                                                 // words of the next group that are needed
  };
  uint word[kReached];
};

// Sets the words behind the last plane. next: the first kShared words of the next group.
template <int K>
inline void reach_into(thread Codes<K>& codes, thread const uint* next) {
  TQ_UNROLL
  for (int p = K; p < int(Codes<K>::kReached); p++)
    codes.word[p] = (codes.word[p % K] >> (8 * (p / K))) | (next[p % K] << (32 - 8 * (p / K)));
}

// `Bits` bits of every byte from bit `Bit` of the group's lanes.
template <int Bit, int Bits, int K>
inline uint fields(thread const Codes<K>& codes) {
  enum { shift = Bit % 8, plane = Bit / 8, behind = plane + 1 < int(Codes<K>::kReached) ? plane + 1 : plane };
  const uint every = 0x01010101u, own = (1u << (8 - shift)) - 1, all = (1u << Bits) - 1;
  if (shift + Bits <= 8) return (codes.word[plane] >> shift) & (all * every);
  const uint high = int(behind) == int(plane) ? 0 : codes.word[behind];  // a last bit beyond the window does not count
  return ((codes.word[plane] >> shift) & (own * every)) | ((high << (8 - shift)) & ((all & ~own) * every));
}

template <int K, int Step>
struct StepNibbles {
  thread const Codes<K>* codes;
  template <int B>
  uint operator()(tqn::Bit<B>) const {
    return fields<K * Step + B, 4>(*codes);
  }
};

// The look-up table has an entry for each pair of numbers p + 16 q that decides both indices of a step; for TQN6 for each code. Where the
// indices differ by one nibble of the window, p is one of them and q the nibble, which costs nothing to form. Entry<K>::of<Step>() are the
// entries of a step's four columns, one a byte; Entry<K>::value() is what an entry stands for.
template <int K>
struct Entry {
  template <int Step>
  static uint of(thread const Codes<K>& codes) {
    const tqn::Indices<uint> at = tqn::TableIndices<K>::of(StepNibbles<K, Step>{&codes});
    return (at.first & 0x0F0F0F0Fu) | ((at.second << 4) & 0xF0F0F0F0u);
  }
  static int value(device const int8_t* codebook, uint entry) {
    return codebook[entry % 16] + codebook[tqn::kTableSize + entry / 16] - tqn::offset(K);
  }
};
template <>
struct Entry<2> {
  template <int Step>
  static uint of(thread const Codes<2>& codes) {
    const tqn::Indices<uint> at = tqn::TableIndices<2>::of(StepNibbles<2, Step>{&codes});
    return (at.first & 0x0F0F0F0Fu) | ((fields<2 * Step + 2, 4>(codes) << 4) & 0xF0F0F0F0u);
  }
  static int value(device const int8_t* codebook, uint entry) {
    return codebook[entry % 16] + codebook[tqn::kTableSize + (entry % 16 + entry / 16) % 16] - tqn::offset(2);
  }
};
template <>
struct Entry<4> {
  template <int Step>
  static uint of(thread const Codes<4>& codes) {
    const tqn::Indices<uint> at = tqn::TableIndices<4>::of(StepNibbles<4, Step>{&codes});
    const uint nibble = Step % 2 == 0 ? codes.word[Step / 2] : codes.word[Step / 2 + 1] << 4;
    return (at.second & 0x0F0F0F0Fu) | (nibble & 0xF0F0F0F0u);
  }
  static int value(device const int8_t* codebook, uint entry) {
    return codebook[(entry % 16 + entry / 16) % 16] + codebook[tqn::kTableSize + entry % 16] - tqn::offset(4);
  }
};
template <>
struct Entry<6> {
  template <int Step>
  static uint of(thread const Codes<6>& codes) {
    return fields<6 * Step, 6>(codes);
  }
  static int value(device const int8_t* codebook, uint entry) { return codebook[entry]; }
};

// Each entry stands kReplicas times in the table, side by side, and a lane reads the one of its own number: lanes that read different
// entries at once mostly meet different banks.
TQN_VALUE uint kReplicas = 16;
TQN_FN uint table_entries(int k) {
  return tqn::is_trellis(k) ? uint(tqn::kTableSize * tqn::kTableSize) : k == 6 ? uint(tqn::kCodebookSize) : 1u;
}
TQN_FN uint table_halves(int k) { return table_entries(k) * kReplicas; }

template <int K>
struct Table {
  static void fill(threadgroup half* table, device const int8_t* codebook, uint tid, uint threads) {
    for (uint entry = tid; entry < table_entries(K); entry += threads) {
      const half value = half(float(Entry<K>::value(codebook, entry)));
      TQ_UNROLL
      for (uint i = 0; i < kReplicas; i++) table[entry * kReplicas + i] = value;
    }
  }
  // The four values of the row 8 * Step + g.
  template <int Step>
  static float4 row(thread const Codes<K>& codes, threadgroup const half* lane_table) {
    const uint entries = Entry<K>::template of<Step>(codes);
    return float4(float(lane_table[(entries & 255) * kReplicas]), float(lane_table[((entries >> 8) & 255) * kReplicas]),
                  float(lane_table[((entries >> 16) & 255) * kReplicas]), float(lane_table[(entries >> 24) * kReplicas]));
  }
};
template <>
struct Table<8> {
  static void fill(threadgroup half*, device const int8_t*, uint, uint) {}
  template <int Step>
  static float4 row(thread const Codes<8>& codes, threadgroup const half*) {
    return float4(as_type<char4>(codes.word[Step]));
  }
};

// A lane's two neighbouring groups 2 q and 2 q + 1 of a tile, q = lane % 4; the four lanes of a tile stand side by side in their simdgroup.
template <int K>
struct Pair {
  Codes<K> even, odd;
};
// from: the tile's bytes. All lanes of the simdgroup. (No member: of which memory its `this` would be, MSL leaves open.)
template <int K>
inline void load_pair(thread Pair<K>& codes, device const uchar* from, uint lane) {
  TQ_UNROLL
  for (int p = 0; p < K; p++) {
    const uint2 both = *(device const uint2*)(from + p * tqn::kTileLanes + lane % 4 * 8);
    codes.even.word[p] = both.x, codes.odd.word[p] = both.y;
  }
  uint next[Codes<K>::kShared > 0 ? int(Codes<K>::kShared) : 1];
  TQ_UNROLL
  for (int i = 0; i < int(Codes<K>::kShared); i++) next[i] = simd_shuffle(codes.even.word[i], ushort((lane & ~3u) | ((lane + 1) & 3u)));
  reach_into<K>(codes.even, codes.odd.word);
  reach_into<K>(codes.odd, next);
}

}  // namespace tq
