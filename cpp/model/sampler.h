// Choosing the next token from logits. Same options, same logits, same seed: same tokens.
#pragma once
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "backend/candidates.h"

namespace tq {

struct SamplerOptions {
  float temperature = 0.8f;  // <= 0: greedy
  int top_k = 40;            // <= 0: all
  float top_p = 0.95f;       // 1: off
  float min_p = 0.05f;       // 0: off
  float typical_p = 1.0f;    // 1: off
  float repeat_penalty = 1.0f, frequency_penalty = 0.0f, presence_penalty = 0.0f;
  int penalty_last_n = 64;  // -1: the whole history
  uint64_t seed = 0;
};

// Stages in llama.cpp's order: penalties, top-k, typical, top-p, min-p, temperature, draw.
class Sampler {
 public:
  explicit Sampler(const SamplerOptions& options);  // throws invalid_argument naming an option that makes no sense
  // logits: (n_vocab), left as they are; history: tokens so far. Throws invalid_argument when every logit is NaN or -inf.
  int32_t sample(std::span<const float> logits, std::span<const int32_t> history);
  // How many of the best tokens decide as all n_vocab logits would (1 for greedy, top_k where it cuts); 0: all are needed.
  int needed_candidates(int64_t n_vocab) const;
  // The same choice from a row's best tokens (take_best): at least as many as needed, or all that the row has.
  int32_t sample_best(std::span<const Candidate> best);
  void reseed(uint64_t seed);

 private:
  struct Weighted {
    float logit, p;
    int32_t token;
  };
  bool penalizes() const;
  std::span<const float> penalize(std::span<const float> logits, std::span<const int32_t> history);
  void take_best(std::span<const Candidate> best);
  void take_all(std::span<const float> logits);
  void drop_tail();
  void softmax();
  void keep_typical();
  void keep_top_p();
  void keep_min_p();
  int32_t choose();
  int32_t draw();

  SamplerOptions options_;
  std::mt19937_64 rng_;
  std::vector<float> penalized_;
  std::vector<int32_t> recent_;
  std::vector<Candidate> best_;
  std::vector<Weighted> candidates_;  // those left
  bool sorted_ = false;               // candidates_ descend
};

}  // namespace tq
