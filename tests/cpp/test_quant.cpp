#include <algorithm>
#include <limits>
#include <thread>

#include "check.h"
#include "quant/isa.h"
#include "quant/quant.h"
#include "quant/viterbi.h"
#include "tiles.h"

using namespace tq;
using quant::EncodeOptions, quant::Packed;
using tests::gaussian, tests::kFormats;

static Packed encode(const std::vector<float>& w, int64_t n_out, int k, EncodeOptions options = {}) {
  options.k = k;
  return quant::encode(w, n_out, int64_t(w.size()) / n_out, options);
}

static void check_same(const Packed& a, const Packed& b) {
  CHECK(a.codes == b.codes);
  CHECK(a.row_scale == b.row_scale);
  CHECK_EQ(a.scale, b.scale);
  CHECK_EQ(a.squared_error, b.squared_error);
}

// Targets of every kind, in units of the codebook: typical, tied, far outside, tiny.
static std::vector<std::vector<float>> target_kinds(int k) {
  std::vector<std::vector<float>> kinds;
  for (uint32_t seed = 0; seed < 4; seed++) kinds.push_back(gaussian(256, 1 / reference::default_unit(k), seed));
  kinds.push_back(std::vector<float>(256, 0.f));
  kinds.push_back(std::vector<float>(256, 17.f));
  kinds.push_back(gaussian(256, 1e5f, 8));
  kinds.push_back(gaussian(256, 1e-30f, 9));
  std::vector<float> steps, outlier = gaussian(256, 30, 10);
  for (int t = 0; t < 256; t++) steps.push_back(float(t * 73 % 251 - 125) / 2);
  kinds.push_back(steps);
  outlier[100] = 5000, outlier[255] = -900;
  kinds.push_back(outlier);
  return kinds;
}

static std::vector<float> row_weights() {  // from 1 to 1/512, some 0
  std::vector<float> weight;
  for (int r = 0; r < 64; r++) weight.push_back(r % 11 == 3 ? 0 : std::exp2(-float(r * 7 % 10)));
  return weight;
}

TEST("every instruction set finds the reference's codes, to the bit") {
  CHECK(!quant::all_isas().empty());
  for (int k = 1; k <= 4; k++) {
    const auto codebook = tests::codebook_of(k);
    for (const auto& x : target_kinds(k)) {
      tests::Tile wanted{}, found{};
      reference::encode_tile(x.data(), k, codebook.data(), wanted.data());
      for (const auto* isa : quant::all_isas()) {
        quant::Viterbi(k, codebook.data(), *isa).encode(x.data(), nullptr, found.data());
        CHECK(found == wanted);
      }
      const auto weight = row_weights();
      reference::encode_tile(x.data(), k, codebook.data(), wanted.data(), weight.data());
      for (const auto* isa : quant::all_isas()) {
        quant::Viterbi(k, codebook.data(), *isa).encode(x.data(), weight.data(), found.data());
        CHECK(found == wanted);
      }
    }
  }
}

TEST("TileEncoder returns the tile, its values and their squared error") {
  for (int k : kFormats) {
    const auto codebook = tests::codebook_of(k);
    const auto x = gaussian(256, 40, 3);
    tests::Tile tile{}, wanted{};
    int8_t values[256], decoded[256];
    quant::TileEncoder encoder(k, codebook);
    const double error = encoder.encode(x.data(), tile.data(), values);
    CHECK_NEAR(error, reference::encode_tile(x.data(), k, codebook.data(), wanted.data()), 1e-5 * error);  // 256 float additions
    CHECK(tile == wanted);
    reference::decode_tile(tile.data(), k, codebook.data(), decoded);
    CHECK(std::equal(values, values + 256, decoded));
  }
}

// The table of docs/format.md, measured on few samples: the mean of 2^20 is at most 1 % above and, at 4 bits, 1.5 % below.
TEST("distortion on N(0,1) is the format's") {
  static const double kDistortion[] = {0, .27191, .07100, .01850, .00525, 0, .000689};
  for (int k : {1, 2, 3, 4, 6}) {
    const auto x = gaussian(1 << 20, 1, 1);
    const std::vector<float> unit(1024, reference::default_unit(k));
    EncodeOptions options;
    options.unit_scale = unit;
    const double found = encode(x, 1024, k, options).squared_error / double(x.size());
    CHECK_NEAR(found, .995 * kDistortion[k], .015 * kDistortion[k]);
  }
}

TEST("a packed matrix of any shape is valid, decodes as the reference and reports its error") {
  for (int k : kFormats)
    for (auto [n_out, n_in] : {std::pair{1, 4}, {1, 64}, {63, 8}, {64, 4}, {65, 20}, {100, 36}}) {
      const auto w = gaussian(int64_t(n_out) * n_in, .05f, uint32_t(n_out + n_in));
      const Packed p = encode(w, n_out, k);
      TqnMatrix m{n_out, n_in, k, p.codes.data(), p.row_scale.data(), p.codebook.data(), p.scale, Rotation::none, 0, {}};
      validate("w", m, {p.codes.size(), p.row_scale.size() * 2, p.codebook.size(), 0, 0, 0});
      CHECK_EQ(f16_to_f32(*std::max_element(p.row_scale.begin(), p.row_scale.end())), 1.f);
      std::vector<float> out(w.size());
      quant::decode(p, out);
      std::vector<double> row(static_cast<size_t>(n_in));
      double error = 0;
      for (int i = 0; i < n_out; i++) {
        reference::decode_row(m, i, row.data());
        for (int j = 0; j < n_in; j++) {
          const size_t at = size_t(i * n_in + j);
          CHECK_NEAR(out[at], row[size_t(j)], 1e-6 * std::fabs(row[size_t(j)]));
          error += (double(w[at]) - row[size_t(j)]) * (double(w[at]) - row[size_t(j)]);
        }
      }
      CHECK_NEAR(p.squared_error, error, 1e-4 * error + 1e-12);
    }
}

TEST("at 8 bits a row's largest weight is met and no other is off by more than half a step") {
  const auto w = gaussian(10 * 32, 3, 4);
  const Packed p = encode(w, 10, 8);
  std::vector<float> out(w.size());
  quant::decode(p, out);
  for (int i = 0; i < 10; i++) {
    const float step = p.scale * f16_to_f32(p.row_scale[size_t(i)]);
    for (int j = 0; j < 32; j++) {  // a float16 row scale is off by up to 2^-11: so much of 127 steps the largest weights may be clipped
      const size_t at = size_t(i * 32 + j);
      CHECK_NEAR(out[at], w[at], step * (.5 + 127 / 2048.));
    }
  }
}

TEST("rows count by their scale: less squared error than rounding each row in its own units") {
  auto w = gaussian(128 * 32, 1, 5);
  for (int i = 0; i < 128; i++)
    for (int j = 0; j < 32; j++) w[size_t(i * 32 + j)] *= i % 2 ? 1.f : .1f;
  const Packed p = encode(w, 128, 2);
  double each = 0;
  for (int i = 0; i < 128; i++) each += .07 * 32 * (i % 2 ? 1. : .01);
  CHECK(p.squared_error < .8 * each);
}

TEST("identical bytes for every number of threads") {
  const auto w = gaussian(300 * 40, 1, 5), u = gaussian(40 * 40, .1f, 6);
  EncodeOptions plain, fed;
  fed.feedback = u;
  for (EncodeOptions options : {plain, fed}) {
    options.threads = 1;
    const Packed wanted = encode(w, 300, 2, options);
    for (int threads : {0, 2, 3, 16}) {
      options.threads = threads;
      check_same(encode(w, 300, 2, options), wanted);
    }
  }
}

TEST("zero rows and zero matrices decode to zero") {
  for (int k : kFormats) {
    auto w = gaussian(70 * 8, 1, 5);
    std::fill_n(w.begin() + 3 * 8, 8, 0.f);
    std::vector<float> out(w.size());
    const Packed p = encode(w, 70, k);
    quant::decode(p, out);
    CHECK_EQ(p.row_scale[3], 0);
    for (int j = 0; j < 8; j++) CHECK_EQ(out[size_t(3 * 8 + j)], 0.f);
    const std::vector<float> zero(70 * 8, 0.f);
    const Packed none = encode(zero, 70, k);
    quant::decode(none, out);
    CHECK(none.scale > 0);
    CHECK(out == zero);
    CHECK_EQ(none.squared_error, 0.0);
  }
}

TEST("huge weights stay finite, subnormal ones round to zero") {
  for (int k : kFormats) {
    for (float scale : {3.4e38f, 1e30f, 1e-30f}) {
      auto w = gaussian(64 * 8, 1, 5);
      for (float& v : w) v = std::clamp(v / 4, -1.f, 1.f) * scale;
      w[5] = scale;
      const Packed p = encode(w, 64, k);
      CHECK(std::isfinite(p.scale * 128) && p.scale > 0);
      std::vector<float> out(w.size());
      quant::decode(p, out);
      for (size_t i = 0; i < w.size(); i++) CHECK(std::fabs(double(out[i]) - w[i]) <= scale);
    }
    const std::vector<float> tiny(64 * 8, 1e-42f);
    const Packed p = encode(tiny, 64, k);
    CHECK_EQ(*std::max_element(p.row_scale.begin(), p.row_scale.end()), 0);
  }
}

TEST("arguments that cannot be: each by its own text") {
  auto w = gaussian(64 * 8, 1, 5);
  EncodeOptions options;
  const auto refused = [&](const char* text) { CHECK_THROWS(encode(w, 64, 2, options), Cause::invalid_argument, text); };
  w[13] = NAN;
  refused("w[1, 5] is nan, must be finite");
  w[13] = -INFINITY;
  refused("w[1, 5] is -inf");
  w[13] = 0;
  std::vector<int8_t> codebook(63);
  options.codebook = codebook;
  refused("codebook has 63 elements, must have 32");
  codebook = tests::codebook_of(2);
  codebook[17] = 16;
  options.codebook = codebook;
  refused("codebook[17] is 16, must be in [0, 15]");
  codebook = tests::codebook_of(6);
  codebook[31] = 0;
  options.codebook = codebook;
  CHECK_THROWS(encode(w, 64, 6, options), Cause::invalid_argument, "codebook[31] is 0, codebook[32] is 1: must be negatives of each other");
  options.codebook = {};
  std::vector<float> units(64, 1.f);
  options.unit_scale = std::span(units).first(63);
  refused("unit_scale has 63 elements, must have 64");
  options.unit_scale = units;
  units[7] = -1;
  refused("unit_scale[7] is -1, must be finite and not negative");
  units[7] = INFINITY;
  refused("unit_scale[7] is inf");
  options.unit_scale = {};
  std::vector<float> u(64, 0.f);
  options.feedback = std::span(u).first(63);
  refused("feedback has 63 elements, must have 64");
  options.feedback = u;
  u[9] = NAN;
  refused("feedback[1, 1] is nan");
  options.feedback = {};
  CHECK_THROWS(encode(w, 64, 5, options), Cause::invalid_argument, "no TQN matrix of 64 x 8 at 5 bits");
  CHECK_THROWS(quant::encode(w, 128, 8, options), Cause::invalid_argument, "w has 512 elements, must have 1024");
  CHECK_THROWS(quant::encode(w, 256, 2, options), Cause::invalid_argument, "no TQN matrix of 256 x 2");
  CHECK_THROWS(quant::encode(w, std::numeric_limits<int64_t>::max(), 8, options), Cause::invalid_argument, "no TQN matrix");
  CHECK_THROWS(quant::encode(w, -64, 8, options), Cause::invalid_argument, "no TQN matrix of -64 x 8");
  CHECK_THROWS(quant::rotate_rows(w, 64, 12, 0, false), Cause::invalid_argument, "512 elements are no 64 x 12 matrix");
}

TEST("progress grows to the number of weights; what it throws stops the work") {
  const auto w = gaussian(200 * 64, 1, 5);
  EncodeOptions options;
  int64_t last = 0;
  const auto caller = std::this_thread::get_id();
  options.progress = [&](int64_t done) {
    CHECK(done >= last && std::this_thread::get_id() == caller);
    last = done;
  };
  encode(w, 200, 2, options);
  CHECK_EQ(last, 200 * 64);
  struct Stop {};
  options.progress = [](int64_t) { throw Stop(); };
  bool stopped = false;
  try {
    encode(w, 200, 2, options);
  } catch (const Stop&) {
    stopped = true;
  }
  CHECK(stopped);
}

TEST("cancel ends the work with an error") {
  const auto w = gaussian(200 * 64, 1, 5);
  std::atomic<bool> cancel = true;
  EncodeOptions options;
  options.cancel = &cancel;
  CHECK_THROWS(encode(w, 200, 2, options), Cause::closed, "cancelled");
}

TEST("rotate_rows is the reference's rotation of every row") {
  for (int64_t n : {4, 12, 36, 60, 64, 576}) {
    const int64_t rows = 35;
    const auto w = gaussian(rows * n, 1, 2);
    for (bool inverse : {false, true}) {
      auto found = w;
      quant::rotate_rows(found, rows, n, 99, inverse, 2);
      for (int64_t i = 0; i < rows; i++) {
        std::vector<double> wanted(w.begin() + i * n, w.begin() + (i + 1) * n);
        reference::rotate(wanted.data(), n, 99, inverse);
        for (int64_t j = 0; j < n; j++) CHECK_NEAR(found[size_t(i * n + j)], wanted[size_t(j)], 1e-5);
      }
    }
  }
}
