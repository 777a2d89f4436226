#include <bit>
#include <numbers>
#include <random>

#include "check.h"
#include "format/reference.h"
#include "tiles.h"

using namespace tq;
using tests::kFormats, tests::Tile, tests::gaussian;

// The format's formula (docs/format.md) on a plain string of bits: nothing here comes from the code under test.
static int value_by_formula(int k, int window, const std::vector<int8_t>& codebook) {
  const auto n = [&](int bit) { return window / (1 << bit) % 16; };
  const int first[] = {0, n(0) + n(3) + n(8), 2 * n(0) + n(8), 2 * n(0) + n(3) + 2 * n(9), n(0) + n(4) + n(8)};
  const int second[] = {0, n(0) + n(6) + n(8), 2 * n(0) + n(2) + n(8), 2 * n(0) + n(6), n(0) + n(8)};
  return codebook[size_t(first[k] % 16)] + codebook[size_t(16 + second[k] % 16)] - (k == 4 ? 31 : 15);
}

static std::vector<int> decode_by_formula(const uint8_t* tile, int k, const std::vector<int8_t>& codebook) {
  const int bits = 256 * k;
  std::vector<int> string(size_t(bits), 0), values;
  for (int i = 0; i < bits; i++) string[size_t(i)] = tile[i / 8 % k * 32 + i / 8 / k] / (1 << i % 8) % 2;
  const auto number = [&](int start, int count) {
    int sum = 0;
    for (int i = 0; i < count; i++) sum += string[size_t((start + i) % bits)] * (1 << i);
    return sum;
  };
  for (int t = 0; t < 256; t++) {
    if (k == 8)
      values.push_back(number(8 * t, 8) >= 128 ? number(8 * t, 8) - 256 : number(8 * t, 8));
    else if (k == 6)
      values.push_back(codebook[size_t(number(6 * t, 6))]);
    else
      values.push_back(value_by_formula(k, number(k * t, 12), codebook));
  }
  return values;
}

TEST("steps, rows and columns") {
  for (int t = 0; t < 256; t++) {
    const int row = 8 * (t % 8) + t / 32, column = t / 8 % 4;
    CHECK_EQ(tqn::step_of(row, column), t);
    CHECK_EQ(tqn::row_of_step(t), row);
    CHECK_EQ(tqn::col_of_step(t), column);
  }
}

TEST("every tile decodes as the formula says") {
  std::mt19937 random(1);
  for (int k : kFormats) {
    const auto codebook = tests::codebook_of(k);
    for (int repeat = 0; repeat < 50; repeat++) {
      Tile tile;
      for (auto& byte : tile) byte = uint8_t(random());
      int8_t values[256];
      reference::decode_tile(tile.data(), k, codebook.data(), values);
      const auto wanted = decode_by_formula(tile.data(), k, codebook);
      for (int t = 0; t < 256; t++) CHECK_EQ(int(values[t]), wanted[size_t(t)]);
    }
  }
}

TEST("default codebooks: entries in range, every value up and down, and only the formats that have one") {
  for (int k : {1, 2, 3, 4}) {
    const auto codebook = reference::default_codebook(k);
    CHECK_EQ(codebook.size(), size_t(32));
    for (const int8_t entry : codebook) CHECK(entry >= 0 && entry <= tqn::largest_entry(k));
    std::vector<int> values;
    for (uint32_t w = 0; w < 4096; w++) values.push_back(tqn::window_value(k, w, codebook.data()));
    CHECK_EQ(*std::min_element(values.begin(), values.end()), -tqn::offset(k));
    CHECK_EQ(*std::max_element(values.begin(), values.end()), tqn::offset(k));
    CHECK(reference::default_unit(k) > 0);
  }
  const auto codebook = reference::default_codebook(6);
  CHECK_EQ(codebook.size(), size_t(64));
  CHECK(std::is_sorted(codebook.begin(), codebook.end()));
  CHECK(codebook.front() == -127 && codebook.back() == 127);
  CHECK(reference::default_codebook(8).empty());
  CHECK_EQ(reference::default_unit(8), 0.f);
}

TEST("golden tiles: the encoder's bytes do not change") {
  static const struct {
    int k;
    const char* bytes;
  } kGolden[] = {
#include "golden_tiles.inc"
  };
  for (const auto& golden : kGolden) {
    float x[256];
    for (int t = 0; t < 256; t++) x[t] = float(t * 73 % 251 - 125) / 2;
    Tile tile;
    reference::encode_tile(x, golden.k, tests::codebook_of(golden.k).data(), tile.data());
    std::string hex;
    for (int i = 0; i < 32 * golden.k; i++) {
      char digits[3];
      std::snprintf(digits, sizeof digits, "%02x", tile[size_t(i)]);
      hex += digits;
    }
    if (hex != golden.bytes) check::fail(__FILE__, __LINE__, "k = " + std::to_string(golden.k) + " gives " + hex);
  }
}

// The search is optimal for the overlap it closes with: no other choice of one step's bits, away from that overlap, has a smaller error.
TEST("no single change improves a trellis tile") {
  const std::vector<float> equal(64, 1.f);
  std::vector<float> weights;
  for (int r = 0; r < 64; r++) weights.push_back(r % 9 == 4 ? 0 : float(1 + r % 16) / 16);
  for (int k = 1; k <= 4; k++)
    for (const auto& weight : {equal, weights}) {
      const auto codebook = tests::codebook_of(k);
      auto x = gaussian(256, 1 / reference::default_unit(k), 7);
      for (float& v : x) v = std::round(4 * v) / 4;  // such that the search's integers are exact
      Tile tile;
      const double best = reference::encode_tile(x.data(), k, codebook.data(), tile.data(), weight.data());
      CHECK_NEAR(tests::squared_error(x.data(), tile.data(), k, weight.data()), best, 1e-9 * best);
      for (int bit = 12; bit < 256 * k; bit++) {
        Tile changed = tile;
        changed[size_t(tqn::place_of_byte(k, bit / 8))] ^= uint8_t(1 << bit % 8);
        CHECK(tests::squared_error(x.data(), changed.data(), k, weight.data()) >= best * (1 - 1e-6));
      }
    }
}

TEST("plane sizes: exact, and false where a size is unusable or would wrap") {
  tqn::PlaneBytes bytes;
  for (int k : kFormats)
    for (uint64_t n_out : {1, 63, 64, 65, 1000}) {
      CHECK(tqn::plane_bytes(n_out, 12, k, &bytes));
      const uint64_t rows = (n_out + 63) / 64 * 64;
      CHECK_EQ(bytes.codes, rows * 12 * uint64_t(k) / 8);
      CHECK_EQ(bytes.row_scale, rows * 2);
      CHECK_EQ(bytes.codebook, uint64_t(k == 8 ? 0 : k == 6 ? 64 : 32));
    }
  CHECK(tqn::plane_bytes(uint64_t(1) << 40, 65536, 8, &bytes));
  CHECK_EQ(bytes.codes, uint64_t(1) << 56);
  for (uint64_t n_out : {uint64_t(0), (uint64_t(1) << 40) + 1, ~uint64_t(0), ~uint64_t(0) - 63, uint64_t(1) << 63})
    CHECK(!tqn::plane_bytes(n_out, 64, 2, &bytes));
  for (uint64_t n_in : {uint64_t(0), uint64_t(1), uint64_t(63), uint64_t(65540), ~uint64_t(0) - 3, ~uint64_t(0), uint64_t(1) << 32})
    CHECK(!tqn::plane_bytes(64, n_in, 2, &bytes));
  for (int k : {-1, 0, 5, 7, 9, 16, 1 << 30}) CHECK(!tqn::plane_bytes(64, 64, k, &bytes));
}

TEST("splitmix64's published first outputs; signs read them from the low bit") {
  tqn::SplitMix64 stream{0};
  CHECK_EQ(stream.next(), 0xE220A8397B1DCDAFull);
  CHECK_EQ(stream.next(), 0x6E789E6AA1B965F4ull);
  float signs[128];
  reference::rotation_signs(0, 128, signs);
  for (int j = 0; j < 64; j++) {
    CHECK_EQ(signs[j], 0xE220A8397B1DCDAFull >> j & 1 ? -1.f : 1.f);
    CHECK_EQ(signs[64 + j], 0x6E789E6AA1B965F4ull >> j & 1 ? -1.f : 1.f);
  }
}

// K[i][j] by its definition: a product over the digits of i and j, the power of two varying fastest.
static double mixer_element(int n, int i, int j) {
  double product = 1;
  for (; n % 2 == 0; n /= 2, i /= 2, j /= 2) product *= (i % 2 && j % 2 ? -1 : 1) / std::numbers::sqrt2;
  for (int q = 3; n > 1; q += 2)
    for (; n % q == 0; n /= q, i /= q, j /= q) {
      const double angle = 2 * std::numbers::pi * (i % q) * (j % q) / q;
      product *= (std::cos(angle) + std::sin(angle)) / std::sqrt(double(q));
    }
  return product;
}

TEST("the rotation is K D, its inverse D K, for every kind of width") {
  for (int n : {1, 2, 3, 4, 12, 15, 20, 36, 64, 76, 90, 96}) {
    std::vector<float> signs(static_cast<size_t>(n));
    reference::rotation_signs(42, n, signs.data());
    const auto x = gaussian(n, 1, 3);
    std::vector<double> y(x.begin(), x.end()), back;
    reference::rotate(y.data(), n, 42, false);
    for (int i = 0; i < n; i++) {
      double sum = 0;
      for (int j = 0; j < n; j++) sum += mixer_element(n, i, j) * signs[size_t(j)] * x[size_t(j)];
      CHECK_NEAR(y[size_t(i)], sum, 1e-12);
    }
    reference::rotate(y.data(), n, 42, true);
    for (int i = 0; i < n; i++) CHECK_NEAR(y[size_t(i)], x[size_t(i)], 1e-12);
  }
}

TEST("matvec is W x; the int8 path stays within the rounding of its activations") {
  for (int k : kFormats) {
    tests::Matrix m(100, 36, k, 5);
    const auto x = gaussian(36, 1, 9);
    std::vector<double> y(100), y8(100), row(36), rotated(x.begin(), x.end());
    reference::matvec(m.view(), x.data(), y.data());
    reference::matvec_int8(m.view(), x.data(), y8.data());
    reference::rotate(rotated.data(), 36, m.view().seed, false);
    double top = 0;
    for (double v : rotated) top = std::max(top, std::fabs(v));
    for (int i = 0; i < 100; i++) {
      reference::decode_row(m.view(), i, row.data());
      double sum = 0, codes = 0;
      for (int j = 0; j < 36; j++) sum += row[size_t(j)] * x[size_t(j)], codes += std::abs(reference::code(m.view(), i, j));
      CHECK_NEAR(y[size_t(i)], sum, 1e-9);
      const double weight = double(m.view().scale) * f16_to_f32(m.view().row_scale[i]);
      CHECK_NEAR(y8[size_t(i)], y[size_t(i)], weight * codes * top / 127 * .5001 + 1e-9);
    }
  }
}

TEST("outliers add to the rows they are in") {
  tests::Matrix m(100, 36, 2, 5);
  TqnMatrix without = m.view();
  without.outliers = {};
  std::vector<double> a(36), b(36);
  for (int i = 0; i < 100; i++) {
    reference::decode_row(m.view(), i, a.data());
    reference::decode_row(without, i, b.data());
    for (int j = 0; j < 36; j++) CHECK_NEAR(a[size_t(j)] - b[size_t(j)], m.outlier(i, j), 1e-9);
  }
}

TEST("one activation vector of zeros gives zero on the int8 path") {
  tests::Matrix m(64, 8, 3, 5);
  const std::vector<float> x(8, 0.f);
  std::vector<double> y(64, 1.0);
  reference::matvec_int8(m.view(), x.data(), y.data());
  for (double v : y) CHECK_EQ(v, 0.0);
}

TEST("formats without a trellis take the nearest value") {
  std::vector<float> x = gaussian(256, 60, 4);
  x[0] = 1e30f, x[1] = -1e30f, x[2] = 0, x[3] = 126.5f;
  for (int k : {6, 8}) {
    std::vector<int8_t> codebook = tests::codebook_of(k);
    if (k == 6) codebook[20] = codebook[21];  // two entries of one value
    Tile tile;
    int8_t values[256];
    const double error = reference::encode_tile(x.data(), k, codebook.data(), tile.data());
    reference::decode_tile(tile.data(), k, codebook.data(), values);
    double least = 0;
    for (int t = 0; t < 256; t++) {
      double nearest = INFINITY;
      for (int v = -127; v <= 127; v++)
        if (k == 8 || std::find(codebook.begin(), codebook.end(), v) != codebook.end())
          nearest = std::min(nearest, std::fabs(double(x[size_t(t)]) - v));
      CHECK_NEAR(std::fabs(double(x[size_t(t)]) - values[t]), nearest, 1e-5);
      least += nearest * nearest;
    }
    CHECK_NEAR(error, least, 1e-6 * least);
  }
}
