// The end of a packed linear layer for one strip: scales, the residual and the outliers.
#pragma once
#include "kernels/body/dispatch.h"
#include "kernels/kernels.h"

namespace tq::kernels::TQ_ISA_NAMESPACE {

class StripOutput {
 public:
  StripOutput(const TqnMatrix& w, int64_t strip, const Activations& x, float alpha, bool add, float* y, int64_t ldy)
      : w_(w), x_(x), first_row_(strip * tqn::kTileRows), alpha_(alpha), add_(add), y_(y + first_row_), ldy_(ldy) {
    const int64_t left = w.n_out - first_row_;
    rows_ = left < tqn::kTileRows ? int(left) : tqn::kTileRows;
    const F32 factor = set1(alpha * w.scale);
    for (int r = 0; r < tqn::kTileRows; r += kLanes) store(scale_ + r, factor * load_f16(w.row_scale + first_row_ + r));
  }

  // y_t = (add ? y_t : 0) + alpha * scale * row_scale * act_scale_t * acc
  void write_int8(int64_t t, const int32_t* acc) const {
    alignas(64) float out[tqn::kTileRows];
    const F32 act_scale = set1(x_.scale[t]);
    for (int r = 0; r < tqn::kTileRows; r += kLanes) store(out + r, to_f32(load_i32(acc + r)) * load(scale_ + r) * act_scale);
    write(t, out, add_);
  }

  // The same for sums of the float path; the first block of columns of a row starts y, the others add to it.
  void write_float(int64_t t, const float* sums, bool first_block) const {
    alignas(64) float out[tqn::kTileRows];
    for (int r = 0; r < tqn::kTileRows; r += kLanes) store(out + r, load(sums + r) * load(scale_ + r));
    write(t, out, add_ || !first_block);
  }

  // y_t += alpha * S x_t
  void add_outliers() const {
    if (w_.outliers.count == 0) return;
    for (int r = 0; r < rows_; r++) for_token_groups<8>(x_.n_tokens, [&](auto group, int64_t t) { add_outlier_row<group.size>(r, t); });
  }

 private:
  void write(int64_t t, const float* out, bool add) const {
    float* y = y_ + t * ldy_;
    if (add)
      for (int r = 0; r < rows_; r++) y[r] += out[r];
    else
      for (int r = 0; r < rows_; r++) y[r] = out[r];
  }

  template <int T>
  void add_outlier_row(int r, int64_t t) const {
    const Outliers& s = w_.outliers;
    float sums[T] = {};
    for (int64_t i = s.ptr[first_row_ + r]; i < s.ptr[first_row_ + r + 1]; i++) {
      const float value = f16_value(s.val[i]);
      const float* x = x_.plain + t * x_.n_in + s.col(i);
      for (int j = 0; j < T; j++) sums[j] += value * x[j * x_.n_in];
    }
    for (int j = 0; j < T; j++) y_[(t + j) * ldy_ + r] += alpha_ * sums[j];
  }

  const TqnMatrix& w_;
  const Activations& x_;
  int64_t first_row_;
  int rows_;
  float alpha_;
  bool add_;
  float* y_;
  int64_t ldy_;
  alignas(64) float scale_[tqn::kTileRows];
};

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
