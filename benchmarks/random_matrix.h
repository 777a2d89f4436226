// A packed matrix for benchmarks: speed does not depend on the values.
#pragma once
#include <cstring>
#include <random>
#include <vector>

#include "backend/backend.h"
#include "format/reference.h"

namespace bench {

using namespace tq;

// Random codes, described in host memory that lives as long as the object.
struct RandomMatrix {
  std::vector<uint8_t> codes;
  std::vector<uint16_t> row_scale;
  std::vector<int8_t> codebook;
  HostMatrix host;
  RandomMatrix(int64_t n_out, int64_t n_in, int k, uint64_t seed = 7) {
    tqn::PlaneBytes bytes;
    tqn::plane_bytes(uint64_t(n_out), uint64_t(n_in), k, &bytes);
    std::mt19937_64 random{seed};
    codes.resize(bytes.codes);
    for (size_t i = 0; i + 8 <= codes.size(); i += 8) {
      const uint64_t bits = random();
      std::memcpy(&codes[i], &bits, 8);
    }
    row_scale.assign(bytes.row_scale / 2, f32_to_f16(1.f));
    const auto book = reference::default_codebook(k);
    codebook.assign(book.begin(), book.end());
    host.name = "random", host.packed = true;
    TqnMatrix& w = host.tqn;
    w.n_out = n_out, w.n_in = n_in, w.k = k, w.codes = codes.data(), w.row_scale = row_scale.data();
    w.codebook = codebook.empty() ? nullptr : codebook.data(), w.scale = 0.001f;
  }
  RandomMatrix(const RandomMatrix&) = delete;
};

}  // namespace bench
