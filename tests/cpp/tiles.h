// What the tests of the format and of the encoder share: Gaussian targets, and small valid matrices that own their planes.
#pragma once
#include <array>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "format/reference.h"

namespace tests {

inline constexpr auto& kFormats = tqn::Formats::bits;
using Tile = std::array<uint8_t, 256>;

inline std::vector<int8_t> codebook_of(int k) {
  const auto codebook = tq::reference::default_codebook(k);
  return {codebook.begin(), codebook.end()};
}

inline std::vector<float> gaussian(int64_t n, float scale, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = normal(random) * scale;
  return x;
}

inline double squared_error(const float* x, const uint8_t* tile, int k, const float* row_weight) {
  const auto codebook = codebook_of(k);
  int8_t values[256];
  tq::reference::decode_tile(tile, k, codebook.data(), values);
  double sum = 0;
  for (int t = 0; t < 256; t++) sum += row_weight[tqn::row_of_step(t)] * (double(x[t]) - values[t]) * (double(x[t]) - values[t]);
  return sum;
}

// Random codes, scales and outliers (two in every third row).
class Matrix {
 public:
  Matrix(int64_t n_out, int64_t n_in, int k, uint32_t seed) {
    std::mt19937 random(seed);
    tqn::PlaneBytes bytes{};
    tqn::plane_bytes(uint64_t(n_out), uint64_t(n_in), k, &bytes);
    codes.resize(bytes.codes);
    for (auto& byte : codes) byte = uint8_t(random());
    row_scale.resize(bytes.row_scale / 2);
    for (int64_t i = 0; i < n_out; i++) row_scale[size_t(i)] = tq::f32_to_f16(float(random() % 1000 + 1) / 1000);
    codebook = codebook_of(k);
    ptr.push_back(0);
    for (int64_t i = 0; i < n_out; i++) {
      if (i % 3 == 0) add_outliers(n_in, random);
      ptr.push_back(int32_t(col.size()));
    }
    view_.n_out = n_out, view_.n_in = n_in, view_.k = k;
    view_.scale = .01f, view_.rotation = tq::Rotation::hartley_hadamard, view_.seed = seed;
  }

  tq::TqnMatrix view() const {
    tq::TqnMatrix m = view_;
    m.codes = codes.data(), m.row_scale = row_scale.data(), m.codebook = codebook.data();
    m.outliers = {int64_t(col.size()), ptr.data(), col.data(), nullptr, val.data()};
    return m;
  }
  tq::PlaneSizes sizes() const {
    return {codes.size(), row_scale.size() * 2, codebook.size(), ptr.size() * 4, col.size() * 2, val.size() * 2};
  }

  float outlier(int64_t row, int64_t column) const {
    for (int32_t i = ptr[size_t(row)]; i < ptr[size_t(row) + 1]; i++)
      if (col[size_t(i)] == column) return tq::f16_to_f32(val[size_t(i)]);
    return 0;
  }

  std::vector<uint8_t> codes;
  std::vector<uint16_t> row_scale, col, val;
  std::vector<int8_t> codebook;
  std::vector<int32_t> ptr;
  tq::TqnMatrix view_;

 private:
  void add_outliers(int64_t n_in, std::mt19937& random) {
    const int64_t first = int64_t(random()) % (n_in - 1);
    for (int64_t column : {first, n_in - 1}) {
      col.push_back(uint16_t(column));
      val.push_back(tq::f32_to_f16(float(random() % 100) / 10 - 5));
    }
  }
};

}  // namespace tests
