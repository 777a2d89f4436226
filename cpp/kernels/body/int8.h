// Linear layers on int8 activations: codes are decoded into row operands (four columns of kLanes rows), multiplied as 4-way dot products
// and summed in int32 over the whole row. Few tokens multiply straight from the decoder's registers; many tokens share a decoded panel in
// cache.
#pragma once
#include "kernels/body/epilogue.h"

namespace tq::kernels::TQ_ISA_NAMESPACE {

inline constexpr int kRows = tqn::kTileRows;
inline constexpr int kRegisters = kRows / kLanes;          // row operands of a tile
inline constexpr int kPanelTiles = 256;                    // decoded at a time: a share of L2
inline constexpr int kPanelTile = kRegisters * kRowBytes;  // bytes of a decoded tile
static_assert(kPanelTiles % kPanelSide == 0 && (kPanelSide == 1 || kOffset == 0), "what the panel kernels assume");
static_assert(int64_t(tqn::kMaxInputs) * 255 * tqn::kActivationMax < (int64_t(1) << 31), "offset operands fit int32 accumulators");

// Tokens and columns up to whole operands of the panel kernels.
inline int64_t whole_operands(int64_t n_tokens) { return (n_tokens + kPanelSide - 1) / kPanelSide * kPanelSide; }
inline int64_t operand_width(int64_t n_in) {
  constexpr int64_t columns = kPanelSide * tqn::kTileCols;
  return (n_in + columns - 1) / columns * columns;
}

// Scratch: the panel, each token's starting value (it takes the operands' offset back), int32 accumulators (n_tokens, 64), and the
// activations where panels want them arranged.
struct Int8Scratch {
  int8_t* panel;
  int32_t* start;
  int32_t* acc;
  int8_t* arranged;
  Int8Scratch(void* scratch, int64_t n_tokens)
      : panel(static_cast<int8_t*>(scratch)),
        start(reinterpret_cast<int32_t*>(panel + kPanelTiles * kPanelTile)),
        acc(start + (n_tokens + 15) / 16 * 16),
        arranged(reinterpret_cast<int8_t*>(acc + whole_operands(n_tokens) * kRows)) {}
  static int64_t bytes(int64_t n_in, int64_t n_tokens) {
    const int64_t arranged = kPanelSide == 1 ? 0 : whole_operands(n_tokens) * operand_width(n_in);
    return kPanelTiles * kPanelTile + (n_tokens + 15) / 16 * 64 + whole_operands(n_tokens) * kRows * 4 + arranged;
  }
};

// acc (T, 64) = start_t + strip * a_t.
template <int K, int T>
void gemv_strip(const uint8_t* codes, const int8_t* codebook, int64_t n_tiles, const int8_t* a, int64_t n_in, const int32_t* start,
                int32_t* acc) {
  Decoder<K> decode(codebook);
  I32 sums[T][kRegisters];
  for (int t = 0; t < T; t++)
    for (auto& sum : sums[t]) sum = set1_i32(start[t]);
  for (int64_t first = 0; first < n_tiles; first += kAhead, codes += kAhead * tqn::tile_bytes(K)) {
    const int64_t count = n_tiles - first < kAhead ? n_tiles - first : kAhead;
    if constexpr (kAhead > 1) decode.prepare(codes, count);
    for (int64_t i = 0; i < count; i++) {
      Acts x[T];
      for (int t = 0; t < T; t++) x[t] = load_acts(a + t * n_in + tqn::kTileCols * (first + i));
#pragma GCC unroll 16
      for (int g = 0; g < kRegisters; g += kTogether) {
        Row w[kTogether];
        if constexpr (kAhead > 1)
          decode.prepared(i, g, w);
        else
          decode(codes, g, w);
        for (int t = 0; t < T; t++)
          for (int j = 0; j < kTogether; j++) sums[t][g + j] = (K == 8 ? dot : codebook_dot)(sums[t][g + j], w[j], x[t]);
      }
    }
  }
  for (int t = 0; t < T; t++)
    for (int g = 0; g < kRegisters; g++) store_i32(acc + t * kRows + g * kLanes, sums[t][g]);
}

// A missing last tile repeats its neighbour: the activations that meet it are zeros.
template <int K>
void decode_panel(const uint8_t* codes, const int8_t* codebook, int64_t n_tiles, int8_t* panel) {
  const Decoder<K> decode(codebook);
  for (int64_t tile = 0; tile < n_tiles; tile += kPanelSide, codes += kPanelSide * tqn::tile_bytes(K), panel += kPanelSide * kPanelTile)
#pragma GCC unroll 16
    for (int g = 0; g < kRegisters; g += kTogether) {
      Row w[kPanelSide][kTogether];
      for (int side = 0; side < kPanelSide; side++) decode(codes + (tile + side < n_tiles ? side * tqn::tile_bytes(K) : 0), g, w[side]);
      for (int i = 0; i < kTogether; i++) store_panel(panel + kPanelSide * (g + i) * kRowBytes, w, i);
    }
}

// acc (T operands) += panel * a: T operands of tokens by kPanelRegisters registers of rows at a time; an operand's tokens are side by side.
template <int T>
void gemm_panel(const int8_t* panel, int64_t n_tiles, const int8_t* a, int64_t width, int32_t* acc) {
  for (int first = 0; first < kPanelSide * kRegisters; first += kPanelRegisters, acc += kPanelRegisters * kLanes) {
    I32 sums[T][kPanelRegisters];
    for (int t = 0; t < T; t++)
      for (int g = 0; g < kPanelRegisters; g++) sums[t][g] = load_i32(acc + t * kPanelSide * kRows + g * kLanes);
    const int8_t* p = panel + first * kRowBytes;
    for (int64_t tile = 0; tile < n_tiles; tile += kPanelSide, p += kPanelSide * kPanelTile) {
      Row w[kPanelRegisters];
      for (int g = 0; g < kPanelRegisters; g++) w[g] = load_row(p + g * kRowBytes);
      for (int t = 0; t < T; t++) {
        const Acts x = panel_acts(a + kPanelSide * (t * width + tqn::kTileCols * tile));
        for (int g = 0; g < kPanelRegisters; g++) sums[t][g] = panel_dot(sums[t][g], w[g], x);
      }
    }
    for (int t = 0; t < T; t++)
      for (int g = 0; g < kPanelRegisters; g++) store_i32(acc + t * kPanelSide * kRows + g * kLanes, sums[t][g]);
  }
}

// The activations as the operands of the panel kernels: kPanelSide tokens side by side, kPanelSide * 4 columns at a time, zeros where a
// token or a column is missing. One token at a time: they lie so already.
inline const int8_t* arrange(const Activations& x, int8_t* arranged) {
  if (kPanelSide == 1) return x.quantized;
  constexpr int64_t columns = kPanelSide * tqn::kTileCols;
  const int64_t width = operand_width(x.n_in);
  for (int64_t t = 0; t < whole_operands(x.n_tokens); t++)
    for (int64_t c = 0; c < width; c += columns) {
      int8_t* to = arranged + t / kPanelSide * kPanelSide * width + kPanelSide * c + t % kPanelSide * columns;
      const int64_t left = t < x.n_tokens ? x.n_in - c : 0;
      for (int64_t i = 0; i < columns; i += tqn::kTileCols) {
        const int32_t zeros = 0;
        std::memcpy(to + i, i < left ? static_cast<const void*>(x.quantized + t * x.n_in + c + i) : &zeros, tqn::kTileCols);
      }
    }
  return arranged;
}

// The accumulators of each operand, (register, token, rows of a token), as rows of tokens.
inline void split_tokens(int32_t* acc, int64_t n_tokens) {
  constexpr int rows = kLanes / kPanelSide;
  int32_t operand[kPanelSide * kRows];
  for (int64_t t = 0; t < n_tokens; t += kPanelSide, acc += kPanelSide * kRows) {
    std::memcpy(operand, acc, sizeof operand);
    for (int i = 0; i < kPanelSide * kRows; i++) acc[i / rows % kPanelSide * kRows + i / kLanes * rows + i % rows] = operand[i];
  }
}

template <int K>
void gemm_strip(const uint8_t* codes, const int8_t* codebook, int64_t n_tiles, const int8_t* a, int64_t n_tokens,
                const Int8Scratch& scratch) {
  for (int64_t t = 0; t < whole_operands(n_tokens); t++)
    for (int r = 0; r < kRows; r++) scratch.acc[t * kRows + r] = t < n_tokens ? scratch.start[t] : 0;
  const int64_t width = operand_width(n_tiles * tqn::kTileCols);
  for (int64_t tile = 0; tile < n_tiles; tile += kPanelTiles) {
    const int64_t count = n_tiles - tile < kPanelTiles ? n_tiles - tile : kPanelTiles;
    decode_panel<K>(codes + tile * tqn::tile_bytes(K), codebook, count, scratch.panel);
    for_token_groups<kPanelTokens>(whole_operands(n_tokens) / kPanelSide, [&](auto group, int64_t t) {
      const int8_t* x = a + kPanelSide * (t * width + tqn::kTileCols * tile);
      gemm_panel<group.size>(scratch.panel, count, x, width, scratch.acc + t * kPanelSide * kRows);
    });
  }
  if (kPanelSide > 1) split_tokens(scratch.acc, n_tokens);
}

// What cancels the operands' offset: - kOffset * sum of the activations, by dot products with operands of 1.
inline int32_t starting_value(const int8_t* a, int64_t n) {
  if (kOffset == 0) return 0;
  int8_t ones[kRowBytes];
  for (int8_t& one : ones) one = 1;
  I32 sums = set1_i32(0);
  int64_t i = 0;
  for (; i + kRowBytes <= n; i += kRowBytes) sums = dot(sums, load_row(ones), load_row(a + i));
  int32_t lanes[kLanes], total = 0;
  store_i32(lanes, sums);
  for (int32_t lane : lanes) total += lane;
  for (; i < n; i++) total += a[i];
  return -kOffset * total;
}

// scratch.acc (n_tokens, 64) = strip * a_t. arranged: null where tokens are multiplied directly.
template <int K>
void accumulate_strip(const TqnMatrix& w, int64_t strip, const Activations& x, const int8_t* arranged, const Int8Scratch& scratch) {
  const uint8_t* codes = w.codes + strip * int64_t(tqn::strip_bytes(w.n_in, K));
  const int64_t n_tiles = tqn::tiles_per_strip(w.n_in);
  if (arranged)
    gemm_strip<K>(codes, w.codebook, n_tiles, arranged, x.n_tokens, scratch);
  else
    for_token_groups<kDirectTokens>(x.n_tokens, [&](auto group, int64_t t) {
      gemv_strip<K, group.size>(codes, w.codebook, n_tiles, x.quantized + t * w.n_in, w.n_in, scratch.start + t, scratch.acc + t * kRows);
    });
  for (int64_t t = 0; t < x.n_tokens; t++) restore_rows<K>(scratch.acc + t * kRows);
}

// Runs `finish(strip)` for each strip with its accumulators in the scratch.
template <class Finish>
void for_strips(const TqnMatrix& w, int64_t first, int64_t last, const Activations& x, const Int8Scratch& scratch, const Finish& finish) {
  for (int64_t t = 0; t < x.n_tokens; t++) scratch.start[t] = starting_value(x.quantized + t * w.n_in, w.n_in);
  const bool direct = x.n_tokens <= kDirectTokens && (w.k == 8 || suits_codebook_dot(w.codebook));
  const int8_t* arranged = direct ? nullptr : arrange(x, scratch.arranged);
  with_format(w.k, [&](auto format) {
    for (int64_t strip = first; strip < last; strip++) {
      accumulate_strip<format.k>(w, strip, x, arranged, scratch);
      finish(strip);
    }
  });
}

inline void linear_int8(const TqnMatrix& w, int64_t first, int64_t last, const Activations& x, float alpha, bool add, float* y, int64_t ldy,
                        void* memory) {
  const Int8Scratch scratch(memory, x.n_tokens);
  for_strips(w, first, last, x, scratch, [&](int64_t strip) {
    const StripOutput out(w, strip, x, alpha, add, y, ldy);
    for (int64_t t = 0; t < x.n_tokens; t++) out.write_int8(t, scratch.acc + t * kRows);
    out.add_outliers();
  });
}

inline void accumulate(const TqnMatrix& w, int64_t first, int64_t last, const Activations& x, int32_t* acc, int64_t ld, void* memory) {
  const Int8Scratch scratch(memory, x.n_tokens);
  for_strips(w, first, last, x, scratch, [&](int64_t strip) {
    for (int64_t t = 0; t < x.n_tokens; t++)
      for (int r = 0; r < kRows; r++) acc[t * ld + strip * kRows + r] = scratch.acc[t * kRows + r];
  });
}

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
