// Decoding TQN codes in registers: how a warp cuts a tile, and the codebook in shared memory.
//
// A warp decodes eight tiles (32 columns) of a strip at a time. Lane 4g + t owns rows 8g .. 8g + 7 of tiles 2t and 2t + 1: 32 consecutive
// steps of a tile, K whole words. The lane with the next rows holds the bits that the last windows reach into, and the tile is circular.
// Rows 8g + 2m and 8g + 2m + 1 of the two tiles are lane 4g + t's registers of the mma operand A (16 x 32 int8), for m = 0 .. 3.
#pragma once
#include <cuda_runtime.h>

#include "format/tqn.h"

namespace tq::cuda {

inline constexpr int kWarp = 32;
inline constexpr int kGroupTiles = 8;                            // tiles that a warp decodes at a time
inline constexpr int kLaneRows = 8;                              // rows of a tile that a lane owns
inline constexpr int kGroupCols = kGroupTiles * tqn::kTileCols;  // 32: the depth of one mma

// The codebook in shared memory: entry e for column c and lane l is the word at c * kColumnTable + e * 128 + 4 * l, holding the value in
// byte c. Each lane reads its own bank, and the words of a row's four columns OR together to the operand of a dot product.
inline constexpr uint32_t kEntryShift = 7;
inline constexpr uint32_t kColumnTable = tqn::kCodebookSize << kEntryShift;
inline constexpr uint32_t kEntryMask = (tqn::kCodebookSize - 1) << kEntryShift;
inline constexpr uint32_t kTableBytes = tqn::kTileCols * kColumnTable;
inline constexpr uint32_t kTableSharedBytes =
    kTableBytes + kColumnTable;  // the base is aligned to kColumnTable, so that OR can form addresses

__device__ inline uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// Fills the tables of the first Columns columns, aligned to 16 bytes (all threads of the block; no barrier inside).
template <int Columns>
__device__ inline void fill_table(void* table, const int8_t* codebook) {
  uint4* to = static_cast<uint4*>(table);
  for (uint32_t i = threadIdx.x; i < Columns * kColumnTable / sizeof(uint4); i += blockDim.x) {
    const uint32_t entry = (i / 8) % tqn::kCodebookSize, column = i * sizeof(uint4) / kColumnTable;
    const uint32_t word = uint32_t(uint8_t(codebook[entry])) << (8 * column);
    to[i] = make_uint4(word, word, word, word);
  }
}

// All four columns, at an aligned place in `shared`; returns their shared address.
__device__ inline uint32_t fill_aligned_table(void* shared, const int8_t* codebook) {
  const uint32_t start = shared_address(shared), base = (start + kColumnTable - 1) / kColumnTable * kColumnTable;
  fill_table<tqn::kTileCols>(static_cast<char*>(shared) + (base - start), codebook);
  return base;
}

// A lane's view of the table, to be made after the barrier that follows fill_table (volatile: look-ups stay behind it).
__device__ inline uint32_t lane_table(uint32_t base) {
  uint32_t lane;
  asm volatile("or.b32 %0, %1, %2;" : "=r"(lane) : "r"(base), "r"((threadIdx.x % kWarp) * 4));
  return lane;
}

template <int Column>
__device__ inline uint32_t look_up(uint32_t lane_table, uint32_t index_bits) {
  uint32_t word;
  asm("ld.shared.u32 %0, [%1+%2];" : "=r"(word) : "r"((index_bits & kEntryMask) | lane_table), "n"(Column * kColumnTable));
  return word;
}

// The words of a lane with Rows rows of a tile and, for the trellis formats, the first word of the next lane's.
template <int K, int Rows = kLaneRows>
struct Codes {
  static constexpr int kOwn = Rows * tqn::kTileCols * K / 32;
  static constexpr int kWords = tqn::is_trellis(K) ? kOwn + 1 : kOwn;
  uint32_t word[kWords];
};

// Codes are read once and need no first-level cache, unless several loads take a part of every 32 bytes each: all would be fetched by all.
template <bool Whole>
__device__ inline uint4 stream_load4(const void* p) {
  uint4 v;
  if constexpr (Whole)
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  else
    asm volatile("ld.global.nc.L1::evict_first.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}
template <bool Whole>
__device__ inline uint2 stream_load2(const void* p) {
  uint2 v;
  if constexpr (Whole)
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  else
    asm volatile("ld.global.nc.L1::evict_first.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}

// Loads a lane's own words; `p` is its part of the tile (aligned to the largest power-of-two divisor of its size).
template <int K, int Rows>
__device__ inline void load_codes(const uint8_t* p, Codes<K, Rows>& codes) {
  constexpr int kOwn = Codes<K, Rows>::kOwn;
  if constexpr (kOwn % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kOwn; i += 4) {
      const uint4 v = stream_load4<kOwn == 4>(p + 4 * i);
      codes.word[i] = v.x, codes.word[i + 1] = v.y, codes.word[i + 2] = v.z, codes.word[i + 3] = v.w;
    }
  } else if constexpr (kOwn % 2 == 0) {
#pragma unroll
    for (int i = 0; i < kOwn; i += 2) {
      const uint2 v = stream_load2<kOwn == 2>(p + 4 * i);
      codes.word[i] = v.x, codes.word[i + 1] = v.y;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kOwn; i++) codes.word[i] = __ldg(reinterpret_cast<const uint32_t*>(p) + i);
  }
}

// The same from shared memory.
template <int K>
__device__ inline void load_shared_codes(uint32_t p, Codes<K>& codes) {
#pragma unroll
  for (int i = 0; i < K; i += K % 4 == 0 ? 4 : K % 2 == 0 ? 2 : 1) {
    uint32_t* w = codes.word + i;
    if constexpr (K % 4 == 0)
      asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3]) : "r"(p + 4 * i) : "memory");
    else if constexpr (K % 2 == 0)
      asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(w[0]), "=r"(w[1]) : "r"(p + 4 * i) : "memory");
    else
      asm volatile("ld.shared.u32 %0, [%1];" : "=r"(w[0]) : "r"(p + 4 * i) : "memory");
  }
}

// Fetches the next lane's first word (all lanes of the warp).
template <int K>
__device__ inline void share_codes(Codes<K>& codes) {
  if constexpr (tqn::is_trellis(K)) codes.word[K] = __shfl_sync(~0u, codes.word[0], (threadIdx.x + 4) % kWarp);
}

// 32 bits from bit `Bit` of a lane's words; windows near the end see only the bits they need.
template <int Bit, int K, int Rows>
__device__ inline uint32_t bits_from(const Codes<K, Rows>& codes) {
  constexpr int i = Bit / 32, shift = Bit % 32;
  if constexpr (shift == 0) return codes.word[i];
  if constexpr (i + 1 < Codes<K, Rows>::kWords) return __funnelshift_r(codes.word[i], codes.word[i + 1], shift);
  return codes.word[i] >> shift;
}

// The multiplier of a window in the low half of a register, its product's low bits at kEntryShift: kLowHash; of one in the upper half, by a
// dot product of the two upper bytes (only the 13 low bits count, so that 256 times the multiplier fits 16 bits): kHighHash.
inline constexpr uint32_t kHashBits = (tqn::kCodebookSize << kEntryShift) - 1;
template <int K>
inline constexpr uint32_t kLowHash = tqn::multiplier(K) << (kEntryShift - 6);
template <int K>
inline constexpr uint32_t kHighHash = kLowHash<K> | (kLowHash<K> << 8 & kHashBits) << 16;

// The codebook index of a step, shifted to kEntryShift, among noise that look_up masks. Windows 16 bits apart share one shift.
template <int Step, int K, int Rows>
__device__ inline uint32_t index_bits(const Codes<K, Rows>& codes) {
  constexpr int bit = K * Step;
  if constexpr (K == 6) {
    if constexpr (bit % 32 == 0) return codes.word[bit / 32] << kEntryShift;
    return bits_from<bit>(codes) << kEntryShift;
  } else {
    if constexpr (bit % 32 == 16 || (bit % 32 > 16 && 32 % K == 0)) return __dp2a_hi(kHighHash<K>, bits_from<bit - 16>(codes), 0u);
    return bits_from<bit>(codes) * kLowHash<K>;
  }
}

// Of a step and of the one eight later. At k = 3 their windows begin three bytes apart, at the same bit of a byte: where that is one of the
// first five, two bytes hold a window, so that one permutation of bytes and one shift serve both, and often the next pair too.
template <int Step, int K, int Rows>
__device__ inline void index_bits_of_two(const Codes<K, Rows>& codes, uint32_t& first, uint32_t& second) {
  constexpr int byte = K * Step / 8, shift = K * Step % 8, word = byte / 4, at = byte % 4;
  if constexpr (K == 3 && shift <= 16 - tqn::kWindowBits && byte % 3 != 2) {  // in each third byte one such window begins, no two
    constexpr uint32_t bytes = at | (at + 1) << 4 | (at + 3) << 8 | (at + 4) << 12;
    const uint32_t both = __byte_perm(codes.word[word], codes.word[word + 1], bytes) >> shift;
    first = both * kLowHash<K>, second = __dp2a_hi(kHighHash<K>, both, 0u);
  } else {
    first = index_bits<Step>(codes), second = index_bits<Step + 8>(codes);
  }
}

// The four values of row `Row` (0 .. 7) of a lane's rows, one a byte.
template <int K, int Row>
__device__ inline uint32_t decode_row(const Codes<K>& codes, uint32_t table) {
  if constexpr (K == 8) {
    return codes.word[Row];
  } else {
    const uint32_t low = look_up<0>(table, index_bits<4 * Row>(codes)) | look_up<1>(table, index_bits<4 * Row + 1>(codes));
    return low | look_up<2>(table, index_bits<4 * Row + 2>(codes)) | look_up<3>(table, index_bits<4 * Row + 3>(codes));
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
