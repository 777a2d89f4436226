// Unquantized linear layers: dot products along the rows for few tokens, transposed panels for many.
#pragma once
#include "kernels/body/elements.h"
#include "kernels/body/float.h"
#include "kernels/body/lanes.h"

namespace tq::kernels::TQ_ISA_NAMESPACE {

inline constexpr int64_t kDotCols = 2048;   // columns of a block
inline constexpr int64_t kPackTokens = 24;  // from so many on, transposing the matrix pays
// Matrices of so many rows would leave lanes of a panel empty. As dot products their results do not depend on the number of tokens: such
// are the gates of delta nets and most routers.
inline constexpr int64_t kFewRows = tqn::kTileRows;

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
  for_token_groups<kFloatTokens>(
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

// Few tokens: dot products along the rows as they lie.
template <class Element>
void dense_dots(const typename Element::Type* w, int64_t rows, int64_t n_in, const float* x, int64_t n_tokens, float alpha, float* y,
                int64_t ldy) {
  const int64_t cols = n_in < kDotCols ? n_in : kDotCols;
  for (int64_t c = 0; c < n_in; c += cols)
    dense_block<Element>(w + c, rows, n_in, x + c, n_tokens, n_in - c < cols ? n_in - c : cols, alpha, y, ldy);
}

// panel (n_cols, 64) = the transposed block of `rows` <= 64 rows; the lanes of absent rows keep what they hold.
template <class Element>
void pack_panel(const typename Element::Type* w, int64_t rows, int64_t ldw, int64_t n_cols, float* panel) {
  int64_t r = 0;
  for (; r + kLanes <= rows; r += kLanes) {
    int64_t c = 0;
    for (; c + kLanes <= n_cols; c += kLanes) {
      F32 block[kLanes];
      for (int i = 0; i < kLanes; i++) block[i] = Element::load(w + (r + i) * ldw + c);
      transpose(block);
      for (int i = 0; i < kLanes; i++) store(panel + (c + i) * tqn::kTileRows + r, block[i]);
    }
    for (; c < n_cols; c++)
      for (int i = 0; i < kLanes; i++) panel[c * tqn::kTileRows + r + i] = Element::value(w[(r + i) * ldw + c]);
  }
  for (; r < rows; r++)
    for (int64_t c = 0; c < n_cols; c++) panel[c * tqn::kTileRows + r] = Element::value(w[r * ldw + c]);
}

// Many tokens: 64 rows at a time, as packed matrices on the float path.
template <class Element>
void dense_panels(const typename Element::Type* w, int64_t rows, int64_t n_in, const float* x, int64_t n_tokens, float alpha, float* y,
                  int64_t ldy) {
  constexpr int64_t kCols = kFloatTiles * tqn::kTileCols;
  alignas(64) float panel[kCols * tqn::kTileRows] = {};
  alignas(64) float sums[kFloatTokens * tqn::kTileRows];
  for (int64_t r = 0; r < rows; r += tqn::kTileRows)
    for (int64_t c = 0; c < n_in; c += kCols) {
      const int64_t count = rows - r < tqn::kTileRows ? rows - r : tqn::kTileRows, cols = n_in - c < kCols ? n_in - c : kCols;
      pack_panel<Element>(w + r * n_in + c, count, n_in, cols, panel);
      for_token_groups<kFloatTokens>(n_tokens, [&](auto group, int64_t t) {
        float_panel<group.size>(panel, cols, x + t * n_in + c, n_in, sums);
        for (int j = 0; j < group.size; j++)
          for (int64_t i = 0; i < count; i++) y[(t + j) * ldy + r + i] += alpha * sums[j * tqn::kTileRows + i];
      });
    }
}

inline void linear_dense(const DenseMatrix& w, int64_t first, int64_t last, const float* x, int64_t n_tokens, float alpha, bool add,
                         float* y, int64_t ldy) {
  for (int64_t t = 0; t < n_tokens && !add; t++)
    for (int64_t r = first; r < last; r++) y[t * ldy + r] = 0;
  with_element(w.type, [&](auto element) {
    using Element = decltype(element);
    const auto* data = static_cast<const typename Element::Type*>(w.data) + first * w.n_in;
    const auto multiply = n_tokens < kPackTokens || w.n_out <= kFewRows ? dense_dots<Element> : dense_panels<Element>;
    multiply(data, last - first, w.n_in, x, n_tokens, alpha, y + first, ldy);
  });
}

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
