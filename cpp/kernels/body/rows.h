// Single rows of matrices, as embeddings need them.
#pragma once
#include "kernels/body/dispatch.h"
#include "kernels/body/elements.h"
#include "kernels/body/rotation.h"

namespace tq::kernels::TQ_ISA_NAMESPACE {

inline void tqn_row(const TqnMatrix& w, const RotationPlan* plan, int64_t row, float* out) {
  const int64_t strip = row / tqn::kTileRows;
  const int in_tile = int(row % tqn::kTileRows);
  const float factor = w.scale * f16_value(w.row_scale[row]);
  with_format(w.k, [&](auto format) {
    const uint8_t* tile = w.codes + strip * int64_t(tqn::strip_bytes(w.n_in, format.k));
    for (int64_t c = 0; c < w.n_in; c += tqn::kTileCols, tile += tqn::tile_bytes(format.k))
      for (int j = 0; j < tqn::kTileCols; j++)
        out[c + j] = factor * float(tqn::value(tile, format.k, tqn::step_of(in_tile, j), w.codebook));
  });
  if (plan) rotate_inverse(*plan, out, out);
  const Outliers& s = w.outliers;
  if (s.count == 0) return;
  for (int64_t i = s.ptr[row]; i < s.ptr[row + 1]; i++) out[s.col(i)] += f16_value(s.val[i]);
}

inline void dense_row(const DenseMatrix& w, int64_t row, float* out) {
  with_element(w.type, [&](auto element) {
    const auto* data = static_cast<const typename decltype(element)::Type*>(w.data) + row * w.n_in;
    for (int64_t c = 0; c < w.n_in; c++) out[c] = element.value(data[c]);
  });
}

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
