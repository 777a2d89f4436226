// Linear layers on float activations. Packed matrices: blocks of columns are decoded into a float panel, (columns, 64 rows), and multiplied
// as outer products. Unquantized matrices: dot products of kDotRows rows by a few tokens, vectorized along the columns, so nothing is
// packed.
#pragma once
#include "kernels/body/epilogue.h"

namespace tq::kernels::TQ_ISA_NAMESPACE {

inline constexpr int kFloatTiles = 32;  // of a panel: 128 columns, 32 KiB

inline void store_columns(Row w, float* p) {
  store(p, column<0>(w));
  store(p + tqn::kTileRows, column<1>(w));
  store(p + 2 * tqn::kTileRows, column<2>(w));
  store(p + 3 * tqn::kTileRows, column<3>(w));
}

template <int K>
void decode_float_panel(const uint8_t* codes, const int8_t* codebook, int64_t n_tiles, float* panel) {
  const Decoder<K> decode(codebook);
  for (int64_t tile = 0; tile < n_tiles; tile++, codes += tqn::tile_bytes(K), panel += tqn::kTileSteps)
#pragma GCC unroll 16
    for (int g = 0; g < tqn::kTileRows / kLanes; g += kTogether) {
      Row w[kTogether];
      decode(codes, g, w);
      for (int i = 0; i < kTogether; i++) store_columns(w[i], panel + (g + i) * kLanes);
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
  alignas(64) float sums[kPanelTokens * tqn::kTileRows];
  const int64_t n_tiles = tqn::tiles_per_strip(w.n_in);
  for (int64_t strip = first; strip < last; strip++) {
    const StripOutput out(w, strip, x, alpha, add, y, ldy);
    for (int64_t tile = 0; tile < n_tiles; tile += kFloatTiles) {
      const int64_t count = n_tiles - tile < kFloatTiles ? n_tiles - tile : kFloatTiles;
      const uint8_t* codes = w.codes + tqn::tile_offset(strip, tile, w.n_in, w.k);
      with_format(w.k, [&](auto format) { decode_float_panel<format.k>(codes, w.codebook, count, panel); });
      for_token_groups<kPanelTokens>(x.n_tokens, [&](auto group, int64_t t) {
        float_panel<group.size>(panel, 4 * count, x.rotated + t * w.n_in + 4 * tile, w.n_in, sums);
        for (int j = 0; j < group.size; j++) {
          with_format(w.k, [&](auto format) { restore_rows<format.k>(sums + j * tqn::kTileRows); });
          out.write_float(t + j, sums + j * tqn::kTileRows, tile == 0);
        }
      });
    }
    out.add_outliers();
  }
}

// Elements of an unquantized matrix as floats.
struct ElementF32 {
  using Type = float;
  static F32 load(const float* p) { return TQ_ISA_NAMESPACE::load(p); }
  static float value(float x) { return x; }
};
struct ElementF16 {
  using Type = uint16_t;
  static F32 load(const uint16_t* p) { return load_f16(p); }
  static float value(uint16_t x) { return f16_value(x); }
};
struct ElementBF16 {
  using Type = uint16_t;
  static F32 load(const uint16_t* p) { return load_bf16(p); }
  static float value(uint16_t x) { return bf16_value(x); }
};
template <class F>
inline void with_element(DType type, const F& f) {
  if (type == DType::f32) return f(ElementF32{});
  if (type == DType::f16) return f(ElementF16{});
  f(ElementBF16{});
}

inline constexpr int64_t kDotCols = 2048;         // columns of a block
inline constexpr int64_t kDotBytes = 512 * 1024;  // of activations that stay in L2

// y (T, R) += alpha * W x^T over n columns; w: R rows ldw apart.
template <class Element, int R, int T>
void dot_block(const typename Element::Type* w, int64_t ldw, const float* x, int64_t ldx, int64_t n, float alpha, float* y, int64_t ldy) {
  F32 acc[R][T];
  for (auto& row : acc)
    for (auto& lane : row) lane = set1(0);
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) {
    F32 v[R];
    for (int r = 0; r < R; r++) v[r] = Element::load(w + r * ldw + c);
    for (int t = 0; t < T; t++) {
      const F32 u = load(x + t * ldx + c);
      for (int r = 0; r < R; r++) acc[r][t] = fma(v[r], u, acc[r][t]);
    }
  }
  for (int t = 0; t < T; t++)
    for (int r = 0; r < R; r++) {
      float total = sum(acc[r][t]);
      for (int64_t i = c; i < n; i++) total += Element::value(w[r * ldw + i]) * x[t * ldx + i];
      y[t * ldy + r] += alpha * total;
    }
}

template <class Element, int R>
void dot_rows(const typename Element::Type* w, int64_t ldw, const float* x, int64_t ldx, int64_t n_tokens, int64_t n, float alpha, float* y,
              int64_t ldy) {
  for_token_groups<kPanelTokens>(
      n_tokens, [&](auto group, int64_t t) { dot_block<Element, R, group.size>(w, ldw, x + t * ldx, ldx, n, alpha, y + t * ldy, ldy); });
}

// One block of columns and tokens for all rows.
template <class Element>
void dense_block(const typename Element::Type* w, int64_t rows, int64_t n_in, const float* x, int64_t n_tokens, int64_t n, float alpha,
                 float* y, int64_t ldy) {
  int64_t r = 0;
  for (; r + kPanelRegisters <= rows; r += kPanelRegisters)
    dot_rows<Element, kPanelRegisters>(w + r * n_in, n_in, x, n_in, n_tokens, n, alpha, y + r, ldy);
  for (; r < rows; r++) dot_rows<Element, 1>(w + r * n_in, n_in, x, n_in, n_tokens, n, alpha, y + r, ldy);
}

inline void linear_dense(const DenseMatrix& w, int64_t first, int64_t last, const float* x, int64_t n_tokens, float alpha, bool add,
                         float* y, int64_t ldy) {
  const int64_t n_in = w.n_in, cols = n_in < kDotCols ? n_in : kDotCols, group = kDotBytes / (4 * cols);
  for (int64_t t = 0; t < n_tokens && !add; t++)
    for (int64_t r = first; r < last; r++) y[t * ldy + r] = 0;
  with_element(w.type, [&](auto element) {
    const auto* data = static_cast<const typename decltype(element)::Type*>(w.data) + first * n_in;
    for (int64_t t = 0; t < n_tokens; t += group)
      for (int64_t c = 0; c < n_in; c += cols)
        dense_block<decltype(element)>(data + c, last - first, n_in, x + t * n_in + c, n_tokens - t < group ? n_tokens - t : group,
                                       n_in - c < cols ? n_in - c : cols, alpha, y + t * ldy + first, ldy);
  });
}

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
