// The inputs of linear layers in the forms that matrices want, and products over a part of a matrix; linear and moe steps build on these.
#pragma once
#include "backend/cpu/step.h"

namespace tq::cpu {

// Rows of an input in one rotation: floats (the float path) or int8 with a scale a row. Empty for unquantized matrices, which read plain
// rows.
struct Form {
  float* rotated = nullptr;
  int8_t* quantized = nullptr;
  float* scale = nullptr;
};

Form take_form(Arena& arena, int64_t rows, int64_t n_in, Precision precision);
bool same_form(const CpuMatrix& a, const CpuMatrix& b);  // one form serves both
inline bool wants_plain(const CpuMatrix& m) { return !m.host.packed || m.host.tqn.outliers.count > 0; }

// Row r of `form` for matrix m from its plain row. work: n_in floats.
void fill_form(const Worker& w, const CpuMatrix& m, const float* plain, const Form& form, int64_t r, float* work);

// Rows [first, first + n) of a form, with the plain rows beside it (may be null when nothing wants them).
kernels::Activations activations(const Form& form, const float* plain, int64_t first, int64_t n, int64_t n_in);

// Units of 64 output rows, so that packed and unquantized matrices share work lists.
int64_t units(const Matrix& m);

// y (+)= alpha * (W x + bias) for the output rows of units [first, last).
struct Product {
  const CpuMatrix* matrix;
  const float* bias = nullptr;
  float alpha = 1;
  bool add = false;
  float* y = nullptr;
  int64_t ldy = 0;
};
void multiply(const Worker& w, const Product& p, const kernels::Activations& x, Range range, void* scratch);

int64_t multiply_scratch(const Kernels& k, int64_t n_in, int64_t rows);

// One row of a linear input, prepared (norm, gate) but not rotated: the input itself where nothing is to be done, else `out`.
const float* plain_row(const Worker& w, const LinearInput& in, int64_t r, float* out);

}  // namespace tq::cpu
