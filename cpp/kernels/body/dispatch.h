// From run-time numbers to template arguments: the format of a matrix, groups of tokens that share a register tile.
#pragma once
#include <cstdint>

#include "format/tqn.h"

namespace tq::kernels::TQ_ISA_NAMESPACE {

template <class F>
inline void with_format(int k, const F& f) {
  tqn::Formats::call(k, f);
}

template <int N>
struct Group {
  static constexpr int size = N;
};
// Cuts n_tokens into groups of N and one of the rest, calls f(Group<size>, first token).
template <int N, class F>
inline void for_token_groups(int64_t n_tokens, const F& f, int64_t t = 0) {
  for (; t + N <= n_tokens; t += N) f(Group<N>{}, t);
  if constexpr (N > 1) {
    if (t < n_tokens) for_token_groups<N - 1>(n_tokens, f, t);
  }
}

}  // namespace tq::kernels::TQ_ISA_NAMESPACE
