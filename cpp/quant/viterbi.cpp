#include "quant/viterbi.h"

#include <algorithm>

namespace tq::quant {

namespace {

constexpr int kSteps = tqn::kTileSteps, kSeam = kSteps / 2;

}  // namespace

Viterbi::Viterbi(int k, const int8_t* codebook, const Isa& isa)
    : k_(k), pass_(isa.forward[k - 1]), steps_(kSteps + kSeam), costs_(size_t(kSteps + 1) * cost_count(k)) {
  for (uint32_t s = 0; s < uint32_t(tqn::kStates); s++) {
    const int value = tqn::window_value(k, s, codebook);
    values_.push_back({int16_t(value), int16_t(value * value)});
  }
}

void Viterbi::measure(const float* x, const float* row_weight) {
  for (int i = 0; i < kSteps + kSeam; i++) {
    const int t = (2 * kSteps - 1 - i) % kSteps;
    steps_[size_t(i)] = tqn::step_cost(k_, x[t], row_weight ? row_weight[tqn::row_of_step(t)] : 1);
  }
}

void Viterbi::forward(int first, int steps) { pass_(values_.data(), &steps_[size_t(first)], steps, costs_.data()); }

// The best state among those with overlap u after step first + row - 1, the lowest of equals.
uint32_t Viterbi::step_back(int first, int row, uint32_t u) const {
  const int32_t* costs = &costs_[size_t(row - 1) * cost_count(k_)];
  const tqn::StepCost& step = steps_[size_t(first + row - 1)];
  const auto cost = [&](uint32_t s) { return costs[s >> k_] + step.of(values_[s].value); };
  uint32_t best = u;
  for (uint32_t s = u; s < uint32_t(tqn::kStates); s += uint32_t(cost_count(k_)))
    if (cost(s) < cost(best)) best = s;
  return best;
}

// A free search over the circle cut open opposite its seam decides which state it closes with.
uint32_t Viterbi::find_overlap() {
  std::fill_n(costs_.begin(), cost_count(k_), 0);
  forward(kSteps - kSeam, 2 * kSeam);
  const auto last = costs_.begin() + size_t(2 * kSeam) * cost_count(k_);
  uint32_t u = uint32_t(std::min_element(last, last + cost_count(k_)) - last);
  for (int row = 2 * kSeam; row > kSeam; row--) u = step_back(kSteps - kSeam, row, u) >> k_;
  return u;
}

void Viterbi::encode(const float* x, const float* row_weight, uint8_t* tile) {
  measure(x, row_weight);
  uint32_t u = find_overlap();
  std::fill_n(costs_.begin(), cost_count(k_), tqn::kUnreachable);
  costs_[u] = 0;
  forward(0, kSteps);
  std::fill_n(tile, tqn::tile_bytes(k_), uint8_t(0));
  for (int i = kSteps; i > 0; i--) {
    const uint32_t state = step_back(0, i, u), bits = state & ((1u << k_) - 1);
    const int start = k_ * (kSteps - i);
    tile[tqn::place_of_byte(k_, start >> 3)] |= uint8_t(bits << (start & 7));
    if ((start & 7) + k_ > 8) tile[tqn::place_of_byte(k_, (start >> 3) + 1)] |= uint8_t(bits >> (8 - (start & 7)));
    u = state >> k_;
  }
}

}  // namespace tq::quant
