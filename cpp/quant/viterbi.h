// The tail-biting search for the codes of one tile: exactly the reference's search (format/reference.h), arranged for vector units.
//
// A state is a 12-bit window s; the search walks from the last step to the first, so the next state is (s << k | j) mod 4096. Only the
// least cost of the states that share an overlap u = s mod 2^(12 - k) matters to the next step:
//     cost'[u] = min over h of   cost[(h * 2^(12 - k) + u) >> k] + distance(value(h * 2^(12 - k) + u)).
// Distances are integers, v * slope + v^2 * weight (format/search.h): one multiply-add of 16-bit pairs (v, v^2), which stand in the order
// of the states. Decisions are not stored: the way back recomputes the few that it needs from the costs.
#pragma once
#include <cstdint>
#include <vector>

#include "format/search.h"
#include "quant/isa.h"

namespace tq::quant {

class Viterbi {
 public:
  Viterbi(int k, const int8_t* codebook, const Isa& isa);
  // x: (256) finite targets in units of the codebook, step order; row_weight: (64), null: 1; tile: 32 * k bytes.
  void encode(const float* x, const float* row_weight, uint8_t* tile);

 private:
  void measure(const float* x, const float* row_weight);
  void forward(int first, int steps);
  uint32_t step_back(int first, int row, uint32_t u) const;
  uint32_t find_overlap();

  int k_;
  ForwardPass pass_;
  std::vector<ValuePair> values_;     // (4096)
  std::vector<tqn::StepCost> steps_;  // in search order; the first kSeam follow again after the last
  std::vector<int32_t> costs_;        // (256 + 1, cost_count(k))
};

}  // namespace tq::quant
