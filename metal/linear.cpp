#include "linear.h"

namespace tq::metal {
namespace {

using namespace metal_args;

constexpr int64_t kGemvRows = 16;       // up to this many rows, decoding again for each four beats the prompt's kernel
constexpr int64_t kDenseGemvRows = 8;   // the same for unquantized matrices
constexpr int64_t kGroupsPerCore = 8;   // thread-groups that fill a core of the GPU
constexpr uint32_t kUnknownCores = 10;  // where the system does not say

uint32_t thread_groups(const Context& c) {
  const uint32_t cores = c.device->limits().cores;
  return uint32_t(kGroupsPerCore) * (cores ? cores : kUnknownCores);
}

LinearArgs arguments(const Target& t, int64_t rows) {
  LinearArgs a{};
  a.n_out = uint32_t(t.matrix->n_out), a.n_in = uint32_t(t.matrix->n_in), a.rows = uint32_t(rows), a.x_stride = a.n_in;
  a.y_stride = uint32_t(t.y_stride), a.y_offset = uint32_t(t.y_offset), a.splits = 1, a.alpha = t.alpha;
  a.flags = (t.add ? kAdd : 0u) | (t.bias.real ? kBias : 0u);
  return a;
}

const char* suffix(kernels::DType type) { return type == kernels::DType::f32 ? "f32" : type == kernels::DType::f16 ? "f16" : "bf16"; }

}  // namespace

// Tokens that a thread-group multiplies by what it has decoded.
uint32_t LinearRunner::tokens_at_once(int64_t rows) const { return rows == 1 ? 1 : rows == 2 && !float_path() ? 2 : 4; }

// Parts of the columns that thread-groups of their own take: narrow matrices would leave cores idle.
uint32_t LinearRunner::splits(const MetalMatrix& m, int64_t rows) const {
  const int64_t groups = int64_t(m.strips()) * pieces(rows, tokens_at_once(rows)), steps = pieces(m.n_in, kGemvStepColumns);
  return uint32_t(std::clamp<int64_t>(thread_groups(*w_.context) / groups, 1, steps));
}

void LinearRunner::reserve_forms(int64_t n, int64_t rows) {
  w_.plain.reserve(rows * n * 4);
  if (float_path())
    w_.rotated.reserve(rows * n * 4);
  else
    w_.quantized.reserve(rows * n), w_.scale.reserve(rows * 4);
}

void LinearRunner::reserve(const std::vector<const MetalMatrix*>& matrices, int64_t rows) {
  for (const MetalMatrix* m : matrices) {
    reserve_forms(m->n_in, rows);
    if (!m->packed()) continue;
    if (m->n_in > kMostShared || (m->rotation && !m->rotation->small_primes)) w_.vectors.reserve(rows * 2 * padded(uint32_t(m->n_in)) * 4);
    for (int64_t r = 1; r <= (float_path() ? rows : std::min(rows, kGemvRows)); r++) {
      const uint32_t parts = splits(*m, r);
      if (parts == 1 && r > 4) break;
      w_.partials.reserve(int64_t(parts) * r * m->strips() * tqn::kTileRows * 4);
    }
  }
}

void LinearRunner::prepare(const Source& source, int64_t rows, int64_t n, const Rotation* rotation, uint32_t flags) {
  InputArgs a{};
  a.n = uint32_t(n), a.kind = uint32_t(source.kind), a.activation = uint32_t(source.activation), a.eps = source.eps;
  a.flags = flags | (source.rows.real ? kGather : 0u) | (source.weight.real ? kWeight : 0u) | (rotation ? kRotate : 0u);
  if (rotation) a.rotation = rotation->args;
  const bool wide = n > kMostShared || (rotation && !rotation->small_primes);
  const std::string kernel = wide ? "input_wide" : n > 4096 ? "input_7680" : n > 2048 ? "input_4096" : "input_2048";
  const Bound nothing = w_.nothing().bound;
  const auto or_nothing = [&](const Operand& o) { return o.real ? o.bound : nothing; };
  if (wide) w_.vectors.reserve(rows * 2 * padded(a.n) * 4);
  launch(*w_.context, kernel, a,
         {source.x, or_nothing(source.up), or_nothing(source.weight), or_nothing(source.rows), rotation ? rotation->signs() : nothing,
          rotation ? rotation->hartley() : nothing, w_.plain.at(), w_.rotated.at(), w_.quantized.at(), w_.scale.at(), w_.vectors.at()},
         {uint32_t(rows)}, input_threads(a.n));
}

void LinearRunner::run(const Source& source, int64_t rows, const std::vector<Target>& targets) {
  const int64_t n = targets[0].matrix->n_in;
  const bool wants_plain =
      std::any_of(targets.begin(), targets.end(), [](const Target& t) { return !t.matrix->packed() || t.matrix->has_outliers(); });
  uint32_t plain = wants_plain ? uint32_t(kPlain) : 0u;
  std::vector<Target> left = targets;
  const auto dense = std::stable_partition(left.begin(), left.end(), [](const Target& t) { return t.matrix->packed(); });
  if (dense != left.end()) {
    const bool as_it_lies = source.kind == LinearInput::plain && !source.rows.real;
    if (!as_it_lies) prepare(source, rows, n, nullptr, plain), plain = 0;
    for (auto t = dense; t != left.end(); ++t) multiply_dense(*t, as_it_lies ? source.x : w_.plain.at(), rows);
    left.erase(dense, left.end());
  }
  while (!left.empty()) {
    const Rotation* rotation = left[0].matrix->rotation.get();
    const auto others =
        std::stable_partition(left.begin(), left.end(), [&](const Target& t) { return t.matrix->rotation.get() == rotation; });
    prepare(source, rows, n, rotation, plain | (float_path() ? kRotated : kQuantized));
    plain = 0;
    for (auto t = left.begin(); t != others; ++t) multiply_packed(*t, rows);
    left.erase(left.begin(), others);
  }
}

void LinearRunner::multiply_dense(const Target& t, const Bound& x, int64_t rows) {
  const LinearArgs a = arguments(t, rows);
  const DenseMatrix& m = t.matrix->host.dense;
  const Bound bias = t.bias.real ? t.bias.bound : w_.nothing().bound;
  const bool few = rows <= kDenseGemvRows;
  launch(*w_.context, (few ? "gemv_dense_" : "gemm_dense_") + std::string(suffix(m.type)), a, {t.matrix->planes.at(m.data), x, t.y, bias},
         {pieces(m.n_out, few ? kDenseRows : kGemmRows), pieces(rows, few ? kDenseTokens : kGemmTokens)},
         few ? kGemvThreads : kGemmThreads);
}

void LinearRunner::multiply_packed(const Target& t, int64_t rows) {
  const MetalMatrix& m = *t.matrix;
  const TqnMatrix& host = m.host.tqn;
  const bool few = float_path() || rows <= kGemvRows;
  LinearArgs a = arguments(t, rows);
  a.scale = host.scale, a.flags |= m.outlier_flags();
  if (few) a.splits = splits(m, rows);
  const auto run = [&](const std::string& kernel, Size3 groups, uint32_t threads) {
    launch(*w_.context, kernel, a,
           {m.planes.at(host.codes), m.planes.at(host.row_scale), m.planes.at(host.codebook),
            float_path() ? w_.rotated.at() : w_.quantized.at(), w_.scale.at(), t.y, t.bias.real ? t.bias.bound : w_.nothing().bound,
            m.planes.at(m.has_outliers() ? host.outliers.ptr : nullptr), m.planes.at(m.has_outliers() ? m.columns() : nullptr),
            m.planes.at(m.has_outliers() ? host.outliers.val : nullptr), w_.plain.at(), w_.partials.at()},
           groups, threads);
  };
  const std::string k = "_k" + std::to_string(host.k);
  if (!few) return run("gemm" + k, {m.strips(), pieces(rows, kGemmTokens)}, kGemmThreads);
  const uint32_t at_once = tokens_at_once(rows);
  const std::string name = float_path() ? "gemvf" : "gemv";
  run(name + k + "_m" + std::to_string(at_once), {m.strips(), a.splits, pieces(rows, at_once)}, kGemvThreads);
  if (a.splits > 1) run(name + "_finish", {m.strips(), 1, uint32_t(rows)}, kGemvThreads);
}

}  // namespace tq::metal
