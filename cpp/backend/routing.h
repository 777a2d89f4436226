// Mixture of experts: which experts a token goes to, and with what weight. The one place for code that runs on the host; few rows on a GPU
// are routed there, by the same rule (cuda/routing.cu).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "backend/backend.h"

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

// The matrices of a mixture's experts, the shared one last, as Expert{gate, up, down, and their three biases}. bias(table, e, m): what
// expert e adds to the product by m, of a table that may be null.
template <class Expert, class Bias>
std::vector<Expert> experts_of(const MoeOp& op, const Bias& bias) {
  std::vector<Expert> all;
  for (size_t e = 0; e < op.gate.size(); e++)
    all.push_back({op.gate[e], op.up[e], op.down[e], bias(op.gate_bias, e, op.gate[e]), bias(op.up_bias, e, op.up[e]),
                   bias(op.down_bias, e, op.down[e])});
  if (op.shared_gate) all.push_back({op.shared_gate, op.shared_up, op.shared_down});
  return all;
}

// Of the shared expert, from the logit of its own router.
inline float shared_expert_weight(float logit) { return 1 / (1 + std::exp(-logit)); }

}  // namespace tq
