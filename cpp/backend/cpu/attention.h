// What attention over numbers and over codes share.
#pragma once
#include <cmath>

#include "backend/cpu/step.h"

namespace tq::cpu {

inline constexpr int64_t kUnitsPerThread = 4;  // units of work that are wanted for each, so that threads end together
inline constexpr int64_t kMaxUnitRows = 32;

// Rotary embedding of a head of row r, in place.
inline void turn(const Worker& w, const RopeTable& rope, const Angles* angles, int64_t r, float* x) {
  if (!angles) return;
  const int64_t half = rope.dims / 2;
  (rope.pairs ? w.k.rope_pairs : w.k.rope_neox)(x, data(angles->cos.get()) + r * half, data(angles->sin.get()) + r * half, rope.dims);
}

// A query head of row r before it is compared with keys: turned and scaled, in place.
inline void turn_query(const Worker& w, const AttentionOp& op, const Angles* angles, int64_t r, float* q) {
  turn(w, op.rope, angles, r, q);
  if (op.growth.beta == 0) return;
  const float scale = 1 + op.growth.beta * std::log1p(float(w.batch.positions[r] / op.growth.length));
  for (int d = 0; d < op.shape.head_dim; d++) q[d] *= scale;
}

// The sum of a head's softmax whose greatest score so far is max, with the head's sink.
inline float with_sink(const AttentionOp& op, int64_t head, float max, float sum) {
  return op.sinks ? sum + std::exp(data(op.sinks)[head] - max) : sum;
}

// Rows of one unit of work, of one key/value head.
inline int64_t unit_rows(const Worker& w, const kernels::AttentionShape& shape) {
  return std::clamp<int64_t>(w.rows() * shape.n_kv_heads / (kUnitsPerThread * w.parts), 1, kMaxUnitRows);
}

// Calls f(rows) for runs of rows of the same slot.
template <class F>
void for_slots(const Worker& w, Range rows, const F& f) {
  for (int64_t first = rows.first, last; first < rows.last; first = last) {
    for (last = first + 1; last < rows.last && w.batch.slots[last] == w.batch.slots[first];) last++;
    f(Range{first, last});
  }
}

}  // namespace tq::cpu
