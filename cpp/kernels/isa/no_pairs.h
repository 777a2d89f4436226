// Where the dot product sums in 32 bits.
#pragma once

namespace tq::kernels::TQ_ISA_NAMESPACE {

struct Pairs {};
inline Pairs no_pairs() { return {}; }
template <class A>
Pairs add_pairs(Pairs, Row, A) {
  return {};
}
inline I32 add_widened(I32 acc, Pairs) { return acc; }

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
