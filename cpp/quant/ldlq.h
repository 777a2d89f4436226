// Error feedback (LDLQ, the same as GPTQ): how a rounding error in one column is best made up for by the columns after it.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "common/parallel.h"

namespace tq::quant {

// H + damp * mean(diag H) * I = (U + I) D (U + I)^T with U strictly upper in blocks of 4 columns and D block diagonal; returns U (n, n)
// row-major. encode() adds to the target of column c the errors W - Q of the columns i < c, each times U[i, c]. hessian: (n, n) row-major,
// symmetric and positive semidefinite, E[x x^T] of the (rotated) inputs; its upper triangle is read; any magnitude. Where rounding left it
// indefinite the damping is raised tenfold until it is not; a zero Hessian gives U = 0. Throws Error(invalid_argument) for a size that is
// no multiple of 4, negative damping, elements that are not finite, a negative diagonal, and where damping of 1 does not help.
template <class Number>  // float, double
std::vector<float> feedback(std::span<const Number> hessian, int64_t n, double damp, int threads = 0, const Watch& watch = nullptr);

}  // namespace tq::quant
