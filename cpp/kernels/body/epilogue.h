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
    const F32 act_scale = set1(x_.scale[t]);
    write(t, add_, [=, this](int r) { return to_f32(load_i32(acc + r)) * load(scale_ + r) * act_scale; });
  }

  // The same for sums of the float path; the first block of columns of a row starts y, the others add to it.
  void write_float(int64_t t, const float* sums, bool first_block) const {
    write(t, add_ || !first_block, [=, this](int r) { return load(sums + r) * load(scale_ + r); });
  }

  // y_t += alpha * S x_t
  void add_outliers() const {
    if (w_.outliers.count == 0) return;
    if (x_.blocked)
      for (int64_t t = 0; t < x_.n_tokens; t += kTokenBlock) add_outliers_block(t);
    else
      for (int64_t t = 0; t < x_.n_tokens; t++) add_outliers_token(t);
  }

 private:
  // value(r): kLanes rows from row r on. A strip's absent rows go through a copy.
  template <class Value>
  void write(int64_t t, bool add, const Value& value) const {
    float* y = y_ + t * ldy_;
    alignas(64) float copy[tqn::kTileRows] = {};
    const bool whole = rows_ == tqn::kTileRows;
    for (int r = 0; r < rows_ && !whole; r++) copy[r] = y[r];
    float* to = whole ? y : copy;
    for (int r = 0; r < tqn::kTileRows; r += kLanes) store(to + r, add ? load(to + r) + value(r) : value(r));
    for (int r = 0; r < rows_ && !whole; r++) y[r] = copy[r];
  }

  // Sixteen tokens: a vector of tokens for each outlier.
  void add_outliers_block(int64_t t) const {
    constexpr int kVectors = kTokenBlock / kLanes;
    const Outliers& s = w_.outliers;
    const float* x = x_.blocked + t * x_.n_in;
    alignas(64) float sums[tqn::kTileRows][kTokenBlock];
    for (int r = 0; r < rows_; r++) {
      F32 acc[kVectors];
      for (auto& lane : acc) lane = set1(0);
      for (int64_t i = s.ptr[first_row_ + r]; i < s.ptr[first_row_ + r + 1]; i++) {
        const F32 value = set1(f16_value(s.val[i]));
        const float* column = x + s.col(i) * kTokenBlock;
        for (int v = 0; v < kVectors; v++) acc[v] = fma(value, load(column + v * kLanes), acc[v]);
      }
      for (int v = 0; v < kVectors; v++) store(sums[r] + v * kLanes, acc[v] * set1(alpha_));
    }
    const int64_t count = x_.n_tokens - t < kTokenBlock ? x_.n_tokens - t : kTokenBlock;
    for (int64_t j = 0; j < count; j++)
      for (int r = 0; r < rows_; r++) y_[(t + j) * ldy_ + r] += sums[r][j];
  }

  // One token: products of all the strip's outliers first, without a branch at the rows' ends, then the sums of the rows.
  void add_outliers_token(int64_t t) const {
    const Outliers& s = w_.outliers;
    const float* x = x_.plain + t * x_.n_in;
    float* y = y_ + t * ldy_;
    float products[kProducts + kLanes];
    int64_t start = 0, end = 0;  // outliers whose products are there
    for (int r = 0; r < rows_; r++) {
      const int64_t first = s.ptr[first_row_ + r], last = s.ptr[first_row_ + r + 1];
      float total = 0;
      for (int64_t i = first; i < last; i = last < end ? last : end) {
        if (i >= end) {
          start = i, end = s.ptr[first_row_ + rows_] - i < kProducts ? s.ptr[first_row_ + rows_] : i + kProducts;
          multiply_outliers(x, start, end, products);
        }
        total += sum_of(products + (i - start), (last < end ? last : end) - i);
      }
      y[r] += alpha_ * total;
    }
  }
  void multiply_outliers(const float* x, int64_t i, int64_t end, float* products) const {
    const Outliers& s = w_.outliers;
    if (s.col16)
      for (; i + kLanes <= end; i += kLanes, products += kLanes) store(products, gather(x, s.col16 + i) * load_f16(s.val + i));
    for (; i < end; i++) *products++ = x[s.col(i)] * f16_value(s.val[i]);
    store(products, set1(0));
  }
  // kLanes numbers may be read past the last one.
  static float sum_of(const float* p, int64_t n) {
    const F32 lanes = lane_numbers();
    F32 acc = set1(0);
    for (int64_t i = 0; i < n; i += kLanes) acc = acc + select_less(lanes, set1(float(n - i)), load(p + i), set1(0));
    return sum(acc);
  }
  static constexpr int kProducts = 1024;

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
