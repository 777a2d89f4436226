// The oracle: plain scalar code, double accumulation. Every kernel, instruction set and device is tested against these functions.
#pragma once
#include <cstdint>
#include <span>
#include <string>

#include "format/matrix.h"

namespace tq::reference {

// Default codebook (tqn::codebook_size(k) int8) of a format and the unit that scales its values to N(0,1); k = 8: empty span, unit 0.
std::span<const int8_t> default_codebook(int k);
float default_unit(int k);
// What is wrong with a codebook (tqn::codebook_size(k)) of a format that has one; empty where nothing is.
std::string codebook_fault(int k, const int8_t* codebook);

// Best circular path for one tile. x: (256) in units of the codebook's integers, step order. Trellis formats: tail-biting Viterbi over 4096
// states in two passes, the second held to the overlap that the first found, costs in integers (search.h); others: nearest value of the
// sorted codebook. row_weight: (64) what a squared error counts in each row of the tile, 0 to 1, null: 1. Writes 32*k bytes, returns the
// weighted squared error.
double encode_tile(const float* x, int k, const int8_t* codebook, uint8_t* tile, const float* row_weight = nullptr);
void decode_tile(const uint8_t* tile, int k, const int8_t* codebook, int8_t* values);  // (256), step order

// Sign of column j of the rotation's diagonal, and x <- K D x (or its inverse D K x) for one vector of n values.
void rotation_signs(uint64_t seed, int64_t n, float* signs);
void rotate(double* x, int64_t n, uint64_t seed, bool inverse);

int8_t code(const TqnMatrix& w, int64_t row, int64_t col);           // the int8 value of one weight, before any scale
void decode_row(const TqnMatrix& w, int64_t row, double* out);       // (n_in) of W itself: rotated back, outliers in place
void accumulate(const TqnMatrix& w, const int8_t* a, int32_t* acc);  // acc (n_out) = C a, a (n_in) already rotated and rounded
void matvec(const TqnMatrix& w, const float* x, double* y);          // y (n_out) = W x in double: the float path
// The int8 path: a = round(R x / s) to nearest even, s = max|R x| / 127 in float32, y = scale * row_scale * s * (C a) + S x.
void matvec_int8(const TqnMatrix& w, const float* x, double* y);

}  // namespace tq::reference
