#include "program.h"

#include <algorithm>
#include <bit>

#include "device.h"
#include "format/cache.h"

namespace tq::cuda {
namespace {

constexpr int kGraphRows = 32;  // batches up to this size are decoding: their kernels are short, and a graph saves launch time
constexpr int kMaxSplits = 32;  // ranges that the positions of one row are cut into
constexpr int kCodedBlocks = 4, kNarrowCodedBlocks = 6;  // of the decoding kernel over codes, for each processor; with a query a block
constexpr int kMinRunRows = 16;                          // prompts with fewer rows attend row by row

float* at(const Plane& plane) { return data(plane.buffer); }

OutputView view(const LinearOutput& out) { return {at(out.y) + out.y_offset, out.y.width, data(out.bias), out.alpha, out.add}; }

SourceView view(const LinearInput& in) { return {in.kind, in.activation, at(in.x), at(in.up), data(in.weight), in.eps, nullptr}; }

// Rows that decode over codes at once: their spans' states take some memory.
int64_t coded_rows(const AttentionOp& op) {
  constexpr int64_t kMost = int64_t(64) << 20;
  const int64_t row = op.shape.n_heads * int64_t(spans_of(op.capacity)) * (op.shape.head_dim + 2) * 4;
  return std::clamp<int64_t>(kMost / row, 1, kGraphRows);
}

DenseView columns_of(DenseView m, int64_t first, int64_t count) {
  m.data = static_cast<const char*>(m.data) + first * bytes_of(m.element), m.n_in = int(count);
  return m;
}

int top_rows(const TopOp& op) { return int(op.x.buffer->bytes / (op.x.width * int64_t(sizeof(float)))); }

void check_delta_net(const DeltaNetShape& s) {
  if (const int most = std::max(s.key_dim, s.value_dim); most > kMaxStateKeys)
    throw Error(Cause::unsupported, "device cuda: a recurrent layer's heads of " + std::to_string(most) + " elements, at most " +
                                        std::to_string(kMaxStateKeys));
}

bool same_table(const RopeTable& a, const RopeTable& b) {
  return a.inv_freq == b.inv_freq && a.dims == b.dims && a.magnitude == b.magnitude;
}

}  // namespace

CudaProgram::CudaProgram(std::vector<Op> ops, int64_t max_rows, Precision precision, Workspace& workspace,
                         const std::function<std::shared_ptr<const Rotation>(int64_t)>& rotation_of, cudaStream_t stream)
    : ops_(std::move(ops)),
      max_rows_(max_rows),
      precision_(precision),
      workspace_(workspace),
      stream_(stream),
      linear_(workspace, precision, stream),
      moe_(workspace, linear_, stream) {
  for (const Op& op : ops_)
    if (op.kind == Op::attention && op.attention_op.k_bits > 0) {
      const int64_t dim = op.attention_op.shape.head_dim;
      if (!rotations_[dim]) rotations_[dim] = rotation_of(dim);
      coded_ = true;
    }
  reserve();
}

CudaProgram::~CudaProgram() {
  if (inputs_.inherited()) return;
  drop_graphs();
  if (staged_) cudaFreeHost(staged_);
}

void CudaProgram::reserve() {
  int64_t angle_floats = 0;
  for (const Op& op : ops_) {
    if (op.kind == Op::delta_net) check_delta_net(op.delta_net_op.shape);
    if (op.kind == Op::linear) {
      std::vector<const CudaMatrix*> matrices;
      for (const LinearOutput& out : op.linear_op.out) matrices.push_back(&cuda(out.matrix));
      linear_.reserve(matrices, max_rows_);
    }
    if (op.kind == Op::embed) workspace_.vectors.reserve(max_rows_ * input_scratch_floats(int(op.embed_op.matrix->n_in)) * 4);
    if (op.kind == Op::top) workspace_.top.reserve(top_scratch_bytes(top_rows(op.top_op), int(op.top_op.x.width), op.top_op.k));
    if (op.kind == Op::moe) moe_.reserve(op.moe_op, max_rows_);
    if (op.kind != Op::attention) continue;
    const AttentionOp& a = op.attention_op;
    const int most = a.k_bits > 0 ? kMaxRunHeadDim : kMaxHeadDim;
    if (a.shape.head_dim % 8 != 0 || a.shape.head_dim > most)
      throw Error(Cause::unsupported, "device cuda: head size " + std::to_string(a.shape.head_dim) + " is not a multiple of 8 up to " +
                                          std::to_string(most) + (a.k_bits > 0 ? " (with a cache in codes)" : ""));
    reserve_attention(a);
    const bool known = std::any_of(angles_.begin(), angles_.end(), [&](const Angles& t) { return same_table(t.table, a.rope); });
    if (!a.rope.inv_freq || known) continue;
    angles_.push_back({a.rope, angle_floats});
    angle_floats += max_rows_ * (a.rope.dims / 2);
  }
  workspace_.cos.reserve(angle_floats * 4), workspace_.sin.reserve(angle_floats * 4);
  const int64_t ints = max_rows_ * kPieces;
  inputs_ = DeviceMemory(ints * 4);
  check(cudaMallocHost(reinterpret_cast<void**>(&staged_), size_t(ints) * 4), "pinned memory");
}

void CudaProgram::reserve_attention(const AttentionOp& op) {
  const int64_t few = std::min<int64_t>(max_rows_, kGraphRows), heads = op.shape.n_heads, state = (op.shape.head_dim + 2) * 4;
  if (op.k_bits == 0) return workspace_.partials.reserve(few * heads * kMaxSplits * state);
  workspace_.partials.reserve(std::max(std::min(few, coded_rows(op)) * spans_of(op.capacity), max_rows_) * heads * state);
  workspace_.q_codes.reserve(max_rows_ * heads * tqn::cache::padded(op.shape.head_dim));
  workspace_.q_scale.reserve(max_rows_ * heads * 4);
}

void CudaProgram::stage(const Batch& b) {
  const int rows = int(b.tokens.size());
  if (rows > max_rows_)
    throw Error(Cause::invalid_argument, "batch of " + std::to_string(rows) + " rows, prepared for " + std::to_string(max_rows_));
  runs_ = consecutive_runs(b, kQueryTile);
  int32_t* to = staged_;
  for (const auto& values : {b.tokens, b.positions, b.slots, b.output_rows}) std::copy(values.begin(), values.end(), to), to += max_rows_;
  std::copy_n(reinterpret_cast<const int32_t*>(runs_.data()), runs_.size() * 2, staged_ + kRuns * max_rows_);
  RowsBySlot by_slot = rows_by_slot(b);
  sequences_ = std::move(by_slot.sequences);
  std::copy(by_slot.order.begin(), by_slot.order.end(), staged_ + kOrder * max_rows_);
  int32_t* sequences =
      std::copy_n(reinterpret_cast<const int32_t*>(sequences_.data()), sequences_.size() * 2, staged_ + kSequences * max_rows_);
  std::fill(sequences, staged_ + kSequences * max_rows_ + 2 * rows, 0);  // a graph launches as many as there may be
  if (coded_) coded_spans_ = int(std::bit_ceil(unsigned(std::max(spans_of(*std::max_element(b.positions.begin(), b.positions.end())), 1))));
  const int32_t* from = inputs_.as<int32_t>();
  batch_ = {rows, int(b.output_rows.size()), from, from + max_rows_, from + 2 * max_rows_, from + 3 * max_rows_};
}

void CudaProgram::run(const Batch& batch) {
  if (batch.tokens.empty()) return;
  stage(batch);
  if (can_replay())
    replay();
  else
    launch_all();
  check(cudaStreamSynchronize(stream_), "running the model");
}

bool CudaProgram::can_replay() const {
  const auto needs_host = [&](const Op& op) { return op.kind == Op::moe && moe_.needs_host(op.moe_op, batch_.rows); };
  return batch_.rows <= kGraphRows && std::none_of(ops_.begin(), ops_.end(), needs_host);
}

void CudaProgram::drop_graphs() {
  for (auto& [shape, graph] : graphs_) cudaGraphExecDestroy(graph);
  graphs_.clear();
}

void CudaProgram::replay() {
  if (const int64_t now = workspace_.generation(); now != generation_) drop_graphs(), generation_ = now;
  cudaGraphExec_t& exec = graphs_[{batch_.rows, batch_.n_outputs, coded_spans_}];
  if (!exec) {
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capture");
    cudaGraph_t graph = nullptr;
    try {
      launch_all();
    } catch (...) {
      cudaStreamEndCapture(stream_, &graph);
      if (graph) cudaGraphDestroy(graph);
      throw;
    }
    check(cudaStreamEndCapture(stream_, &graph), "end of capture");
    const cudaError_t made = cudaGraphInstantiate(&exec, graph, 0);
    cudaGraphDestroy(graph);
    check(made, "graph");
  }
  check(cudaGraphLaunch(exec, stream_), "graph launch");
}

void CudaProgram::launch_all() {
  check(cudaMemcpyAsync(inputs_.as<void>(), staged_, size_t(inputs_.bytes()), cudaMemcpyHostToDevice, stream_), "batch inputs");
  fill_angles();
  for (const Op& op : ops_) launch(op);
}

void CudaProgram::fill_angles() {
  for (const Angles& a : angles_)
    angles(batch_, data(a.table.inv_freq), a.table.dims / 2, a.table.magnitude, workspace_.cos.as<float>() + a.offset,
           workspace_.sin.as<float>() + a.offset, stream_);
}

void CudaProgram::launch(const Op& op) {
  switch (op.kind) {
    case Op::embed:
      return launch_embed(op.embed_op);
    case Op::linear:
      return launch_linear(op.linear_op);
    case Op::norm: {
      const NormOp& o = op.norm_op;
      return norm(at(o.x), data(o.weight), o.eps, int(batch_.rows * o.groups), int(o.x.width / o.groups), at(o.y), stream_);
    }
    case Op::add_norm: {
      const AddNormOp& o = op.add_norm_op;
      return add_norm(at(o.x), data(o.weight), o.eps, o.alpha, o.scale, batch_.rows, int(o.x.width), at(o.y), stream_);
    }
    case Op::attention:
      return launch_attention(op.attention_op);
    case Op::soft_cap:
      if (batch_.n_outputs > 0)
        soft_cap(at(op.soft_cap_op.x), op.soft_cap_op.cap, int64_t(batch_.n_outputs) * op.soft_cap_op.x.width, stream_);
      return;
    case Op::top: {
      const TopOp& o = op.top_op;
      if (batch_.n_outputs > 0)
        top(at(o.x), batch_.n_outputs, int(o.x.width), o.k, workspace_.top.as<uint64_t>(), data<Candidate>(o.best), stream_);
      return;
    }
    case Op::moe:
      if (!op.moe_op.add)
        check(cudaMemsetAsync(at(op.moe_op.y), 0, size_t(batch_.rows * op.moe_op.y.width) * sizeof(float), stream_), "experts");
      return moe_.run(op.moe_op, view(op.moe_op.in), view(op.moe_op.router_in), batch_.rows);
    case Op::delta_net:
      return launch_delta_net(op.delta_net_op);
  }
}

void CudaProgram::launch_embed(const EmbedOp& op) {
  const CudaMatrix& m = cuda(op.matrix);
  if (m.packed)
    embed(m.tqn, rotation_of(m), batch_, op.scale, at(op.y), workspace_.vectors.as<float>(), stream_);
  else
    embed(columns_of(m.dense, op.column, op.y.width), batch_, op.scale, at(op.y), stream_);
}

void CudaProgram::launch_linear(const LinearOp& op) {
  const int rows = op.logits ? batch_.n_outputs : batch_.rows;
  if (rows == 0) return;
  SourceView source = view(op.in);
  if (op.logits) source.rows = batch_.output_rows;
  std::vector<Target> targets;
  for (const LinearOutput& out : op.out) targets.push_back({&cuda(out.matrix), view(out)});
  linear_.run(source, rows, targets);
}

void CudaProgram::launch_delta_net(const DeltaNetOp& op) {
  DeltaNetView v;
  v.shape = op.shape, v.batch = batch_, v.order = inputs_.as<int32_t>() + kOrder * max_rows_, v.sequences = device_sequences();
  v.qkv = at(op.qkv), v.conv = data(op.conv), v.rate = data(op.rate), v.dt_bias = data(op.dt_bias);
  v.alpha = at(op.alpha), v.beta = at(op.beta), v.state = data(op.state), v.convolved = at(op.convolved), v.out = at(op.out);
  delta_net(v, batch_.rows <= kGraphRows ? batch_.rows : int(sequences_.size()), stream_);
}

void CudaProgram::launch_attention(const AttentionOp& op) {
  AttentionView a;
  a.shape = op.shape, a.batch = batch_;
  a.q = at(op.q), a.k = at(op.k), a.v = at(op.v), a.out = at(op.out);
  a.k_cache = data<void>(op.k_cache), a.v_cache = data<void>(op.v_cache), a.cache_f32 = op.cache_f32;
  a.capacity = op.capacity, a.window = op.window, a.growth = op.growth, a.sinks = data(op.sinks),
  a.partials = workspace_.partials.as<float>();
  a.key_mean = data(op.key_mean), a.key_balance = data(op.key_balance);
  for (const Angles& t : angles_) {
    if (!op.rope.inv_freq || !same_table(t.table, op.rope)) continue;
    a.cos = workspace_.cos.as<float>() + t.offset, a.sin = workspace_.sin.as<float>() + t.offset;
    a.rope_dims = op.rope.dims, a.rope_pairs = op.rope.pairs;
  }
  if (op.k_bits > 0) return launch_coded(a, op);
  store_keys(a, stream_);
  if (by_runs() && !op.cache_f32 && op.shape.head_dim <= kMaxRunHeadDim) return attend_runs(a, device_runs(), int(runs_.size()), stream_);
  const int wanted = 2 * device_limits().processors / (batch_.rows * row_blocks(op.shape));
  attend_rows(a, batch_.rows > kGraphRows ? 1 : std::clamp(wanted, 1, kMaxSplits), stream_);
}

// Prompts in rows that follow each other; float activations attend row by row.
bool CudaProgram::by_runs() const {
  return precision_ == Precision::int8 && batch_.rows > kGraphRows && int(runs_.size()) * kMinRunRows <= batch_.rows;
}

void CudaProgram::launch_coded(const AttentionView& a, const AttentionOp& op) {
  const CodedView c{
      a, op.k_bits, op.v_bits, rotations_.at(op.shape.head_dim)->view, workspace_.q_codes.as<int8_t>(), workspace_.q_scale.as<float>()};
  if (!attends_alone(c)) store_codes(c, stream_);
  if (by_runs()) return attend_coded_runs(c, device_runs(), int(runs_.size()), stream_);
  const int at_once = int(coded_rows(op)), blocks = op.shape.n_heads == op.shape.n_kv_heads ? kNarrowCodedBlocks : kCodedBlocks;
  for (int first = 0; first < batch_.rows; first += at_once) {
    const int rows = std::min(at_once, batch_.rows - first);
    const int wanted = blocks * device_limits().processors / (rows * op.shape.n_kv_heads);
    attend_coded(c, first, rows, std::clamp(wanted, 1, std::min(coded_spans_, spans_of(op.capacity))), stream_);
  }
}

}  // namespace tq::cuda
