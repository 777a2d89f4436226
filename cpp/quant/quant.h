// Rounding weights onto TQN codes. A stage sits between rotation and encoding: plain rounding passes the rotated weights through,
// error feedback (LDLQ) changes each tile's target by the errors of the columns before it.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "format/matrix.h"

namespace tq::quant {

// Encodes single tiles; one object per thread (it owns the search's working memory). The search is vectorized for the machine at hand.
class TileEncoder {
 public:
  TileEncoder(int k, std::span<const int8_t> codebook);  // codebook: (tqn::codebook_size(k))
  ~TileEncoder();
  TileEncoder(TileEncoder&&) noexcept;
  // x: (256) targets in units of the codebook's integers, step order; tile: 32*k bytes; values: (256) the int8 reproduction, step order.
  // row_weight: (64) what a squared error counts in each row, 0 to 1, null: 1. Returns the unweighted squared error.
  float encode(const float* x, uint8_t* tile, int8_t* values, const float* row_weight = nullptr);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Codes of whole batches of trellis tiles, on a device. x: (tiles, 256) targets in units of the codebook's integers; codes: (tiles, 32 * k)
// bytes.
using BatchEncoder = std::function<void(std::span<const float> x, int k, std::span<const int8_t> codebook, std::span<uint8_t> codes)>;

struct EncodeOptions {
  int k = 4;
  std::span<const int8_t> codebook;  // empty: the default of k
  std::span<const float>
      unit_scale;  // (n_out) weight that one codebook integer stands for, per row; empty: rms(row) * unit, k = 8: max|row| / 127
  std::span<const float> feedback;  // (n_in, n_in) strictly block upper U in blocks of 4 columns (see ldlq.h); empty: plain rounding
  std::span<const int32_t> order;   // (n_in / 4) the blocks of 4 columns as they are rounded, one after the other, and as they stand in
                                    // `feedback`; empty: from the left to the right
  int threads = 0;                  // 0: all cores
  std::function<void(int64_t)> progress;      // called from the calling thread with weights done so far
  BatchEncoder batch_encoder;                 // searches the trellis formats in place of this machine's cores, where there is no feedback
  const std::atomic<bool>* cancel = nullptr;  // set: throw Error(closed) soon
};

struct Packed {
  int k = 0;
  int64_t n_out = 0, n_in = 0;
  std::vector<uint8_t> codes;
  std::vector<uint16_t> row_scale;  // (padded rows) float16
  float scale = 0;                  // finite, > 0; row_scale's maximum is 1 unless the matrix is all zero
  std::vector<int8_t> codebook;     // (tqn::codebook_size(k))
  double squared_error = 0;         // sum over the weights, in the weights' own units, of the scales as stored
};

// w: (n_out, n_in) row-major, already rotated, finite. Row scales are rounded to float16 before encoding, so that codes fit what is stored.
Packed encode(std::span<const float> w, int64_t n_out, int64_t n_in, const EncodeOptions& options);

// Codes -> scale * row_scale * c, (n_out, n_in), still rotated.
void decode(const Packed& packed, std::span<float> out, int threads = 0);

// Rows of w (rows, n): w <- w D K, the rotation of a weight row; inverse: w <- w K D.
void rotate_rows(std::span<float> w, int64_t rows, int64_t n, uint64_t seed, bool inverse, int threads = 0);

}  // namespace tq::quant
