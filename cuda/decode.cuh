// Decoding TQN codes in registers: how a warp cuts a tile, and the look-up table in shared memory.
//
// A word of a plane is the four columns of one row mod 8, "group" g of a tile: K words, one a plane, are the group's rows g, 8 + g .. 56 +
// g, and the nibbles of four columns are one shift and one mask. A nibble behind the last step is one of the next lane: of the next column,
// or of the next group's first. A warp decodes eight tiles (32 columns) of a strip at a time: lane 4g + t owns group g of tiles 2t and 2t +
// 1, whose rows 16m + g and 16m + 8 + g are that lane's registers of the mma operand A (16 x 32 int8), for m = 0 .. 3.
#pragma once
#include <cuda_runtime.h>

#include <utility>

#include "views.h"

namespace tq::cuda {

inline constexpr int kWarp = 32;
inline constexpr int kGroups = 8;                                // of a tile
inline constexpr int kLaneRows = tqn::kLaneSteps;                // rows of a group
inline constexpr int kGroupCols = kGroupTiles * tqn::kTileCols;  // 32: the depth of one mma

// The table in shared memory: entry e for lane l is the word at e * 128 + 4 * l, so that each lane reads its own bank. For TQN6 an entry is
// the index. For the trellis formats it is p + 16 q: two numbers that decide both of a step's indices (table_pair). Where these differ by
// one nibble of the window, p is one of them and q the nibble, which costs nothing to form.
inline constexpr uint32_t kEntryBytes = kWarp * 4;
constexpr uint32_t table_entries(int k) { return tqn::is_trellis(k) ? tqn::kTableSize * tqn::kTableSize : tqn::codebook_size(k); }
constexpr uint32_t table_bytes(int k) { return table_entries(k) * kEntryBytes; }

__device__ inline uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// The indices of T and U, modulo 16, that an entry's p and q stand for.
template <int K>
__device__ constexpr tqn::Indices<uint32_t> table_pair(uint32_t p, uint32_t q) {
  if constexpr (K == 2) return {p, (p + q) % 16};
  if constexpr (K == 4) return {(p + q) % 16, p};
  return {p, q};
}

// A table's value, from a warp's lanes that hold the codebook (all lanes of the warp).
template <int K>
__device__ inline int table_value(const int (&book)[2], uint32_t entry) {
  if constexpr (!tqn::is_trellis(K)) {
    const int low = __shfl_sync(~0u, book[0], entry % kWarp), high = __shfl_sync(~0u, book[1], entry % kWarp);
    return entry < kWarp ? low : high;
  }
  const tqn::Indices<uint32_t> at = table_pair<K>(entry % 16, entry / 16);
  return __shfl_sync(~0u, book[0], at.first) + __shfl_sync(~0u, book[0], tqn::kTableSize + at.second) - tqn::offset(K);
}

// Fills `Tables` tables, aligned to 16 bytes (all threads of the block; no barrier inside). A word of table i is the value in byte i alone,
// or, Signed, an integer.
template <int K, bool Signed, int Tables = 1>
__device__ inline void fill_table(void* table, const int8_t* codebook) {
  static_assert(!Signed || Tables == 1);
  if constexpr (tqn::has_codebook(K)) {
    constexpr uint32_t kQuads = table_bytes(K) / sizeof(uint4);
    static_assert(kQuads % kWarp == 0 && tqn::codebook_size(K) % kWarp == 0);
    uint4* to = static_cast<uint4*>(table);
    const uint32_t lane = threadIdx.x % kWarp;
    const int book[2] = {codebook[lane], tqn::codebook_size(K) > kWarp ? codebook[kWarp + lane] : 0};
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < kQuads; i += blockDim.x) {
      const int value = table_value<K>(book, i * sizeof(uint4) / kEntryBytes);
#pragma unroll
      for (int t = 0; t < Tables; t++) {
        const uint32_t word = uint32_t(Signed ? value : value & 255) << 8 * t;
        to[t * kQuads + i] = make_uint4(word, word, word, word);
      }
    }
  }
}

// A lane's view of the table, to be made after the barrier that follows fill_table (volatile: look-ups stay behind it).
__device__ inline uint32_t lane_table(uint32_t base) {
  uint32_t lane;
  asm volatile("add.u32 %0, %1, %2;" : "=r"(lane) : "r"(base), "r"((threadIdx.x % kWarp) * 4));
  return lane;
}

// The word for byte Column of `entries` in the table that stands `Offset` bytes behind; a dot product of bytes forms the address.
template <int Column, int Offset = 0>
__device__ inline uint32_t look_up(uint32_t lane_table, uint32_t entries) {
  uint32_t word;
  asm("ld.shared.u32 %0, [%1+%2];" : "=r"(word) : "r"(__dp4a(entries, kEntryBytes << (8 * Column), lane_table)), "n"(Offset));
  return word;
}

// A group's words, one a plane, and behind them those that the last steps' windows reach into.
template <int K>
struct Codes {
  static constexpr int kReached = tqn::is_trellis(K) ? (K * (kLaneRows - 1) + tqn::kReach<K> - 1) / 8 + 1 : K;  // planes
  static constexpr int kShared = kReached - K < K ? kReached - K : K;  // words of the next group that are needed
  uint32_t word[kReached];

  // next: the first words of the next group.
  __device__ void reach(const uint32_t (&next)[kShared > 0 ? kShared : 1]) {
#pragma unroll
    for (int p = K; p < kReached; p++) word[p] = __funnelshift_r(word[p % K], next[p % K], 8 * (p / K));
  }
};

// Codes are read once and need no first-level cache.
__device__ inline uint2 stream_load2(const void* p) {
  uint2 v;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}

// Loads the group whose first word is at `p`.
template <int K>
__device__ inline void load_codes(const uint8_t* p, Codes<K>& codes) {
#pragma unroll
  for (int plane = 0; plane < K; plane++) codes.word[plane] = __ldg(reinterpret_cast<const uint32_t*>(p + plane * kGroupPlane));
}
// Loads two neighbouring groups.
template <int K>
__device__ inline void load_codes(const uint8_t* p, Codes<K> (&codes)[2]) {
#pragma unroll
  for (int plane = 0; plane < K; plane++) {
    const uint2 both = stream_load2(p + plane * kGroupPlane);
    codes[0].word[plane] = both.x, codes[1].word[plane] = both.y;
  }
}
// From shared memory.
template <int K>
__device__ inline void load_shared_codes(uint32_t p, Codes<K>& codes) {
#pragma unroll
  for (int plane = 0; plane < K; plane++)
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(codes.word[plane]) : "r"(p + plane * tqn::kTileLanes) : "memory");
}

// Fetches what the last steps need from the lane `from`, which holds the next group (all lanes of the warp).
template <int K>
__device__ inline void share_codes(Codes<K>& codes, const Codes<K>& first, int from) {
  if constexpr (tqn::is_trellis(K)) {
    uint32_t next[Codes<K>::kShared];
#pragma unroll
    for (int i = 0; i < Codes<K>::kShared; i++) next[i] = __shfl_sync(~0u, first.word[i], from);
    codes.reach(next);
  }
}
template <int K>
__device__ inline void share_codes(Codes<K>& codes) {
  share_codes<K>(codes, codes, (threadIdx.x + 4) % kWarp);
}

// `Bits` bits of every byte from bit `Bit` of the group's lanes.
template <int Bit, int Bits, int K>
__device__ inline uint32_t fields(const Codes<K>& codes) {
  constexpr int shift = Bit % 8, plane = Bit / 8;
  constexpr uint32_t every = 0x01010101, own = (1u << (8 - shift)) - 1, all = (1u << Bits) - 1;
  if constexpr (shift + Bits <= 8) {
    return codes.word[plane] >> shift & all * every;
  } else {
    const uint32_t high = plane + 1 < Codes<K>::kReached ? codes.word[plane + 1] : 0;  // a last bit beyond the window does not count
    return (codes.word[plane] >> shift & own * every) | (high << (8 - shift) & (all & ~own) * every);
  }
}

// Keeps the compiler from forming x anew, by other operations, where a sum of it is asked for.
__device__ inline uint32_t kept(uint32_t x) {
  asm("" : "+r"(x));
  return x;
}

// A group's nibbles that table_indices asks for: at[s] is bits K s .. K s + 3 of every lane, modulo 16; those behind the last step stand in
// the next lane.
template <int K>
struct Nibbles {
  static constexpr int kBehind = (K == 3 ? 9 : 8) / K, kAll = kLaneRows + kBehind;
  uint32_t at[kAll];

  __device__ explicit Nibbles(const Codes<K>& codes) {
    extract(codes, std::make_integer_sequence<int, kAll>());
#pragma unroll
    for (int s = 0; s < kAll; s++) join(s);
  }
  // With the nibbles of the group that follows.
  __device__ Nibbles(const Codes<K>& codes, const Nibbles& next) {
    extract(codes, std::make_integer_sequence<int, kLaneRows>());
#pragma unroll
    for (int s = 0; s < kBehind; s++) join(s), at[kLaneRows + s] = __funnelshift_r(at[s], next.at[s], 8);
#pragma unroll
    for (int s = kBehind; s < kLaneRows; s++) join(s);
  }

 private:
  // A nibble in two words: its first bits and four times the nibble that begins in the second. What is more than 16 does not count, and no
  // sum of such leaves its byte.
  static constexpr bool split(int s) { return K == 2 && K * s % 8 == 6 && s + 1 < kAll; }
  __device__ void join(int s) {
    if (split(s)) at[s] = kept(at[s] + 4 * at[s + 1]);
  }
  template <int... Steps>
  __device__ void extract(const Codes<K>& codes, std::integer_sequence<int, Steps...>) {
    ((at[Steps] = kept(fields<K * Steps, split(Steps) ? 2 : 4>(codes))), ...);
  }
};
template <int K>
  requires(!tqn::is_trellis(K))
struct Nibbles<K> {
  __device__ explicit Nibbles(const Codes<K>&) {}
  __device__ Nibbles(const Codes<K>&, const Nibbles&) {}
};

// The lower halves of a's bytes and the upper ones of b's, by one instruction.
__device__ inline uint32_t halves(uint32_t a, uint32_t b) {
  uint32_t both;
  asm("lop3.b32 %0, %1, %2, 0x0F0F0F0F, 0xE4;" : "=r"(both) : "r"(a), "r"(b));
  return both;
}

// The table's entries of a step's four columns.
template <int Step, int K>
__device__ inline uint32_t entries_of(const Codes<K>& codes, const Nibbles<K>& nibbles) {
  if constexpr (K == 6) {
    return fields<6 * Step, 6>(codes);
  } else {
    const auto nibble = [&]<int B>(tqn::Bit<B>) { return nibbles.at[Step + B / K]; };
    // The nibble of the following step, in the upper halves of the bytes: as it stands in every other word.
    const auto upper = [&] { return K * (Step + 1) % 8 == 4 ? codes.word[K * (Step + 1) / 8] : nibbles.at[Step + 1] << 4; };
    const uint32_t n0 = nibbles.at[Step];
    if constexpr (K == 2) return halves(2 * n0 + nibble(tqn::Bit<8>{}), upper());
    if constexpr (K == 4) return halves(n0 + nibble(tqn::Bit<8>{}), upper());
    if constexpr (K == 3) {
      const uint32_t first = 2 * (n0 + nibble(tqn::Bit<9>{})) + nibble(tqn::Bit<3>{}), second = 2 * n0 + nibble(tqn::Bit<6>{});
      return halves(first, second << 4);
    }
    const tqn::Indices<uint32_t> at = tqn::table_indices<K>(nibble);
    return halves(at.first, at.second << 4);
  }
}

// The four values of row 8 * Step + g, one a byte.
template <int K, int Step>
__device__ inline uint32_t decode_row(const Codes<K>& codes, const Nibbles<K>& nibbles, uint32_t table) {
  if constexpr (K == 8) {
    return codes.word[Step];
  } else {
    const uint32_t entries = entries_of<Step>(codes, nibbles);
    const uint32_t low = __byte_perm(look_up<0>(table, entries), look_up<1>(table, entries), 0x0040);
    const uint32_t high = __byte_perm(look_up<2>(table, entries), look_up<3>(table, entries), 0x0040);
    return __byte_perm(low, high, 0x5410);
  }
}

// d += A B: A 16 x 32 int8 row-major, B 32 x 8 int8 column-major, d 16 x 8 int32, in the lane layout of mma.m16n8k32.
__device__ inline void mma_int8(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  const auto quarter = [](int& d0, int& d1, uint32_t a, uint32_t b) {
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};" : "+r"(d0), "+r"(d1) : "r"(a), "r"(b));
  };
  quarter(d[0], d[1], a0, b0), quarter(d[2], d[3], a1, b0), quarter(d[0], d[1], a2, b1), quarter(d[2], d[3], a3, b1);
#endif
}

}  // namespace tq::cuda
