// The gated delta net (format/delta_net.h). A simdgroup convolves one head of a row; a thread-group then takes kStateColumns columns of one
// head's state through all rows of a sequence, the state in registers, some lanes a pair of columns. Columns do not see each other and rows
// follow one by one: a result depends neither on how a prompt is cut nor on what else is in the batch. Simdgroups do not meet: no barriers.
#include "arguments.h"
#include "elements.h"

namespace tq {
using namespace metal_args;

TQ_CONSTANT uint kConvolveSimds = kConvolveThreads / 32;

// The rows of a batch, and the states of its slots.
struct DeltaBatch {
  device const int *order, *positions, *slots;
  device const float *qkv, *state;
};

// The row `back` places before place i of the order, if it is of the same slot; else -1.
inline int row_before(thread const DeltaBatch& b, uint i, uint back, int slot) {
  if (i < back) return -1;
  const int row = b.order[i - back];
  return b.slots[row] == slot ? row : -1;
}

// A lane's channels of a head, first + 32 j + lane, behind the convolution and silu; 0 beyond the n of the head. Inputs of positions before
// the batch's come from the state.
template <int V>
inline void convolve(constant DeltaArgs& a, thread const DeltaBatch& b, device const float* conv, uint i, uint first, uint n, uint lane,
                     thread float (&total)[V]) {
  const int row = b.order[i], slot = b.slots[row];
  const uint position = uint(b.positions[row]), kept = a.taps - 1;
  device const float* recent = b.state + ulong(slot) * a.state_floats;
  TQ_UNROLL
  for (int j = 0; j < V; j++) total[j] = 0;
  for (uint tap = kept > position ? kept - position : 0; tap <= kept; tap++) {
    const uint back = kept - tap;
    const int before = row_before(b, i, back, slot);
    device const float* x =
        (before >= 0 ? b.qkv + ulong(before) * a.conv_width : recent + ulong((position - back) % kept) * a.conv_width) + first + lane;
    device const float* weight = conv + ulong(tap) * a.conv_width + first + lane;
    TQ_UNROLL
    for (int j = 0; j < V; j++)
      if (uint(j) * 32 + lane < n) total[j] = fma(weight[j * 32], x[j * 32], total[j]);
  }
  TQ_UNROLL
  for (int j = 0; j < V; j++) total[j] /= 1.0f + exp(-total[j]);
}

// V: elements of a head in a lane. Queries and keys become x / sqrt(sum(x^2) + eps), queries are divided by sqrt(key_dim) as well.
template <int V>
inline void convolve_head(constant DeltaArgs& a, thread const DeltaBatch& b, device const float* conv, uint i, uint head, uint lane,
                          device float* convolved) {
  const bool normed = head < 2 * a.n_key_heads;
  const uint n = normed ? a.key_dim : a.value_dim;
  const uint first = normed ? head * n : 2 * a.n_key_heads * a.key_dim + (head - 2 * a.n_key_heads) * n;
  float x[V], squares = 0;
  convolve<V>(a, b, conv, i, first, n, lane, x);
  TQ_UNROLL
  for (int j = 0; j < V; j++) squares = fma(x[j], x[j], squares);
  float factor = 1;
  if (normed) factor = 1.0f / sqrt(simd_sum(squares) + a.eps);
  if (head < a.n_key_heads) factor /= sqrt(float(n));
  device float* to = convolved + ulong(b.order[i]) * a.conv_width + first;
  TQ_UNROLL
  for (int j = 0; j < V; j++)
    if (uint(j) * 32 + lane < n) to[uint(j) * 32 + lane] = factor * x[j];
}

// log(1 + exp(x)): what the sum has lost of a small exponential, the quotient brings back.
inline float softplus(float x) {
  if (x > 20.0f) return x;
  const float e = exp(x), sum = 1.0f + e;
  return sum == 1.0f ? e : log(sum) * (e / (sum - 1.0f));
}

// alpha becomes the factor by which the state decays, beta the share of a value's error that is written.
inline void open_gates(constant DeltaArgs& a, device const float* rate, device const float* dt_bias, device float* alpha,
                       device float* beta, uint row, uint lane) {
  for (uint head = lane; head < a.n_value_heads; head += 32) {
    const ulong at = ulong(row) * a.n_value_heads + head;
    alpha[at] = exp(rate[head] * softplus(alpha[at] + dt_bias[head]));
    beta[at] = 1.0f / (1.0f + exp(-beta[at]));
  }
}

// What a lane goes through: a sequence's rows, a head, a pair of its columns.
struct DeltaRows {
  device const int* order;                                 // from the sequence's first place on
  uint count, head, key_head, first_column, columns, own;  // columns: of the thread-group; own: the lane's first of them
  bool whole;                                              // keys and queries may be read four at a time
  device const float *convolved, *decay, *beta;
  device float* out;
};

// A lane's elements of a key or query, of which four lie together: element e of four j is (L j + l) 4 + e. Zeros beyond its n.
template <int L, int R>
inline void load_elements(device const float* from, uint n, bool whole, uint l, thread float (&x)[R]) {
  TQ_UNROLL
  for (int j = 0; j < R; j += 4) {
    const uint at = (uint(j / 4 * L) + l) * 4;
    const float4 all = at < n ? four<Float32>(from, at, n, whole) : float4(0.0f);
    x[j] = all.x, x[j + 1] = all.y, x[j + 2] = all.z, x[j + 3] = all.w;
  }
}

template <int R>
inline float dot_elements(thread const float (&x)[R], thread const float (&y)[R]) {
  float sums[4] = {0, 0, 0, 0};
  TQ_UNROLL
  for (int j = 0; j < R; j++) sums[j % 4] = fma(x[j], y[j], sums[j % 4]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// One column of a state: it decays, and gets its share of a key.
template <int R>
inline void change_column(thread float (&state)[R], thread const float (&k)[R], float decay, float delta) {
  TQ_UNROLL
  for (int j = 0; j < R; j++) state[j] = fma(k[j], delta, decay * state[j]);
}

inline void write_results(constant DeltaArgs& a, thread const DeltaRows& r, int row, float first, float second, uint l) {
  if (l > 1 || r.own + l >= r.columns) return;
  r.out[(ulong(row) * a.n_value_heads + r.head) * a.value_dim + r.first_column + r.own + l] = l == 0 ? first : second;
}

// The sequence's rows one after the other, for the two columns of a lane. A row's results are summed over the lanes together with what the
// next row's key finds: nothing waits for them. Cuts of a sequence leave each sum as it is.
template <int L, int R>
inline void recur(constant DeltaArgs& a, thread const DeltaRows& r, uint l, thread float (&one)[R], thread float (&two)[R]) {
  const uint key_width = a.n_key_heads * a.key_dim;
  device const float* queries = r.convolved + r.key_head * a.key_dim;
  device const float* values = r.convolved + 2 * key_width + r.head * a.value_dim + r.first_column + r.own;
  float k[R], q[R];
  float4 sums = float4(0.0f);  // what the key finds in both columns, and the results of the row before
  int row = r.order[0], before = row;
  load_elements<L, R>(queries + ulong(row) * a.conv_width + key_width, a.key_dim, r.whole, l, k);
  for (uint t = 0; t < r.count; t++) {
    const ulong at = ulong(row) * a.conv_width, gate = ulong(row) * a.n_value_heads + r.head;
    load_elements<L, R>(queries + at, a.key_dim, r.whole, l, q);
    const float decay = r.decay[gate], beta = r.beta[gate];
    const float first = r.own < r.columns ? values[at] : 0.0f, second = r.own + 1 < r.columns ? values[at + 1] : 0.0f;
    sums.x = dot_elements<R>(one, k), sums.y = dot_elements<R>(two, k);
    TQ_UNROLL
    for (int d = 1; d < L; d *= 2) sums = sums + simd_shuffle_xor(sums, ushort(d));
    if (t > 0) write_results(a, r, before, sums.z, sums.w, l);
    change_column<R>(one, k, decay, beta * fma(-decay, sums.x, first));
    change_column<R>(two, k, decay, beta * fma(-decay, sums.y, second));
    before = row, row = r.order[min(t + 1, r.count - 1)];
    load_elements<L, R>(queries + ulong(row) * a.conv_width + key_width, a.key_dim, r.whole, l, k);
    sums.z = dot_elements<R>(one, q), sums.w = dot_elements<R>(two, q);
  }
  TQ_UNROLL
  for (int d = 1; d < L; d *= 2) sums = sums + simd_shuffle_xor(sums, ushort(d));
  write_results(a, r, before, sums.z, sums.w, l);
}

// The inputs of the sequence's last positions, for the next pass; its thread-groups share the channels.
inline void keep_inputs(constant DeltaArgs& a, thread const DeltaBatch& b, thread const DeltaRows& r, device float* state, uint part,
                        uint parts, uint tid, uint threads) {
  const uint kept = a.taps - 1, first = uint(ulong(a.conv_width) * part / parts), last = uint(ulong(a.conv_width) * (part + 1) / parts);
  for (uint t = r.count > kept ? r.count - kept : 0; t < r.count; t++) {
    const int row = r.order[t];
    device float* to = state + ulong(uint(b.positions[row]) % kept) * a.conv_width;
    for (uint c = first + tid; c < last; c += threads) to[c] = b.qkv[ulong(row) * a.conv_width + c];
  }
}

// A lane's elements of a column of a state's block, (key_dim, columns); those beyond are 0 and stay so.
template <int L, int R>
inline void load_column(device const float* block, constant DeltaArgs& a, thread const DeltaRows& r, uint own, bool begins, uint l,
                        thread float (&state)[R]) {
  TQ_UNROLL
  for (int j = 0; j < R; j++) {
    const uint i = (uint(j / 4 * L) + l) * 4 + uint(j % 4);
    state[j] = begins || i >= a.key_dim || own >= r.columns ? 0.0f : block[i * r.columns + own];
  }
}
template <int L, int R>
inline void store_column(device float* block, constant DeltaArgs& a, thread const DeltaRows& r, uint own, uint l,
                         thread const float (&state)[R]) {
  TQ_UNROLL
  for (int j = 0; j < R; j++) {
    const uint i = (uint(j / 4 * L) + l) * 4 + uint(j % 4);
    if (i < a.key_dim && own < r.columns) block[i * r.columns + own] = state[j];
  }
}

}  // namespace tq

using namespace tq;

template <int V>
kernel void delta_convolve(constant DeltaArgs& a [[buffer(0)]], device const float* qkv [[buffer(1)]],
                           device const float* conv [[buffer(2)]], device const float* rate [[buffer(3)]],
                           device const float* dt_bias [[buffer(4)]], device float* alpha [[buffer(5)]], device float* beta [[buffer(6)]],
                           device const float* state [[buffer(7)]], device const int* order [[buffer(8)]],
                           device const int* positions [[buffer(9)]], device const int* slots [[buffer(10)]],
                           device float* convolved [[buffer(11)]], TQ_IDS) {
  const uint heads = 2 * a.n_key_heads + a.n_value_heads, head = group.x * kConvolveSimds + sg;
  const DeltaBatch b = {order, positions, slots, qkv, state};
  if (head < heads) convolve_head<V>(a, b, conv, group.y, head, lane, convolved);
  if (head == heads) open_gates(a, rate, dt_bias, alpha, beta, uint(order[group.y]), lane);
}
TQ_INSTANCE(delta_convolve_128, delta_convolve, 4)
TQ_INSTANCE(delta_convolve_512, delta_convolve, 16)

// L: lanes of a pair of columns; R: elements of a column in a lane.
template <int L, int R>
kernel void delta_recur(constant DeltaArgs& a [[buffer(0)]], device const float* qkv [[buffer(1)]],
                        device const float* convolved [[buffer(2)]], device const float* decay [[buffer(3)]],
                        device const float* beta [[buffer(4)]], device float* states [[buffer(5)]], device const int* order [[buffer(6)]],
                        device const int* positions [[buffer(7)]], device const int* slots [[buffer(8)]],
                        device const int* sequences [[buffer(9)]], device float* out [[buffer(10)]], TQ_IDS) {
  const uint head = group.x, first_column = group.y * kStateColumns, l = lane % L;
  const DeltaRows r = {order + sequences[2 * group.z],
                       uint(sequences[2 * group.z + 1]),
                       head,
                       a.tiled ? head % a.n_key_heads : head / (a.n_value_heads / a.n_key_heads),
                       first_column,
                       min(uint(kStateColumns), a.value_dim - first_column),
                       tid / L * 2,
                       a.key_dim % 4 == 0 && a.conv_width % 4 == 0,
                       convolved,
                       decay,
                       beta,
                       out};
  const DeltaBatch b = {order, positions, slots, qkv, states};
  const int row = r.order[0];
  device float* state = states + ulong(slots[row]) * a.state_floats;
  device float* block = state + (a.taps - 1) * a.conv_width + (head * a.value_dim + first_column) * a.key_dim;
  const bool begins = positions[row] == 0;
  float one[R], two[R];
  load_column<L, R>(block, a, r, r.own, begins, l, one);
  load_column<L, R>(block, a, r, r.own + 1, begins, l, two);
  keep_inputs(a, b, r, state, group.y * groups.x + group.x, groups.x * groups.y, tid, delta_threads(a.key_dim));
  recur<L, R>(a, r, l, one, two);
  store_column<L, R>(block, a, r, r.own, l, one);
  store_column<L, R>(block, a, r, r.own + 1, l, two);
}
TQ_INSTANCE(delta_recur_32, delta_recur, 8, 4)
TQ_INSTANCE(delta_recur_64, delta_recur, 8, 8)
TQ_INSTANCE(delta_recur_128, delta_recur, 8, 16)
TQ_INSTANCE(delta_recur_256, delta_recur, 16, 16)
TQ_INSTANCE(delta_recur_512, delta_recur, 32, 16)
