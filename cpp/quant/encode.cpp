#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "common/error.h"
#include "common/parallel.h"
#include "common/text.h"
#include "format/reference.h"
#include "quant/isa.h"
#include "quant/quant.h"

namespace tq::quant {

using tqn::kTileCols, tqn::kTileRows, tqn::kTileSteps;

namespace {

[[noreturn]] void refuse(const std::string& what) { throw Error(Cause::invalid_argument, what); }

void require_size(const char* what, size_t found, uint64_t wanted) {
  if (found != wanted) refuse(std::string(what) + " has " + std::to_string(found) + " elements, must have " + std::to_string(wanted));
}

// Index of the first element that is not finite, or -1; most blocks pass at a glance.
int64_t first_not_finite(std::span<const float> x) {
  constexpr size_t kBlock = 1024;
  for (size_t begin = 0; begin < x.size(); begin += kBlock) {
    const auto block = x.subspan(begin, std::min(kBlock, x.size() - begin));
    int bad = 0;
    for (float v : block) bad |= !(std::fabs(v) <= std::numeric_limits<float>::max());
    if (bad)
      return int64_t(begin) + (std::find_if_not(block.begin(), block.end(), [](float v) { return std::isfinite(v); }) - block.begin());
  }
  return -1;
}

void require_finite(const char* what, std::span<const float> x, int64_t columns) {
  const int64_t i = first_not_finite(x);
  if (i < 0) return;
  refuse(std::string(what) + "[" + std::to_string(i / columns) + ", " + std::to_string(i % columns) + "] is " + number(x[size_t(i)]) +
         ", must be finite");
}

void check(std::span<const float> w, int64_t n_out, int64_t n_in, const EncodeOptions& options, tqn::PlaneBytes* bytes) {
  if (n_out < 1 || n_in < 1 || !tqn::plane_bytes(uint64_t(n_out), uint64_t(n_in), options.k, bytes))
    refuse("no TQN matrix of " + std::to_string(n_out) + " x " + std::to_string(n_in) + " at " + std::to_string(options.k) +
           " bits (n_in: multiple of 4 up to 65536; bits: " + format_list() + ")");
  require_size("w", w.size(), uint64_t(n_out) * uint64_t(n_in));
  require_finite("w", w, n_in);
  if (!options.codebook.empty()) {
    require_size("codebook", options.codebook.size(), bytes->codebook);
    if (const std::string fault = reference::codebook_fault(options.k, options.codebook.data()); !fault.empty()) refuse(fault);
  }
  if (!options.unit_scale.empty()) {
    require_size("unit_scale", options.unit_scale.size(), uint64_t(n_out));
    for (int64_t i = 0; i < n_out; i++)
      if (const float s = options.unit_scale[size_t(i)]; !std::isfinite(s) || s < 0)
        refuse("unit_scale[" + std::to_string(i) + "] is " + number(s) + ", must be finite and not negative");
  }
  if (!options.feedback.empty()) {
    require_size("feedback", options.feedback.size(), uint64_t(n_in) * uint64_t(n_in));
    require_finite("feedback", options.feedback, n_in);
  }
}

// The weight that one codebook integer stands for: what fits a Gaussian row best; for int8 what reaches the row's largest weight.
float row_unit(const float* row, int64_t n, int k) {
  double sum = 0, top = 0;
  for (int64_t j = 0; j < n; j++) sum += double(row[j]) * row[j], top = std::max(top, std::fabs(double(row[j])));
  return float(k == 8 ? top / 127 : std::sqrt(sum / double(n)) * reference::default_unit(k));
}

std::vector<float> row_units(std::span<const float> w, int64_t n_out, int64_t n_in, const EncodeOptions& options) {
  std::vector<float> units(options.unit_scale.begin(), options.unit_scale.end());
  for (int64_t i = int64_t(units.size()); i < n_out; i++) units.push_back(row_unit(&w[size_t(i * n_in)], n_in, options.k));
  // No scale may make a weight overflow; weights so small that theirs is subnormal are zero.
  constexpr float kTop = std::numeric_limits<float>::max() / 128, kBottom = std::numeric_limits<float>::min();
  for (float& u : units) u = u < kBottom ? 0 : std::min(u, kTop);
  return units;
}

void store_scales(const std::vector<float>& units, Packed* packed) {
  const float top = *std::max_element(units.begin(), units.end());
  packed->scale = top > 0 ? top : 1;
  packed->row_scale.assign(tqn::padded_rows(uint64_t(packed->n_out)), 0);
  for (size_t i = 0; i < units.size(); i++) packed->row_scale[i] = f32_to_f16(units[i] / packed->scale);
}

// Encodes strips of 64 rows, tile after tile from column 0 up; owns one thread's working memory.
class StripEncoder {
 public:
  StripEncoder(const float* w, const EncodeOptions& options, Packed& packed)
      : w_(w), options_(options), packed_(packed), tile_encoder_(packed.k, packed.codebook) {
    if (!options.feedback.empty()) errors_.resize(size_t(packed.n_in) * kTileRows), sums_.resize(kBlock * kTileRows);
  }

  // Returns the strip's squared error in units of the weights; leaves early when progress.stop is set.
  double run(int64_t strip, Progress& progress) {
    begin(strip);
    weigh_rows();
    double squared_error = 0;
    for (int64_t col = 0; col < packed_.n_in && !progress.stop; col += kTileCols) {
      squared_error += encode_tile(col, tile_at(strip, col));
      progress.done += rows_ * kTileCols;
    }
    return squared_error;
  }

  // The two halves of run() around an encoder elsewhere: the targets of a strip's tiles, (n_in / 4, 256), and the error of its codes.
  void targets(int64_t strip, float* x) {
    begin(strip);
    for (int64_t col = 0; col < packed_.n_in; col += kTileCols, x += kTileSteps) tile_targets(col, nullptr, x);
  }
  double measure(int64_t strip, Progress& progress) {
    begin(strip);
    double squared_error = 0;
    for (int64_t col = 0; col < packed_.n_in; col += kTileCols) {
      int8_t values[kTileSteps];
      reference::decode_tile(tile_at(strip, col), packed_.k, packed_.codebook.data(), values);
      squared_error += tile_error(col, values);
    }
    progress.done += rows_ * packed_.n_in;
    return squared_error;
  }

 private:
  void begin(int64_t strip) {
    first_row_ = strip * kTileRows;
    rows_ = int(std::min<int64_t>(kTileRows, packed_.n_out - first_row_));
    for (int r = 0; r < kTileRows; r++) scale_[r] = packed_.scale * f16_to_f32(packed_.row_scale[size_t(first_row_ + r)]);
  }

  uint8_t* tile_at(int64_t strip, int64_t col) {
    return &packed_.codes[tqn::tile_offset(uint64_t(strip), uint64_t(col / kTileCols), uint64_t(packed_.n_in), packed_.k)];
  }

  // Columns whose share of the older errors is computed together, while those errors are in the cache.
  static constexpr int64_t kBlock = 64;
  static constexpr float kLeastRowWeight = 1 / 1024.f;
  static constexpr float kLimit = 1e6f;  // of targets in codebook units, so that squares stay finite

  // The search sees targets in units of each row's scale; weights let it minimize the error of the weights themselves. Rows much smaller
  // than their neighbours keep some say, zero and padding rows have none.
  void weigh_rows() {
    const float top = *std::max_element(scale_, scale_ + kTileRows);
    for (int r = 0; r < kTileRows; r++) {
      const float ratio = scale_[r] / top;
      row_weight_[r] = scale_[r] > 0 ? std::max(ratio * ratio, kLeastRowWeight) : 0;
    }
  }

  double encode_tile(int64_t col, uint8_t* tile) {
    float x[kTileSteps];
    tile_targets(col, errors_.empty() ? nullptr : feed_back(col), x);
    int8_t values[kTileSteps];
    tile_encoder_.encode(x, tile, values, row_weight_);
    return tile_error(col, values);
  }

  void tile_targets(int64_t col, const float* correction, float* x) const {
    for (int r = 0; r < kTileRows; r++)
      for (int c = 0; c < kTileCols; c++) x[tqn::step_of(r, c)] = target(r, col + c, correction ? correction[c * kTileRows + r] : 0.f);
  }

  // Squared error of a tile's values; with feedback the errors are kept.
  double tile_error(int64_t col, const int8_t* values) {
    double squared_error = 0;
    for (int r = 0; r < rows_; r++)
      for (int c = 0; c < kTileCols; c++) {
        const float error = weight(r, col + c) - scale_[r] * values[tqn::step_of(r, c)];
        if (!errors_.empty()) errors_[size_t(col + c) * kTileRows + r] = error;
        squared_error += double(error) * error;
      }
    return squared_error;
  }

  float weight(int r, int64_t col) const { return w_[(first_row_ + r) * packed_.n_in + col]; }

  float target(int r, int64_t col, float correction) const {
    if (r >= rows_ || scale_[r] == 0) return 0;
    return std::fmax(-kLimit, std::fmin(kLimit, (weight(r, col) + correction) / scale_[r]));
  }

  // What the errors of all columns before col add to the targets of its tile: (4, 64).
  const float* feed_back(int64_t col) {
    const int64_t block = col / kBlock * kBlock, n = packed_.n_in;
    if (col == block) start_block(block);
    isa().add_errors(&errors_[size_t(block * kTileRows)], options_.feedback.data() + block * n + col, n, col - block, sum(col));
    return sum(col);
  }

  // The share of the errors before the block. U is copied piece by piece: its rows, far apart, would evict each other from the cache.
  void start_block(int64_t block) {
    const int64_t n = packed_.n_in, width = std::min(kBlock, n - block);
    std::fill(sums_.begin(), sums_.end(), 0.f);
    for (int64_t i = 0; i < block; i += kBlock) {
      float u[kBlock * kBlock];
      for (int64_t r = 0; r < kBlock; r++) std::copy_n(&options_.feedback[size_t((i + r) * n + block)], width, u + r * kBlock);
      for (int64_t c = 0; c < width; c += kTileCols) isa().add_errors(&errors_[size_t(i * kTileRows)], u + c, kBlock, kBlock, sum(c));
    }
  }

  float* sum(int64_t col) { return &sums_[size_t(col % kBlock * kTileRows)]; }

  const float* w_;
  const EncodeOptions& options_;
  Packed& packed_;
  TileEncoder tile_encoder_;
  std::vector<float> errors_, sums_;  // (n_in, 64), (kBlock, 64)
  int64_t first_row_ = 0;
  int rows_ = 0;
  float scale_[kTileRows], row_weight_[kTileRows];
};

constexpr int64_t kBatchTiles = 1 << 16;  // 64 MiB of targets

// All strips through options.batch_encoder, some at a time; the cores prepare the targets and measure the errors.
template <class Encoder>
void encode_batches(Packed& packed, const EncodeOptions& options, Progress& progress, const Encoder& encoder, const Watch& watch,
                    std::vector<double>& squared_error) {
  const int64_t tiles = int64_t(tqn::tiles_per_strip(uint64_t(packed.n_in))), strips = int64_t(squared_error.size());
  const int64_t batch = std::clamp<int64_t>(kBatchTiles / tiles, 1, strips),
                strip_bytes = int64_t(tqn::strip_bytes(uint64_t(packed.n_in), packed.k));
  std::vector<float> x(size_t(batch * tiles * kTileSteps));
  const auto each = [&](int64_t items, const Body& body) {
    progress.stop = false;  // the call before ended with it
    parallel_for(items, options.threads, progress, body, watch);
  };
  for (int64_t first = 0; first < strips; first += batch) {
    const int64_t count = std::min(batch, strips - first);
    each(count, [&](int64_t s, int worker) { encoder(worker).targets(first + s, &x[size_t(s * tiles * kTileSteps)]); });
    options.batch_encoder({x.data(), size_t(count * tiles * kTileSteps)}, packed.k, packed.codebook,
                          {&packed.codes[size_t(first * strip_bytes)], size_t(count * strip_bytes)});
    each(count, [&](int64_t s, int worker) { squared_error[size_t(first + s)] = encoder(worker).measure(first + s, progress); });
  }
}

void check_order(std::span<const int32_t> order, int64_t n_in) {
  require_size("order", order.size(), uint64_t(n_in) / kTileCols);
  std::vector<bool> there(order.size());
  for (const int32_t block : order) {
    if (block < 0 || size_t(block) >= order.size() || there[size_t(block)])
      refuse("order has no place, or two, for block " + std::to_string(block));
    there[size_t(block)] = true;
  }
}

// Moves pieces of a row: the i-th of `to` is order[i] of `from`, or, back, the other way round.
template <class T>
void reorder(std::span<const int32_t> order, int64_t piece, bool back, const T* from, T* to) {
  for (size_t i = 0; i < order.size(); i++) {
    const int64_t here = int64_t(i) * piece, there = order[i] * piece;
    std::copy_n(from + (back ? here : there), piece, to + (back ? there : here));
  }
}

// The columns change places before the encoder sees them, the tiles change back.
Packed encode_in_order(std::span<const float> w, int64_t n_out, int64_t n_in, EncodeOptions options) {
  const auto order = std::exchange(options.order, {});
  check_order(order, n_in);
  std::vector<float> moved(w.size());
  for (int64_t r = 0; r < n_out; r++) reorder(order, kTileCols, false, &w[size_t(r * n_in)], &moved[size_t(r * n_in)]);
  Packed packed = encode(moved, n_out, n_in, options);
  const auto codes = packed.codes;
  const size_t strip = size_t(tqn::strip_bytes(uint64_t(n_in), packed.k));
  for (size_t at = 0; at < codes.size(); at += strip)
    reorder(order, int64_t(tqn::tile_bytes(packed.k)), true, &codes[at], &packed.codes[at]);
  return packed;
}

}  // namespace

Packed encode(std::span<const float> w, int64_t n_out, int64_t n_in, const EncodeOptions& options) {
  tqn::PlaneBytes bytes;
  check(w, n_out, n_in, options, &bytes);
  if (!options.order.empty()) return encode_in_order(w, n_out, n_in, options);
  Packed packed;
  packed.k = options.k, packed.n_out = n_out, packed.n_in = n_in;
  const auto codebook = options.codebook.empty() ? reference::default_codebook(options.k) : options.codebook;
  packed.codebook.assign(codebook.begin(), codebook.end());
  store_scales(row_units(w, n_out, n_in, options), &packed);
  packed.codes.resize(bytes.codes);

  const int64_t strips = int64_t(tqn::strips(uint64_t(n_out)));
  std::vector<double> squared_error(size_t(strips), 0.0);  // by strip, so that the sum does not depend on the threads
  std::vector<std::unique_ptr<StripEncoder>> encoders(size_t(worker_count(strips, options.threads)));
  const auto encoder = [&](int worker) -> StripEncoder& {
    auto& own = encoders[size_t(worker)];
    if (!own) own = std::make_unique<StripEncoder>(w.data(), options, packed);
    return *own;
  };
  const auto watch = [&](int64_t done) {
    if (options.progress) options.progress(done);
    if (options.cancel && *options.cancel) throw Error(Cause::closed, "encode: cancelled");
  };
  Progress progress;
  if (options.batch_encoder && options.feedback.empty() && tqn::is_trellis(options.k)) {
    encode_batches(packed, options, progress, encoder, watch, squared_error);
  } else {
    const auto strip = [&](int64_t s, int worker) { squared_error[size_t(s)] = encoder(worker).run(s, progress); };
    parallel_for(strips, options.threads, progress, strip, watch);
  }
  packed.squared_error = std::accumulate(squared_error.begin(), squared_error.end(), 0.0);
  return packed;
}

void decode(const Packed& packed, std::span<float> out, int threads) {
  require_size("out", out.size(), uint64_t(packed.n_out) * uint64_t(packed.n_in));
  Progress progress;
  parallel_for(int64_t(tqn::strips(uint64_t(packed.n_out))), threads, progress, [&](int64_t strip, int) {
    for (int64_t col = 0; col < packed.n_in; col += kTileCols) {
      int8_t values[kTileSteps];
      const uint64_t offset = tqn::tile_offset(uint64_t(strip), uint64_t(col / kTileCols), uint64_t(packed.n_in), packed.k);
      reference::decode_tile(&packed.codes[offset], packed.k, packed.codebook.data(), values);
      for (int64_t row = strip * kTileRows; row < std::min(packed.n_out, (strip + 1) * kTileRows); row++)
        for (int c = 0; c < kTileCols; c++)
          out[size_t(row * packed.n_in + col + c)] =
              packed.scale * f16_to_f32(packed.row_scale[size_t(row)]) * values[tqn::step_of(int(row % kTileRows), c)];
    }
  });
}

}  // namespace tq::quant
