// Mixture of experts: which experts a token goes to, and with what weight. The one place for code that runs on the host; few rows on a GPU
// are routed there, by the same rule (cuda/routing.cu).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

namespace tq {

// Softmax over the router's logits (n), then the top_k most probable experts, best first, ties to the lower index. normalize: the chosen
// weights sum to 1. logits are overwritten.
inline void choose_experts(float* logits, int64_t n, int top_k, bool normalize, int32_t* experts, float* weights) {
  const float max = *std::max_element(logits, logits + n);
  float sum = 0;
  for (int64_t i = 0; i < n; i++) sum += logits[i] = std::exp(logits[i] - max);
  float chosen = 0;
  for (int j = 0; j < top_k; j++) {
    const int64_t best = std::max_element(logits, logits + n) - logits;
    experts[j] = int32_t(best);
    weights[j] = logits[best] / sum;
    chosen += weights[j];
    logits[best] = -1;  // below every probability
  }
  for (int j = 0; normalize && j < top_k; j++) weights[j] /= chosen;
}

// Of the shared expert, from the logit of its own router.
inline float shared_expert_weight(float logit) { return 1 / (1 + std::exp(-logit)); }

}  // namespace tq
