#include "model/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>

#include "common/error.h"

namespace tq {
namespace {

void require(bool valid, const char* name, double value, const char* expected) {
  if (!valid) throw Error(Cause::invalid_argument, std::string(name) + ": " + std::to_string(value) + ", expected " + expected);
}

// NaN compares as the lowest, so that it is never chosen before a number.
bool usable(float logit) { return logit > -INFINITY; }

int32_t argmax(std::span<const float> logits) {
  int32_t best = -1;
  float highest = -INFINITY;
  for (size_t i = 0; i < logits.size(); i++)
    if (logits[i] > highest) highest = logits[i], best = int32_t(i);
  return best;
}

[[noreturn]] void fail_empty(const std::string& all) { throw Error(Cause::invalid_argument, "logits: none of " + all + " is above -inf"); }

}  // namespace

Sampler::Sampler(const SamplerOptions& o) : options_(o), rng_(o.seed) {
  require(std::isfinite(o.temperature), "temperature", o.temperature, "a finite number");
  require(o.top_p >= 0 && o.top_p <= 1, "top_p", o.top_p, "0 to 1");
  require(o.min_p >= 0 && o.min_p <= 1, "min_p", o.min_p, "0 to 1");
  require(o.typical_p >= 0 && o.typical_p <= 1, "typical_p", o.typical_p, "0 to 1");
  require(o.repeat_penalty > 0 && std::isfinite(o.repeat_penalty), "repeat_penalty", o.repeat_penalty, "a finite number above 0");
  require(std::isfinite(o.frequency_penalty), "frequency_penalty", o.frequency_penalty, "a finite number");
  require(std::isfinite(o.presence_penalty), "presence_penalty", o.presence_penalty, "a finite number");
  require(o.penalty_last_n >= -1, "penalty_last_n", o.penalty_last_n, "-1 or more");
}

void Sampler::reseed(uint64_t seed) { rng_.seed(seed); }

bool Sampler::penalizes() const {
  return options_.penalty_last_n != 0 &&
         (options_.repeat_penalty != 1 || options_.frequency_penalty != 0 || options_.presence_penalty != 0);
}

// A copy of the logits with the recent tokens' lowered.
std::span<const float> Sampler::penalize(std::span<const float> logits, std::span<const int32_t> history) {
  const size_t n = options_.penalty_last_n < 0 ? history.size() : std::min(history.size(), size_t(options_.penalty_last_n));
  recent_.assign(history.end() - std::ptrdiff_t(n), history.end());
  std::sort(recent_.begin(), recent_.end());
  penalized_.assign(logits.begin(), logits.end());
  for (auto first = recent_.begin(); first != recent_.end();) {
    const auto last = std::upper_bound(first, recent_.end(), *first);
    if (*first >= 0 && size_t(*first) < penalized_.size()) {
      float& logit = penalized_[size_t(*first)];
      logit = logit > 0 ? logit / options_.repeat_penalty : logit * options_.repeat_penalty;
      logit -= float(last - first) * options_.frequency_penalty + options_.presence_penalty;
    }
    first = last;
  }
  return penalized_;
}

void Sampler::take_best(std::span<const Candidate> best) {
  candidates_.clear();
  for (const Candidate& c : best)
    if (c.token >= 0) candidates_.push_back({c.logit, 0, c.token});
  sorted_ = true;
}

void Sampler::take_all(std::span<const float> logits) {
  candidates_.clear();
  for (size_t i = 0; i < logits.size(); i++)
    if (usable(logits[i])) candidates_.push_back({logits[i], 0, int32_t(i)});
  sorted_ = false;
}

// p of each candidate among those left.
void Sampler::softmax() {
  float max = -INFINITY;
  for (const Weighted& c : candidates_) max = std::max(max, c.logit);
  double sum = 0;
  for (Weighted& c : candidates_) sum += c.p = max == INFINITY ? float(c.logit == INFINITY) : std::exp(c.logit - max);
  for (Weighted& c : candidates_) c.p = float(c.p / sum);
}

// Locally typical sampling: tokens whose surprise is nearest to the entropy, up to the mass typical_p.
void Sampler::keep_typical() {
  softmax();
  double entropy = 0;
  for (const Weighted& c : candidates_)
    if (c.p > 0) entropy -= c.p * std::log(double(c.p));
  const auto distance = [entropy](const Weighted& c) { return c.p > 0 ? std::fabs(-std::log(double(c.p)) - entropy) : INFINITY; };
  std::sort(candidates_.begin(), candidates_.end(), [&](const Weighted& a, const Weighted& b) {
    const double da = distance(a), db = distance(b);
    return da < db || (da == db && a.token < b.token);
  });
  double reached = 0;
  size_t kept = 0;
  while (kept < candidates_.size() && reached <= options_.typical_p) reached += candidates_[kept++].p;
  candidates_.resize(kept);
  sorted_ = false;
}

// Drops candidates that cannot be among the best that reach top_p, by a histogram of the logits: what is left is quick to sort.
void Sampler::drop_tail() {
  constexpr size_t kBuckets = 256;
  constexpr float kPerLogit = 8;  // buckets; the last takes everything 32 and more below the best
  float max = -INFINITY;
  for (const Weighted& c : candidates_) max = std::max(max, c.logit);
  const auto bucket = [max](const Weighted& c) { return size_t(std::min((max - c.logit) * kPerLogit, float(kBuckets - 1))); };
  if (max == INFINITY) return;
  std::array<double, kBuckets> mass{};
  for (const Weighted& c : candidates_) mass[bucket(c)] += c.p;
  size_t last = 0;
  for (double reached = mass[0]; reached < options_.top_p && last + 1 < kBuckets;) reached += mass[++last];
  last = std::min(last + 1, kBuckets - 1);  // one more: the sums above were rounded in another order
  std::erase_if(candidates_, [&](const Weighted& c) { return bucket(c) > last; });
}

// The most probable candidates, in descending order, that together reach top_p; at least one.
void Sampler::keep_top_p() {
  softmax();
  if (!sorted_) {
    drop_tail();
    std::sort(candidates_.begin(), candidates_.end(),
              [](const Weighted& a, const Weighted& b) { return a.p > b.p || (a.p == b.p && a.token < b.token); });
    sorted_ = true;
  }
  double reached = 0;
  size_t kept = 0;
  while (kept < candidates_.size() && (kept == 0 || reached < options_.top_p)) reached += candidates_[kept++].p;
  candidates_.resize(kept);
}

void Sampler::keep_min_p() {
  float max = -INFINITY;
  for (const Weighted& c : candidates_) max = std::max(max, c.logit);
  const float least = max + std::log(options_.min_p);
  std::erase_if(candidates_, [least](const Weighted& c) { return c.logit < least; });
}

int32_t Sampler::draw() {
  for (Weighted& c : candidates_) c.logit /= options_.temperature;
  softmax();
  double point = double(rng_() >> 11) * 0x1p-53;  // uniform in [0, 1); the standard's distributions differ between libraries
  for (const Weighted& c : candidates_)
    if ((point -= c.p) < 0) return c.token;
  return std::max_element(candidates_.begin(), candidates_.end(), [](auto& a, auto& b) { return a.p < b.p; })
      ->token;  // p summed to just below 1
}

// The stages after top-k.
int32_t Sampler::choose() {
  if (options_.typical_p < 1) keep_typical();
  if (options_.top_p < 1) keep_top_p();
  if (options_.min_p > 0) keep_min_p();
  return draw();
}

int32_t Sampler::sample(std::span<const float> original, std::span<const int32_t> history) {
  const std::span<const float> logits = penalizes() ? penalize(original, history) : original;
  if (options_.temperature <= 0) {
    const int32_t best = argmax(logits);
    if (best < 0) fail_empty(std::to_string(logits.size()));
    return best;
  }
  if (options_.top_k > 0 && size_t(options_.top_k) < logits.size()) {
    best_.resize(size_t(options_.top_k));
    best_.resize(size_t(tq::take_best(logits.data(), int64_t(logits.size()), options_.top_k, best_.data())));
    take_best(best_);
  } else {
    take_all(logits);
  }
  if (candidates_.empty()) fail_empty(std::to_string(logits.size()));
  return choose();
}

int Sampler::needed_candidates(int64_t n_vocab) const {
  if (penalizes()) return 0;
  if (options_.temperature <= 0) return 1;
  return options_.top_k > 0 && options_.top_k < n_vocab && options_.top_k <= kMaxCandidates ? options_.top_k : 0;
}

int32_t Sampler::sample_best(std::span<const Candidate> best) {
  if (best.empty() || best[0].token < 0) fail_empty("the best");
  if (options_.temperature <= 0) return best[0].token;
  take_best(best.first(std::min(best.size(), size_t(options_.top_k))));
  return choose();
}

}  // namespace tq
