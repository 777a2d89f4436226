// A quantized matrix as planes in memory (usually the mapped file): W ~ S + scale * diag(row_scale) C R, y = W x.
#pragma once
#include <cstdint>
#include <string>

#include "format/tqn.h"

namespace tq {

enum class Rotation : uint8_t { none, hartley_hadamard };

// Sparse FP16 outliers in the original basis: CSR, columns strictly increasing within a row.
struct Outliers {
  int64_t count = 0;
  const int32_t* ptr = nullptr;     // (n_out + 1)
  const uint16_t* col16 = nullptr;  // (count), when n_in <= 65536
  const int32_t* col32 = nullptr;   // (count), otherwise
  const uint16_t* val = nullptr;    // (count) float16 bits
  int64_t col(int64_t i) const { return col16 ? col16[i] : col32[i]; }
};

struct TqnMatrix {
  int64_t n_out = 0, n_in = 0;
  int k = 0;                            // format: one of tqn::Formats, bits a weight
  const uint8_t* codes = nullptr;       // (strips, tiles, 32 * k) bytes
  const uint16_t* row_scale = nullptr;  // (padded_rows(n_out)) float16 bits in [0, 1]
  const int8_t* codebook = nullptr;     // (tqn::codebook_size(k)), null for k = 8
  float scale = 0;
  Rotation rotation = Rotation::none;
  uint64_t seed = 0;
  Outliers outliers;
};

// The bytes that a reader found for each plane; what it lacks is 0.
struct PlaneSizes {
  uint64_t codes = 0, row_scale = 0, codebook = 0, out_ptr = 0, out_col = 0, out_val = 0;
};

// Throws Error(bad_file) naming `name`, the plane and the value unless every rule of docs/format.md holds: plane sizes, finite scale in
// range, row scales in [0, 1], codebook present, ptr monotone from 0 to count, columns strictly increasing and < n_in, finite values.
void validate(const std::string& name, const TqnMatrix& matrix, const PlaneSizes& sizes);

// The formats as messages name them: "1, 2, 3, 4, 6, 8".
std::string format_list();

float f16_to_f32(uint16_t bits);
uint16_t f32_to_f16(float value);  // round to nearest even; overflow gives infinity
float bf16_to_f32(uint16_t bits);
uint16_t f32_to_bf16(float value);

}  // namespace tq
