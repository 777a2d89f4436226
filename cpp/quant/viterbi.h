// The tail-biting search for the codes of one tile: exactly the reference's search (format/reference.h), arranged for vector units.
//
// A state is a 12-bit window s; the search walks from the last step to the first, so the next state is (s << k | j) mod 4096. In terms of
// its hash p = s * M mod 4096, whose high 6 bits are the codebook index, the next state is p' = (u << k) + j * M mod 4096 with
// u = p mod 2^(12 - k). Hence, for each residue r = p' mod 2^k, the states p' = (w << k) + r come from u = (w + shift[r]) mod 2^(12 - k):
// a contiguous read. And 64 neighbouring p' share one codebook entry: no table look-up per state is left. One step is
//     cost'[p' mod 2^(12 - k)] = min over the high k bits of p' of   cost[u(p')] + distance[p' >> 6].
// Decisions are not stored: the way back recomputes the few that it needs from the costs.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "quant/isa.h"

namespace tq::quant {

class Viterbi {
 public:
  Viterbi(int k, const int8_t* codebook, const Isa& isa);
  // x: (256) finite targets in units of the codebook, step order; row_weight: (64), null: 1; tile: 32 * k bytes.
  void encode(const float* x, const float* row_weight, uint8_t* tile);

 private:
  struct Step {
    uint32_t hash, before;  // the state's hash, and u of the state before it
  };
  void measure(const float* x, const float* row_weight);
  void forward(int first, int steps);
  Step step_back(int first, int row, uint32_t u) const;
  uint32_t find_overlap();

  int k_;
  uint32_t inverse_;  // of M, mod 4096
  ForwardPass pass_;
  std::array<uint32_t, 1 << tqn::kMaxTrellisBits> shift_{};
  std::array<float, tqn::kCodebookSize> codebook_;
  std::vector<float> distance_, costs_;
};

}  // namespace tq::quant
