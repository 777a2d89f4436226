// Recurrent layers of a program.
#include "program.h"

namespace tq::metal {

using namespace metal_args;
static_assert(kStateColumns == DeltaNetShape::kBlockColumns, "a thread-group takes a block of a state");

void check_delta_net(const DeltaNetShape& s) {
  if (const int most = std::max(s.key_dim, s.value_dim); most > int(kMaxStateKeys))
    unsupported("a recurrent layer's heads of " + std::to_string(most) + " elements, at most " + std::to_string(kMaxStateKeys));
}

void MetalProgram::encode(const DeltaNetOp& op) {
  const DeltaNetShape& s = op.shape;
  DeltaArgs a{};
  a.n_key_heads = uint32_t(s.n_key_heads), a.n_value_heads = uint32_t(s.n_value_heads);
  a.key_dim = uint32_t(s.key_dim), a.value_dim = uint32_t(s.value_dim), a.taps = uint32_t(s.taps), a.tiled = s.tiled;
  a.conv_width = uint32_t(s.conv_width()), a.state_floats = uint32_t(s.state_floats()), a.eps = kDeltaNormEps;
  const Bound qkv = at(op.qkv), alpha = at(op.alpha), beta = at(op.beta), convolved = at(op.convolved), state = memory_of(*op.state).at();
  const uint32_t simds = 2 * a.n_key_heads + a.n_value_heads + 1;  // one for the gates
  launch(*w_.context, std::max(s.key_dim, s.value_dim) <= 128 ? "delta_convolve_128" : "delta_convolve_512", a,
         {qkv, memory_of(*op.conv).at(), memory_of(*op.rate).at(), memory_of(*op.dt_bias).at(), alpha, beta, state, order_, positions_,
          slots_, convolved},
         {pieces(simds, kConvolveThreads / 32), uint32_t(rows_)}, kConvolveThreads);
  const int widest = s.key_dim <= 32 ? 32 : s.key_dim <= 64 ? 64 : s.key_dim <= 128 ? 128 : s.key_dim <= 256 ? 256 : 512;
  launch(*w_.context, "delta_recur_" + std::to_string(widest), a,
         {qkv, convolved, alpha, beta, state, order_, positions_, slots_, sequences_at_, at(op.out)},
         {a.n_value_heads, pieces(s.value_dim, kStateColumns), uint32_t(sequences_.size())}, delta_threads(a.key_dim));
}

}  // namespace tq::metal
