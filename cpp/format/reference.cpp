#include "format/reference.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>
#include <vector>

#include "format/codebooks.h"
#include "format/search.h"

namespace tq::reference {

using tqn::kCodebookSize, tqn::kStates, tqn::kTileCols, tqn::kTileRows, tqn::kTileSteps;

std::span<const int8_t> default_codebook(int k) {
  switch (k) {
    case 1:
      return tqn::kCodebook1;
    case 2:
      return tqn::kCodebook2;
    case 3:
      return tqn::kCodebook3;
    case 4:
      return tqn::kCodebook4;
    case 6:
      return tqn::kCodebook6;
    default:
      return {};
  }
}

float default_unit(int k) { return tqn::default_unit(k); }

std::string codebook_fault(int k, const int8_t* codebook) {
  const auto entry_is = [&](int i) { return "codebook[" + std::to_string(i) + "] is " + std::to_string(codebook[i]); };
  const int size = tqn::codebook_size(k), largest = tqn::largest_entry(k);
  for (int i = 0; tqn::is_trellis(k) && i < size; i++)
    if (codebook[i] < 0 || codebook[i] > largest) return entry_is(i) + ", must be in [0, " + std::to_string(largest) + "]";
  if (tqn::is_trellis(k)) return "";
  for (int i = 1; i < size; i++)
    if (codebook[i] < codebook[i - 1]) return "codebook is not sorted at entry " + std::to_string(i);
  for (int i = 0, j = size - 1; i < j; i++, j--)
    if (codebook[i] != -codebook[j]) return entry_is(i) + ", " + entry_is(j) + ": must be negatives of each other";
  return "";
}

namespace {

float weight_of(const float* row_weight, int step) { return row_weight ? row_weight[tqn::row_of_step(step)] : 1; }

// The search walks the circle from the last step to the first, so that new bits enter at the window's low end: the state of step t - 1 is
// (state << k | new bits) mod 4096. Of states with equal costs the first by (state mod 2^(12 - k), state) wins, so that the result is one
// and the same everywhere.
class Viterbi {
 public:
  Viterbi(int k, const int8_t* codebook) : k_(k), overlaps_(kStates >> k), cost_(kStates), next_(kStates) {
    for (int s = 0; s < kStates; s++) value_.push_back(tqn::window_value(k, uint32_t(s), codebook));
  }

  // Best path over x, in search order; start and end: the overlap that the first and the last state must share with their neighbours
  // outside, or -1 where free.
  std::vector<int> search(std::span<const tqn::StepCost> x, int start, int end) {
    back_.assign(x.size() * overlaps_, 0);
    for (int s = 0; s < kStates; s++) cost_[s] = (start >= 0 && s >> k_ != start ? tqn::kUnreachable : 0) + x[0].of(value_[s]);
    for (size_t t = 1; t < x.size(); t++) step(x[t], &back_[t * overlaps_]);
    return trace(x.size(), best_end(end));
  }

 private:
  int best_of(int overlap) const {
    int best = overlap;
    for (int s = overlap; s < kStates; s += overlaps_)
      if (cost_[s] < cost_[best]) best = s;
    return best;
  }

  void step(const tqn::StepCost& x, uint8_t* back) {
    for (int u = 0; u < overlaps_; u++) {
      const int best = best_of(u);
      back[u] = uint8_t(best / overlaps_);
      for (int s = u << k_; s < (u + 1) << k_; s++) next_[s] = cost_[best] + x.of(value_[s]);
    }
    cost_.swap(next_);
  }

  int best_end(int end) const {
    int best = best_of(end < 0 ? 0 : end);
    for (int u = 1; u < overlaps_ && end < 0; u++)
      if (const int s = best_of(u); cost_[s] < cost_[best]) best = s;
    return best;
  }

  std::vector<int> trace(size_t steps, int state) const {
    std::vector<int> path(steps);
    for (size_t t = steps; t-- > 0;) {
      path[t] = state;
      state = back_[t * overlaps_ + (state >> k_)] * overlaps_ + (state >> k_);
    }
    return path;
  }

  int k_, overlaps_;
  std::vector<int> value_;  // (states)
  std::vector<int32_t> cost_, next_;
  std::vector<uint8_t> back_;  // (steps, overlaps) branch taken into each group of states that share an overlap
};

void put_bits(uint8_t* tile, int k, int start, uint32_t value) {
  for (int i = start; i < start + k; i++, value >>= 1) tile[tqn::place_of_byte(k, i >> 3)] |= uint8_t((value & 1) << (i & 7));
}

void encode_trellis(const float* x, int k, const int8_t* codebook, uint8_t* tile, const float* row_weight) {
  Viterbi viterbi(k, codebook);
  std::vector<tqn::StepCost> order, turned(kTileSteps);
  for (int t = kTileSteps - 1; t >= 0; t--) order.push_back(tqn::step_cost(k, x[t], weight_of(row_weight, t)));
  std::rotate_copy(order.begin(), order.begin() + kTileSteps / 2, order.end(), turned.begin());
  const int overlap = viterbi.search(turned, -1, -1)[kTileSteps / 2] >> k;
  const std::vector<int> path = viterbi.search(order, overlap, overlap);
  for (int t = 0; t < kTileSteps; t++) put_bits(tile, k, k * t, uint32_t(path[kTileSteps - 1 - t]) & ((1u << k) - 1));
}

int nearest(float x, const int8_t* codebook) {  // the codebook is sorted; of equals the first
  const int8_t* end = codebook + kCodebookSize;
  const int8_t* above = std::lower_bound(codebook, end, x);
  if (above == codebook) return 0;
  const bool below = above == end || x - above[-1] <= *above - x;
  return int(std::lower_bound(codebook, end, below ? above[-1] : *above) - codebook);
}

}  // namespace

double encode_tile(const float* x, int k, const int8_t* codebook, uint8_t* tile, const float* row_weight) {
  std::fill(tile, tile + tqn::tile_bytes(k), uint8_t(0));
  if (tqn::is_trellis(k))
    encode_trellis(x, k, codebook, tile, row_weight);
  else
    for (int t = 0; t < kTileSteps; t++)
      put_bits(tile, k, k * t, k == 6 ? uint32_t(nearest(x[t], codebook)) : uint8_t(int(std::nearbyint(std::clamp(x[t], -127.f, 127.f)))));
  double error = 0;
  for (int t = 0; t < kTileSteps; t++) {
    const double d = double(x[t]) - tqn::value(tile, k, t, codebook);
    error += d * d * weight_of(row_weight, t);
  }
  return error;
}

void decode_tile(const uint8_t* tile, int k, const int8_t* codebook, int8_t* values) {
  for (int t = 0; t < kTileSteps; t++) values[t] = int8_t(tqn::value(tile, k, t, codebook));
}

void rotation_signs(uint64_t seed, int64_t n, float* signs) {
  tqn::SplitMix64 stream{seed};
  uint64_t word = 0;
  for (int64_t j = 0; j < n; j++) {
    if (j % 64 == 0) word = stream.next();
    signs[j] = word >> (j % 64) & 1 ? -1.f : 1.f;
  }
}

namespace {

// x <- (I (x) T (x) I_stride) x for the orthonormal Hartley matrix T of q: cos + sin of 2 pi i j / q.
void hartley(double* x, int64_t n, int64_t q, int64_t stride) {
  std::vector<double> cas(q), in(q);
  for (int64_t i = 0; i < q; i++) {
    const double angle = 2 * std::numbers::pi * double(i) / double(q);
    cas[i] = (std::cos(angle) + std::sin(angle)) / std::sqrt(double(q));
  }
  for (int64_t base = 0; base < n; base += q * stride)
    for (int64_t s = base; s < base + stride; s++) {
      for (int64_t j = 0; j < q; j++) in[j] = x[s + j * stride];
      for (int64_t i = 0; i < q; i++) {
        double sum = 0;
        for (int64_t j = 0; j < q; j++) sum += cas[i * j % q] * in[j];
        x[s + i * stride] = sum;
      }
    }
}

void mix(double* x, int64_t n) {
  int64_t stride = 1, rest = n;
  for (; rest % 2 == 0; rest /= 2, stride *= 2)
    for (int64_t i = 0; i < n; i++)
      if (!(i & stride)) {
        const double a = x[i], b = x[i + stride];
        x[i] = (a + b) * std::numbers::sqrt2 / 2;
        x[i + stride] = (a - b) * std::numbers::sqrt2 / 2;
      }
  for (int64_t q = 3; rest > 1; q += 2)
    for (; rest % q == 0; rest /= q, stride *= q) hartley(x, n, q, stride);
}

}  // namespace

void rotate(double* x, int64_t n, uint64_t seed, bool inverse) {
  std::vector<float> signs(n);
  rotation_signs(seed, n, signs.data());
  if (inverse) mix(x, n);
  for (int64_t j = 0; j < n; j++) x[j] *= signs[j];
  if (!inverse) mix(x, n);
}

int8_t code(const TqnMatrix& w, int64_t row, int64_t col) {
  const uint8_t* tile = w.codes + tqn::tile_offset(uint64_t(row / kTileRows), uint64_t(col / kTileCols), uint64_t(w.n_in), w.k);
  return int8_t(tqn::value(tile, w.k, tqn::step_of(int(row % kTileRows), int(col % kTileCols)), w.codebook));
}

namespace {

double weight_scale(const TqnMatrix& w, int64_t row) { return double(w.scale) * f16_to_f32(w.row_scale[row]); }

std::vector<double> rotated(const TqnMatrix& w, const float* x) {
  std::vector<double> out(x, x + w.n_in);
  if (w.rotation != Rotation::none) rotate(out.data(), w.n_in, w.seed, false);
  return out;
}

double outlier_dot(const Outliers& s, int64_t row, const float* x) {
  double sum = 0;
  if (s.count)
    for (int64_t i = s.ptr[row]; i < s.ptr[row + 1]; i++) sum += double(f16_to_f32(s.val[i])) * x[s.col(i)];
  return sum;
}

}  // namespace

void decode_row(const TqnMatrix& w, int64_t row, double* out) {
  for (int64_t j = 0; j < w.n_in; j++) out[j] = weight_scale(w, row) * code(w, row, j);
  if (w.rotation != Rotation::none) rotate(out, w.n_in, w.seed, true);
  if (w.outliers.count)
    for (int64_t i = w.outliers.ptr[row]; i < w.outliers.ptr[row + 1]; i++) out[w.outliers.col(i)] += f16_to_f32(w.outliers.val[i]);
}

void accumulate(const TqnMatrix& w, const int8_t* a, int32_t* acc) {
  for (int64_t i = 0; i < w.n_out; i++) {
    acc[i] = 0;
    for (int64_t j = 0; j < w.n_in; j++) acc[i] += code(w, i, j) * a[j];
  }
}

void matvec(const TqnMatrix& w, const float* x, double* y) {
  const std::vector<double> r = rotated(w, x);
  for (int64_t i = 0; i < w.n_out; i++) {
    double sum = 0;
    for (int64_t j = 0; j < w.n_in; j++) sum += code(w, i, j) * r[j];
    y[i] = weight_scale(w, i) * sum + outlier_dot(w.outliers, i, x);
  }
}

void matvec_int8(const TqnMatrix& w, const float* x, double* y) {
  const std::vector<double> r = rotated(w, x);
  float top = 0;
  for (double v : r) top = std::max(top, std::fabs(float(v)));
  const float s = top / tqn::kActivationMax;
  std::vector<int8_t> a(w.n_in);
  for (int64_t j = 0; j < w.n_in; j++) a[j] = s > 0 ? int8_t(std::clamp(std::nearbyint(float(r[j]) / s), -127.f, 127.f)) : int8_t(0);
  std::vector<int32_t> acc(w.n_out);
  accumulate(w, a.data(), acc.data());
  for (int64_t i = 0; i < w.n_out; i++) y[i] = weight_scale(w, i) * s * acc[i] + outlier_dot(w.outliers, i, x);
}

}  // namespace tq::reference
