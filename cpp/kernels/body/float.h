// Linear layers on float activations. Packed matrices: blocks of columns are decoded into a float panel, (columns, 64 rows), and multiplied
// as outer products. Unquantized matrices: dot products of kDotRows rows by a few tokens, vectorized along the columns, so nothing is
// packed.
#pragma once
#include "kernels/body/decode.h"
#include "kernels/body/epilogue.h"

namespace tq::kernels::TQ_ISA_NAMESPACE {

inline constexpr int kFloatTiles = 32;  // of a panel: 128 columns, 32 KiB

template <int Offset>
inline void store_columns(Row w, float* p) {
  store(p, column<0, Offset>(w));
  store(p + tqn::kTileRows, column<1, Offset>(w));
  store(p + 2 * tqn::kTileRows, column<2, Offset>(w));
  store(p + 3 * tqn::kTileRows, column<3, Offset>(w));
}

template <int K>
void decode_float_panel(const uint8_t* codes, const int8_t* codebook, int64_t n_tiles, float* panel) {
  const Decoder<K> decode(codebook);
  alignas(64) int8_t values[kSide * kTileValues];
  for (int64_t tile = 0; tile < n_tiles; tile++, codes += tqn::tile_bytes(K), panel += tqn::kTileSteps) {
    decode_tiles<K>(codes, decode, 1, values);
    for (int r = 0; r < tqn::kTileRows; r += kLanes) store_columns<kValueOffset<K>>(load_row(values + r * tqn::kTileCols), panel + r);
  }
}

// sums (T, 64) = panel^T x_t
template <int T>
void float_panel(const float* panel, int64_t n_cols, const float* x, int64_t n_in, float* sums) {
  for (int first = 0; first < tqn::kTileRows; first += kPanelRegisters * kLanes) {
    F32 acc[T][kPanelRegisters];
    for (auto& row : acc)
      for (auto& lane : row) lane = set1(0);
    for (int64_t c = 0; c < n_cols; c++) {
      F32 w[kPanelRegisters];
      for (int g = 0; g < kPanelRegisters; g++) w[g] = load(panel + c * tqn::kTileRows + first + g * kLanes);
      for (int t = 0; t < T; t++)
        for (int g = 0; g < kPanelRegisters; g++) acc[t][g] = fma(w[g], set1(x[t * n_in + c]), acc[t][g]);
    }
    for (int t = 0; t < T; t++)
      for (int g = 0; g < kPanelRegisters; g++) store(sums + t * tqn::kTileRows + first + g * kLanes, acc[t][g]);
  }
}

inline void linear_float(const TqnMatrix& w, int64_t first, int64_t last, const Activations& x, float alpha, bool add, float* y,
                         int64_t ldy, void*) {
  alignas(64) float panel[kFloatTiles * tqn::kTileSteps];
  alignas(64) float sums[kFloatTokens * tqn::kTileRows];
  const int64_t n_tiles = tqn::tiles_per_strip(w.n_in);
  for (int64_t strip = first; strip < last; strip++) {
    const StripOutput out(w, strip, x, alpha, add, y, ldy);
    for (int64_t tile = 0; tile < n_tiles; tile += kFloatTiles) {
      const int64_t count = n_tiles - tile < kFloatTiles ? n_tiles - tile : kFloatTiles;
      const uint8_t* codes = w.codes + tqn::tile_offset(strip, tile, w.n_in, w.k);
      with_format(w.k, [&](auto format) { decode_float_panel<format.k>(codes, w.codebook, count, panel); });
      for_token_groups<kFloatTokens>(x.n_tokens, [&](auto group, int64_t t) {
        float_panel<group.size>(panel, 4 * count, x.rotated + t * w.n_in + 4 * tile, w.n_in, sums);
        for (int j = 0; j < group.size; j++) out.write_float(t + j, sums + j * tqn::kTileRows, tile == 0);
      });
    }
    out.add_outliers();
  }
}

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
