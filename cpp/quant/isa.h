// The encoder's inner loops, one table per instruction set, chosen once at run time. Bodies are written once (isa_body.h) over a small
// vocabulary of vectors (isa_*.cpp). The searches give the same bits on every instruction set: they count in integers.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "format/search.h"

namespace tq::quant {

// The costs of one step of the search (viterbi.h), one for each overlap of windows.
constexpr int cost_count(int k) { return tqn::kStates >> k; }
struct ValuePair {
  int16_t value, square;
};

// costs: (steps + 1, cost_count(k)); the first row is given, row i + 1 is the result of step i. values: (4096), by state.
using ForwardPass = void (*)(const ValuePair* values, const tqn::StepCost* step, int steps, int32_t* costs);

// sum[c][r] += over i < count of errors[i][r] * u[i * stride + c]. errors: (count, 64); sum: (4, 64), a tile column by column.
using AddErrors = void (*)(const float* errors, const float* u, int64_t stride, int64_t count, float* sum);

// c -= a b^T for blocks of 64 x 64 inside matrices of `stride` columns.
inline constexpr int kFactorPanel = 64;
using SubtractProduct = void (*)(const double* a, const double* b, int64_t stride, double* c);

struct Isa {
  std::string_view name;
  std::array<ForwardPass, tqn::kMaxTrellisBits> forward;  // k = 1..4
  AddErrors add_errors;
  SubtractProduct subtract_product;
};

const Isa& isa();  // the best for this machine, or TQ_ISA; throws Error(invalid_argument) for an unknown or unusable one
std::span<const Isa* const> all_isas();  // those this machine can run, best first; the portable one is last

}  // namespace tq::quant
