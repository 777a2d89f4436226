// How the rows of a batch belong together, as kernels of GPUs go through them.
#pragma once
#include <algorithm>
#include <numeric>
#include <vector>

#include "backend/backend.h"

namespace tq {

struct RowRun {
  int32_t first_row, count;
};

// Consecutive rows of one slot at consecutive positions, at most `most` long.
inline std::vector<RowRun> consecutive_runs(const Batch& b, int32_t most) {
  std::vector<RowRun> runs;
  for (size_t r = 0; r < b.tokens.size(); r++) {
    const bool joins = r > 0 && b.slots[r] == b.slots[r - 1] && b.positions[r] == b.positions[r - 1] + 1 && runs.back().count < most;
    if (joins)
      runs.back().count++;
    else
      runs.push_back({int32_t(r), 1});
  }
  return runs;
}

// The rows by slot, each slot's in their order, and each slot's run of places among them: what recurrent layers go through.
struct RowsBySlot {
  std::vector<int32_t> order;
  std::vector<RowRun> sequences;
};
inline RowsBySlot rows_by_slot(const Batch& b) {
  RowsBySlot by{std::vector<int32_t>(b.slots.size()), {}};
  std::iota(by.order.begin(), by.order.end(), 0);
  std::stable_sort(by.order.begin(), by.order.end(), [&](int32_t x, int32_t y) { return b.slots[size_t(x)] < b.slots[size_t(y)]; });
  for (size_t i = 0; i < by.order.size(); i++) {
    if (i > 0 && b.slots[size_t(by.order[i])] == b.slots[size_t(by.order[i - 1])])
      by.sequences.back().count++;
    else
      by.sequences.push_back({int32_t(i), 1});
  }
  return by;
}

}  // namespace tq
