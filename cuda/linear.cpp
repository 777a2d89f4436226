#include "linear.h"

#include <algorithm>
#include <utility>

#include "gemm_hopper.h"

namespace tq::cuda {
namespace {

constexpr int kGemvRows = 2 * kGemvTokens;              // up to this many rows, gemv in turns beats expanding the weights
constexpr int64_t kExpandedBytes = int64_t(128) << 20;  // weights expanded at a time
constexpr int kFloatRows = 8;                           // up to this many rows, dense matrices are read once by float dot products

constexpr int kTileStrips = kWeightTile / tqn::kTileRows;

// Strips whose expanded values fit the scratch, whole tiles of them.
int strips_at_once(const PackedView& m) {
  const int64_t tile = round_up(m.n_in, kRowAlign) * kWeightTile, tiles = (m.strips + kTileStrips - 1) / kTileStrips;
  return int(std::clamp<int64_t>(kExpandedBytes / tile, 1, tiles)) * kTileStrips;
}

int64_t expanded_bytes(const PackedView& m) { return round_up(m.n_in, kRowAlign) * tqn::kTileRows * strips_at_once(m); }

// Rows from `first` on.
OutputView part(const OutputView& out, int first) {
  OutputView p = out;
  p.y += first * out.ldy;
  return p;
}

bool same_form(const CudaMatrix& a, const CudaMatrix& b) { return a.packed == b.packed && a.rotation == b.rotation; }

}  // namespace

bool LinearRunner::wants_half(const CudaMatrix& m, int rows) const {
  return !m.packed && !float_path() && rows > kFloatRows && m.dense.element != Element::f32;
}

bool LinearRunner::wants_plain(const CudaMatrix& m, int rows) const {
  return m.packed ? m.tqn.outliers.ptr != nullptr : !wants_half(m, rows);
}

void Workspace::reserve_quantized(int n_in, int64_t rows) {
  InputView in;
  in.n_in = n_in;
  quantized.reserve(rows * in.quantized_stride() + kRowAlign * 64);
  scale.reserve(rows * 4);
  vectors.reserve(rows * input_scratch_floats(n_in) * 4);
}

void LinearRunner::reserve(const std::vector<const CudaMatrix*>& matrices, int64_t rows) {
  rows = round_up(rows, rows > kGemvRows ? kTokenTile : 8);
  int64_t strips = 0;
  for (const CudaMatrix* m : matrices) {
    InputView in;
    in.n_in = int(m->n_in);
    w_.plain.reserve(rows * m->n_in * 4);
    if (!m->packed) {
      w_.half.reserve(rows * in.half_stride());
      continue;
    }
    if (float_path()) w_.rotated.reserve(rows * m->n_in * 4);
    w_.reserve_quantized(in.n_in, rows);
    if (float_path() || rows > kGemvRows) w_.values.reserve(expanded_bytes(m->tqn));
    strips += m->tqn.strips;
  }
  w_.sums.reserve(strips * kGemvTokens * tqn::kTileRows * 4);
  w_.arrived.reserve(strips * 4);
}

InputView LinearRunner::dense_input(const SourceView& source, int rows, const std::vector<Target>& targets) {
  InputView in;
  in.rows = rows, in.n_in = int(targets[0].matrix->n_in);
  Element half = Element::f16;
  for (const Target& t : targets) {
    if (wants_half(*t.matrix, rows)) in.half = w_.half.as<void>(), half = t.matrix->dense.element;
    if (wants_plain(*t.matrix, rows)) in.plain = w_.plain.as<float>();
  }
  const bool as_it_lies = source.kind == LinearInput::plain && !source.rows;
  InputView filled = in;
  if (as_it_lies) in.plain = source.x, filled.plain = nullptr;
  const bool beside_packed = !filled.half && targets[0].matrix->packed;  // then packed_input() writes the plain form as well
  if (beside_packed) unwritten_ = filled.plain;
  if (!beside_packed && (filled.plain || filled.half)) prepare_input(source, {}, filled, half, w_.vectors.as<float>(), stream_);
  return in;
}

InputView LinearRunner::packed_input(const SourceView& source, int rows, const CudaMatrix& m, const float* plain) {
  InputView in;
  in.rows = rows, in.n_in = int(m.n_in), in.plain = plain;
  if (float_path())
    in.rotated = w_.rotated.as<float>();
  else
    in.quantized = w_.quantized.as<int8_t>(), in.scale = w_.scale.as<float>(), in.tiled = rows > kGemvRows && has_hopper_gemm();
  InputView filled = in;
  filled.plain = std::exchange(unwritten_, nullptr);
  prepare_input(source, rotation_of(m), filled, Element::f16, w_.vectors.as<float>(), stream_);
  return in;
}

void LinearRunner::run(const SourceView& source, int rows, const std::vector<Target>& targets) {
  std::vector<Target> left = targets;
  std::stable_partition(left.begin(), left.end(), [](const Target& t) { return t.matrix->packed; });
  const InputView shared = dense_input(source, rows, left);
  while (!left.empty()) {
    const auto split =
        std::stable_partition(left.begin(), left.end(), [&](const Target& t) { return same_form(*t.matrix, *left[0].matrix); });
    const std::vector<Target> same(left.begin(), split);
    left.erase(left.begin(), split);
    if (same[0].matrix->packed)
      multiply_packed(same, packed_input(source, rows, *same[0].matrix, shared.plain));
    else
      for (const Target& t : same) multiply_dense(t, shared);
  }
}

void LinearRunner::multiply_dense(const Target& target, const InputView& in) {
  if (wants_half(*target.matrix, in.rows))
    gemm_half(target.matrix->dense, in, target.out, stream_);
  else
    float_rows(target.matrix->dense, in.plain, in, target.out, stream_);
}

void LinearRunner::multiply_packed(const std::vector<Target>& targets, const InputView& in) {
  if (float_path() || in.rows > kGemvRows) {
    for (const Target& t : targets) multiply_many(t, in);
    return;
  }
  std::vector<Target> left = targets;
  while (!left.empty()) {
    const int k = left[0].matrix->tqn.k;
    auto split = std::stable_partition(left.begin(), left.end(), [&](const Target& t) { return t.matrix->tqn.k == k; });
    split = left.begin() + std::min<int64_t>(split - left.begin(), kMaxOutputs);
    multiply_few({left.begin(), split}, in);
    left.erase(left.begin(), split);
  }
}

void LinearRunner::multiply_few(const std::vector<Target>& targets, const InputView& in) {
  for (int first = 0; first < in.rows; first += kGemvTokens) {
    PackedProduct product;
    product.in = rows_of(in, first, std::min(in.rows - first, kGemvTokens));
    for (const Target& t : targets) product.matrix[product.count] = t.matrix->tqn, product.out[product.count++] = part(t.out, first);
    gemv(product, w_.split(), stream_);
  }
}

void LinearRunner::multiply_many(const Target& target, const InputView& in) {
  const PackedView& whole = target.matrix->tqn;
  const int at_once = strips_at_once(whole);
  for (int first = 0; first < whole.strips; first += at_once) {
    const PackedView m = slice(whole, first, std::min(at_once, whole.strips - first));
    const OutputView out = slice(target.out, first);
    int8_t* values = w_.values.as<int8_t>();
    expand(m, values, in.tiled, stream_);
    if (float_path()) {
      float_rows_packed(m, values, in, out, stream_);
      continue;
    }
    gemm_int8(m, values, in, out, stream_);
    if (m.outliers.ptr) add_outliers(m, in, out, stream_);
  }
}

}  // namespace tq::cuda
