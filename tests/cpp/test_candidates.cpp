// The best tokens instead of all logits: the same choices, from a model and from any row.
#include <filesystem>
#include <random>

#include "check.h"
#include "model/model.h"
#include "model/sampler.h"

using namespace tq;

static std::vector<float> random_logits(std::mt19937& random, int n) {
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(static_cast<size_t>(n));
  for (float& v : logits) v = normal(random);
  return logits;
}

TEST("take_best: descending, ties to the lower token, never NaN or -inf") {
  const std::vector<float> logits{1, NAN, 3, -INFINITY, 3, 0.f, -0.f, INFINITY, 3};
  std::vector<Candidate> best(20);
  CHECK_EQ(take_best(logits.data(), 9, 20, best.data()), 7);
  const int32_t order[] = {7, 2, 4, 8, 0, 5, 6};
  for (size_t i = 0; i < 7; i++) CHECK_EQ(best[i].token, order[i]);
  CHECK_EQ(take_best(logits.data(), 9, 3, best.data()), 3);
  for (size_t i = 0; i < 3; i++) CHECK_EQ(best[i].token, order[i]);
  CHECK_EQ(take_best(logits.data() + 1, 1, 3, best.data()), 0);
}

TEST("a sampler draws from the best tokens what it draws from all logits") {
  std::mt19937 random{5};
  const SamplerOptions cases[] = {{.temperature = 0},
                                  {.temperature = 0.8f, .seed = 1},
                                  {.temperature = 1.5f, .top_k = 64, .top_p = 1, .min_p = 0, .seed = 2},
                                  {.temperature = 1, .top_k = 7, .typical_p = 0.7f, .seed = 3},
                                  {.temperature = 2, .top_k = 1, .seed = 4}};
  for (const SamplerOptions& options : cases) {
    Sampler full(options), reduced(options);
    for (int i = 0; i < 200; i++) {
      std::vector<float> logits = random_logits(random, 100 + i * 10);
      if (i % 3 == 0)  // many ties
        for (float& v : logits) v = std::round(v);
      const int needed = full.needed_candidates(int64_t(logits.size()));
      CHECK(needed > 0 && needed <= kMaxCandidates);
      std::vector<Candidate> best(kMaxCandidates, kNoCandidate);
      take_best(logits.data(), int64_t(logits.size()), kMaxCandidates, best.data());
      const int32_t expected = full.sample(logits, {});
      best.resize(size_t(i % 2 ? kMaxCandidates : needed));  // more do no harm
      CHECK_EQ(reduced.sample_best(best), expected);
    }
  }
}

TEST("chains that look at more than the best tokens say so") {
  CHECK_EQ(Sampler({.temperature = 0}).needed_candidates(1000), 1);
  CHECK_EQ(Sampler({.top_k = 40}).needed_candidates(1000), 40);
  CHECK_EQ(Sampler({.top_k = 40}).needed_candidates(40), 0);
  CHECK_EQ(Sampler({.top_k = 65}).needed_candidates(1000), 0);
  CHECK_EQ(Sampler({.top_k = 0}).needed_candidates(1000), 0);
  CHECK_EQ(Sampler({.temperature = 0, .repeat_penalty = 1.1f}).needed_candidates(1000), 0);
  CHECK_EQ(Sampler({.temperature = 0, .repeat_penalty = 1.1f, .penalty_last_n = 0}).needed_candidates(1000), 1);
  const Candidate none[] = {kNoCandidate};
  CHECK_THROWS(Sampler({.temperature = 0}).sample_best(none), Cause::invalid_argument, "none of the best");
  CHECK_THROWS(Sampler({.top_k = 1}).sample_best(none), Cause::invalid_argument, "none of the best");
}

TEST("a pass gives the best tokens of its output rows, few or many, and keeps their logits") {
  const std::string path = (std::filesystem::path(__FILE__).parent_path() / ".." / "data" / "v2.tqn.gguf").string();
  const auto model = Model::open(path, {});
  const size_t n_vocab = size_t(model->config().n_vocab);
  for (const int rows : {1, 5, 150}) {
    Context context(model, {.n_ctx = 160, .n_batch = 160});
    std::vector<int32_t> tokens, positions, slots(size_t(rows), 0), outputs;
    for (int i = 0; i < rows; i++) tokens.push_back(i * 7 % int(n_vocab)), positions.push_back(i), outputs.push_back(i);
    const Batch batch{tokens, positions, slots, outputs};
    std::vector<float> logits(size_t(rows) * n_vocab), again(n_vocab);
    std::vector<Candidate> best(size_t(rows) * kMaxCandidates), expected(kMaxCandidates);
    context.forward(batch, logits);
    context.forward_best(batch, best);
    for (size_t r = 0; r < size_t(rows); r++) {
      std::fill(expected.begin(), expected.end(), kNoCandidate);
      take_best(&logits[r * n_vocab], int64_t(n_vocab), kMaxCandidates, expected.data());
      for (size_t i = 0; i < size_t(kMaxCandidates); i++) {
        CHECK_EQ(best[r * kMaxCandidates + i].token, expected[i].token);
        CHECK_EQ(best[r * kMaxCandidates + i].logit, expected[i].logit);
      }
    }
    if (rows > 64) {
      CHECK_THROWS(context.read_logits(0, again), Cause::invalid_argument, "the latest pass left the logits of 0");
      continue;
    }
    context.read_logits(rows - 1, again);
    CHECK(std::equal(again.begin(), again.end(), logits.end() - std::ptrdiff_t(n_vocab)));
    CHECK_THROWS(context.read_logits(rows, again), Cause::invalid_argument, "output row");
  }
}
