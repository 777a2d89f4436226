// Linear layers on int8 activations: codes are decoded into bytes (four columns of kLanes rows to a register), multiplied as 4-way dot
// products and summed in int32 over the whole row. Few tokens multiply straight from the decoder's registers; many tokens share a decoded
// panel in cache. Where a dot product has only 16-bit pair sums (vpmaddubsw), the trellis formats' values are so small that the sums of
// kChain tiles fit before they are widened.
#pragma once
#include "kernels/body/decode.h"
#include "kernels/body/epilogue.h"

namespace tq::kernels::TQ_ISA_NAMESPACE {

inline constexpr int kRows = tqn::kTileRows;
inline constexpr int kPanelTiles = 256;  // decoded at a time: a share of L2
static_assert(kPanelTiles % kPanelSide == 0 && kPanelTiles % kSide == 0 && (kPanelSide == 1 || kOffset == 0), "what the kernels assume");
static_assert(int64_t(tqn::kMaxInputs) * 255 * tqn::kActivationMax < (int64_t(1) << 31), "offset operands fit int32 accumulators");

// Tiles whose pair sums fit 16 bits; 1 where the dot product sums in 32.
template <int K>
inline constexpr int kChain = kPairSums && tqn::is_trellis(K) ? 32767 / (2 * 2 * tqn::largest_entry(K) * tqn::kActivationMax) : 1;

// Tokens and columns up to whole operands of the panel kernels.
inline int64_t whole_operands(int64_t n_tokens) { return (n_tokens + kPanelSide - 1) / kPanelSide * kPanelSide; }
inline int64_t operand_width(int64_t n_in) {
  constexpr int64_t columns = kPanelSide * tqn::kTileCols;
  return (n_in + columns - 1) / columns * columns;
}

// Scratch: the panel, each token's sum of activations, int32 accumulators (n_tokens, 64), and the activations where panels want them
// arranged.
struct Int8Scratch {
  int8_t* panel;
  int32_t* sum;
  int32_t* acc;
  int8_t* arranged;
  Int8Scratch(void* scratch, int64_t n_tokens)
      : panel(static_cast<int8_t*>(scratch)),
        sum(reinterpret_cast<int32_t*>(panel + kPanelTiles * kTileValues)),
        acc(sum + (n_tokens + 15) / 16 * 16),
        arranged(reinterpret_cast<int8_t*>(acc + whole_operands(n_tokens) * kRows)) {}
  static int64_t bytes(int64_t n_in, int64_t n_tokens) {
    const int64_t arranged = kPanelSide == 1 ? 0 : whole_operands(n_tokens) * operand_width(n_in);
    return kPanelTiles * kTileValues + (n_tokens + 15) / 16 * 64 + whole_operands(n_tokens) * kRows * 4 + arranged;
  }
};

// The sums of a strip over kSide tiles side by side, for one token.
template <int K>
class StripSums {
 public:
  StripSums() {
    each([&](I32& sum, Pairs& pairs) { sum = set1_i32(0), pairs = no_pairs(); });
  }
  template <int R, int H, class W>
  TQ_INLINE void add(Step<R, H>, W w, Acts x) {
    for (int i = 0; i < kParts; i++) {
      I32& sum = sums_[R * kHalves + H][i];
      Pairs& pairs = pairs_[R * kHalves + H][i];
      if constexpr (kChain<K> > 1)
        pairs = add_pairs(pairs, part(w, i), x);
      else if constexpr (tqn::is_trellis(K))
        sum = small_dot(sum, part(w, i), x);
      else
        sum = dot(sum, part(w, i), x);
    }
  }
  void widen() {
    if constexpr (kChain<K> > 1) each([](I32& sum, Pairs& pairs) { sum = add_widened(sum, pairs), pairs = no_pairs(); });
  }
  // acc (64): each row's sum + start
  void store(int32_t start, int32_t* acc) const {
    for (int r = 0; r < kRegisters; r++) store_sums(acc + r * (kRows / kRegisters), sums_[r], start);
  }

 private:
  static constexpr int kRegisters = tqn::kLaneSteps * kHalves;
  template <class F>
  void each(const F& f) {
    for (int r = 0; r < kRegisters; r++)
      for (int i = 0; i < kParts; i++) f(sums_[r][i], pairs_[r][i]);
  }
  I32 sums_[kRegisters][kParts];
  Pairs pairs_[kRegisters][kParts];
};

// acc (T, 64) = strip * a_t, where `sum` holds the tokens' sums of activations.
template <int K, int T>
void gemv_strip(const uint8_t* codes, const int8_t* codebook, int64_t n_tiles, const int8_t* a, int64_t n_in, const int32_t* sum,
                int32_t* acc) {
  const Decoder<K> decode(codebook);
  StripSums<K> sums[T];
  const auto multiply = [&](int64_t tile) TQ_INLINE {
    const bool both = kSide == 1 || tile + 1 < n_tiles;
    Acts x[T];
    for (int t = 0; t < T; t++) x[t] = load_acts(a + t * n_in + tqn::kTileCols * tile, both);
    const uint8_t* p = codes + tile * tqn::tile_bytes(K);
    decode(p, p + (both ? tqn::tile_bytes(K) : 0), [&](auto step, auto w) TQ_INLINE {
      for (int t = 0; t < T; t++) sums[t].add(step, w, x[t]);
    });
  };
  int64_t tile = 0;
  for (; tile + kChain<K> * kSide <= n_tiles; tile += kChain<K> * kSide) {
    for (int i = 0; i < kChain<K>; i++) multiply(tile + i * kSide);
    for (auto& s : sums) s.widen();
  }
  for (; tile < n_tiles; tile += kSide) multiply(tile);
  for (int t = 0; t < T; t++) sums[t].widen(), sums[t].store(-kDirectOffset<K> * sum[t], acc + t * kRows);
}

// The panel of the codes, (tiles, 64, 4), or pairs of tiles in the order of their operands. A missing last tile repeats its neighbour: the
// activations that meet it are zeros.
template <int K>
void decode_panel(const uint8_t* codes, const int8_t* codebook, int64_t n_tiles, int8_t* panel) {
  const Decoder<K> decode(codebook);
  if constexpr (kPanelSide == 1) return decode_tiles<K>(codes, decode, n_tiles, panel);
  for (int64_t tile = 0; tile < n_tiles; tile += kPanelSide, codes += kPanelSide * tqn::tile_bytes(K), panel += kPanelSide * kTileValues) {
    int8_t values[kPanelSide * kTileValues];
    for (int side = 0; side < kPanelSide; side++)
      decode_tiles<K>(codes + (tile + side < n_tiles ? side * tqn::tile_bytes(K) : 0), decode, 1, values + side * kTileValues);
    store_panel(panel, values);
  }
}

// The sums of kPanelRegisters registers of rows times T operands of tokens.
template <int K, int T>
class PanelSums {
 public:
  explicit PanelSums(const int32_t* acc) {
    each([&](int t, int g) { sums_[t][g] = load_i32(acc + t * kPanelSide * kRows + g * kLanes), pairs_[t][g] = no_pairs(); });
  }
  void add(int t, int g, Row w, PanelActs x) {
    if constexpr (kChain<K> > 1)
      pairs_[t][g] = add_pairs(pairs_[t][g], w, x);
    else
      sums_[t][g] = panel_dot<tqn::is_trellis(K)>(sums_[t][g], w, x);
  }
  void widen() {
    if constexpr (kChain<K> > 1)
      each([&](int t, int g) { sums_[t][g] = add_widened(sums_[t][g], pairs_[t][g]), pairs_[t][g] = no_pairs(); });
  }
  void store(int32_t* acc) const {
    each([&](int t, int g) { store_i32(acc + t * kPanelSide * kRows + g * kLanes, sums_[t][g]); });
  }

 private:
  template <class F>
  static void each(const F& f) {
    for (int t = 0; t < T; t++)
      for (int g = 0; g < kPanelRegisters; g++) f(t, g);
  }
  I32 sums_[T][kPanelRegisters];
  Pairs pairs_[T][kPanelRegisters];
};

// acc (T operands) += panel * a: T operands of tokens by kPanelRegisters registers of rows at a time; an operand's tokens are side by side.
template <int K, int T>
void gemm_panel(const int8_t* panel, int64_t n_tiles, const int8_t* a, int64_t width, int32_t* acc) {
  for (int first = 0; first < kPanelSide * kRows / kLanes; first += kPanelRegisters, acc += kPanelRegisters * kLanes) {
    PanelSums<K, T> sums(acc);
    const int8_t* p = panel + first * kRowBytes;
    const auto multiply = [&](int64_t tile) TQ_INLINE {
      Row w[kPanelRegisters];
      for (int g = 0; g < kPanelRegisters; g++) w[g] = load_row(p + tile * kTileValues + g * kRowBytes);
      for (int t = 0; t < T; t++) {
        const PanelActs x = panel_acts(a + kPanelSide * (t * width + tqn::kTileCols * tile));
        for (int g = 0; g < kPanelRegisters; g++) sums.add(t, g, w[g], x);
      }
    };
    int64_t tile = 0;
    for (; tile + kChain<K> * kPanelSide <= n_tiles; tile += kChain<K> * kPanelSide) {
      for (int i = 0; i < kChain<K>; i++) multiply(tile + i * kPanelSide);
      sums.widen();
    }
    for (; tile < n_tiles; tile += kPanelSide) multiply(tile);
    sums.widen();
    sums.store(acc);
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
  for (int64_t i = 0; i < whole_operands(n_tokens) * kRows; i++) scratch.acc[i] = 0;
  const int64_t width = operand_width(n_tiles * tqn::kTileCols);
  for (int64_t tile = 0; tile < n_tiles; tile += kPanelTiles) {
    const int64_t count = n_tiles - tile < kPanelTiles ? n_tiles - tile : kPanelTiles;
    decode_panel<K>(codes + tile * tqn::tile_bytes(K), codebook, count, scratch.panel);
    for_token_groups<kPanelTokens>(whole_operands(n_tokens) / kPanelSide, [&](auto group, int64_t t) {
      const int8_t* x = a + kPanelSide * (t * width + tqn::kTileCols * tile);
      gemm_panel<K, group.size>(scratch.panel, count, x, width, scratch.acc + t * kPanelSide * kRows);
    });
  }
  if (kPanelSide > 1) split_tokens(scratch.acc, n_tokens);
  for (int64_t t = 0; t < n_tokens; t++)
    for (int r = 0; r < kRows; r++) scratch.acc[t * kRows + r] -= kValueOffset<K> * scratch.sum[t];
}

inline int32_t sum_of(const int8_t* a, int64_t n) {
  int32_t sum = 0;
  for (int64_t i = 0; i < n; i++) sum += a[i];
  return sum;
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
      gemv_strip<K, group.size>(codes, w.codebook, n_tiles, x.quantized + t * w.n_in, w.n_in, scratch.sum + t, scratch.acc + t * kRows);
    });
}

// Runs `finish(strip)` for each strip with its accumulators in the scratch.
template <class Finish>
void for_strips(const TqnMatrix& w, int64_t first, int64_t last, const Activations& x, const Int8Scratch& scratch, const Finish& finish) {
  for (int64_t t = 0; t < x.n_tokens; t++) scratch.sum[t] = sum_of(x.quantized + t * w.n_in, w.n_in);
  const int8_t* arranged = x.n_tokens <= (w.k == 4 ? kRepeatedTokens : kDirectTokens) ? nullptr : arrange(x, scratch.arranged);
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
