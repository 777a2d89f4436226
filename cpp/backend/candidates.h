// The best tokens of a row of logits: what a sampler needs of them when nothing else in its chain looks at the rest.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

namespace tq {

struct Candidate {
  float logit;
  int32_t token;
};

inline constexpr int kMaxCandidates = 64;  // that a backend picks in one pass
inline constexpr Candidate kNoCandidate{-INFINITY, -1};

inline bool better(const Candidate& a, const Candidate& b) { return a.logit > b.logit || (a.logit == b.logit && a.token < b.token); }

// The k >= 1 highest of n logits into best (k), descending, ties to the lower token; returns how many there are: NaN and -inf never are.
// A heap: most logits fail one comparison with its worst.
inline int64_t take_best(const float* logits, int64_t n, int64_t k, Candidate* best) {
  int64_t count = 0;
  float worst = -INFINITY;
  for (int64_t i = 0; i < n; i++) {
    if (!(logits[i] > worst)) continue;
    if (count == k) std::pop_heap(best, best + count--, better);
    best[count++] = {logits[i], int32_t(i)};
    std::push_heap(best, best + count, better);
    if (count == k) worst = best[0].logit;
  }
  std::sort_heap(best, best + count, better);
  return count;
}

}  // namespace tq
