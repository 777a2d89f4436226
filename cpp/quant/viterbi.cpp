#include "quant/viterbi.h"

#include <algorithm>

namespace tq::quant {

namespace {

constexpr int kSteps = tqn::kTileSteps, kSeam = kSteps / 2;
constexpr float kUnreachable = 1e30f;
constexpr int kDistancePadding = 4;  // vectors of short runs read a little further

uint32_t inverse(uint32_t m) {  // Newton: every round doubles the number of right bits
  uint32_t inv = m;
  for (int i = 0; i < 3; i++) inv *= 2 - m * inv;
  return inv % tqn::kStates;
}

}  // namespace

Viterbi::Viterbi(int k, const int8_t* codebook, const Isa& isa)
    : k_(k),
      inverse_(inverse(tqn::multiplier(k))),
      pass_(isa.forward[k - 1]),
      distance_(size_t(kSteps + kSeam) * tqn::kCodebookSize + kDistancePadding),
      costs_(size_t(kSteps + 1) * cost_stride(k)) {
  std::copy_n(codebook, tqn::kCodebookSize, codebook_.begin());
  for (uint32_t r = 0; r < 1u << k; r++) {
    const uint32_t j = (r * inverse_) & ((1u << k) - 1);
    shift_[r] = ((r - j * tqn::multiplier(k)) % tqn::kStates) >> k;
  }
}

// Weighted squared distances in search order; the first kSeam steps follow again after the last.
void Viterbi::measure(const float* x, const float* row_weight) {
  for (int i = 0; i < kSteps + kSeam; i++) {
    const int t = (2 * kSteps - 1 - i) % kSteps;
    const float target = x[t], weight = row_weight ? row_weight[t / tqn::kTileCols] : 1;
    float* row = &distance_[size_t(i) * tqn::kCodebookSize];
    for (int c = 0; c < tqn::kCodebookSize; c++) row[c] = (target - codebook_[c]) * (target - codebook_[c]) * weight;
  }
}

void Viterbi::forward(int first, int steps) {
  std::copy_n(&costs_[0], kCostPadding, &costs_[cost_count(k_)]);
  pass_(&distance_[size_t(first) * tqn::kCodebookSize], steps, shift_.data(), costs_.data());
}

// The best state among those with p mod 2^(12 - k) = u after step first + row - 1, the lowest of equals.
Viterbi::Step Viterbi::step_back(int first, int row, uint32_t u) const {
  const uint32_t count = uint32_t(cost_count(k_)), low = (1u << k_) - 1;
  const float* costs = &costs_[size_t(row - 1) * cost_stride(k_)];
  const float* distance = &distance_[size_t(first + row - 1) * tqn::kCodebookSize];
  Step best{};
  float best_cost = 2 * kUnreachable;
  for (uint32_t p = u; p < uint32_t(tqn::kStates); p += count) {
    const uint32_t before = ((p >> k_) + shift_[p & low]) & (count - 1);
    const float cost = costs[before] + distance[p >> 6];
    if (cost < best_cost) best = {p, before}, best_cost = cost;
  }
  return best;
}

// A free search over the circle cut open opposite its seam decides which state it closes with.
uint32_t Viterbi::find_overlap() {
  std::fill_n(costs_.begin(), cost_count(k_), 0.f);
  forward(kSteps - kSeam, 2 * kSeam);
  const auto last = costs_.begin() + size_t(2 * kSeam) * cost_stride(k_);
  uint32_t u = uint32_t(std::min_element(last, last + cost_count(k_)) - last);
  for (int row = 2 * kSeam; row > kSeam; row--) u = step_back(kSteps - kSeam, row, u).before;
  return u;
}

void Viterbi::encode(const float* x, const float* row_weight, uint8_t* tile) {
  measure(x, row_weight);
  uint32_t u = find_overlap();
  std::fill_n(costs_.begin(), cost_count(k_), kUnreachable);
  costs_[u] = 0;
  forward(0, kSteps);
  std::fill_n(tile, tqn::tile_bytes(k_), uint8_t(0));
  for (int i = kSteps; i > 0; i--) {
    const Step step = step_back(0, i, u);
    const uint32_t start = uint32_t(k_ * (kSteps - i)), bits = (step.hash * inverse_) & ((1u << k_) - 1);
    tile[start >> 3] |= uint8_t(bits << (start & 7));
    if ((start & 7) + uint32_t(k_) > 8) tile[(start >> 3) + 1] |= uint8_t(bits >> (8 - (start & 7)));
    u = step.before;
  }
}

}  // namespace tq::quant
