#include "matrix.h"

#include <cstring>

namespace tq::metal {
namespace {

constexpr int64_t kAlign = 256;
int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace

std::shared_ptr<const Rotation> Rotation::make(const ContextPtr& context, int64_t n, uint64_t seed) {
  const auto plan = kernels::RotationPlan::make(n, seed);
  auto rotation = std::make_shared<Rotation>(context);
  metal_args::RotationArgs& args = rotation->args;
  if (plan.primes.size() > metal_args::kMaxPrimes)
    throw Error(Cause::unsupported, "rotation of width " + std::to_string(n) + " has too many odd factors");
  args.log2_block = uint32_t(plan.log2_block), args.n_primes = uint32_t(plan.primes.size());
  int64_t floats = 0;
  for (size_t p = 0; p < plan.primes.size(); p++) {
    args.primes[p] = uint32_t(plan.primes[p]);
    floats += int64_t(plan.hartley[p].size());
    rotation->small_primes &= args.primes[p] <= metal_args::kSmallPrime;
  }
  rotation->hartley_offset = round_up(n * 4, kAlign);
  rotation->memory.reserve(rotation->hartley_offset + std::max<int64_t>(floats, 1) * 4);
  std::copy(plan.signs.begin(), plan.signs.end(), rotation->memory.data<float>());
  float* to = rotation->memory.data<float>() + rotation->hartley_offset / 4;
  for (const auto& matrix : plan.hartley) to = std::copy(matrix.begin(), matrix.end(), to);
  return rotation;
}

bool Planes::show(const std::vector<Place>& places, int64_t sparse, int64_t may_copy) {
  const Limits limits = context_->device->limits();
  int64_t total = 0;
  uintptr_t first = UINTPTR_MAX, last = 0;
  for (const Place& p : places) {
    const auto at = reinterpret_cast<uintptr_t>(p.data);
    total += p.bytes, first = std::min(first, at), last = std::max(last, at + uintptr_t(p.bytes));
  }
  const auto page = uintptr_t(limits.page_bytes);
  first = first / page * page, last = (last + page - 1) / page * page;
  const auto range = int64_t(last - first);
  if (range <= limits.buffer_bytes && range / sparse <= total + 2 * limits.page_bytes)
    view_ = context_->device->view(reinterpret_cast<const void*>(first), range);
  if (view_) return view_start_ = reinterpret_cast<const char*>(first), true;
  if (total > may_copy) return false;
  copy(places);
  return true;
}

void Planes::copy(const std::vector<Place>& places) {
  int64_t total = 0;
  for (const Place& p : places) copied_.push_back({static_cast<const char*>(p.data), p.bytes, total}), total += round_up(p.bytes, kAlign);
  copy_.reserve(total);
  for (const Copied& c : copied_) std::memcpy(copy_.data() + c.offset, c.data, size_t(c.bytes));
}

Bound Planes::at(const void* data) const {
  const char* wanted = static_cast<const char*>(data);
  if (!wanted) return {context_->nothing.get(), 0};
  if (view_) return {view_.get(), wanted - view_start_};
  for (const Copied& c : copied_)
    if (c.data <= wanted && wanted < c.data + c.bytes) return copy_.at(c.offset + (wanted - c.data));
  throw Error(Cause::invalid_argument, "device metal: a plane that was not shown");
}

std::vector<Planes::Place> places_of(const TqnMatrix& w) {
  tqn::PlaneBytes bytes;
  if (!tqn::plane_bytes(uint64_t(w.n_out), uint64_t(w.n_in), w.k, &bytes) || w.n_out > INT32_MAX)
    throw Error(Cause::invalid_argument, "unusable shape or format");
  std::vector<Planes::Place> places = {{w.codes, int64_t(bytes.codes)}, {w.row_scale, int64_t(bytes.row_scale)}};
  if (w.codebook) places.push_back({w.codebook, int64_t(bytes.codebook)});
  const Outliers& s = w.outliers;
  if (s.count == 0) return places;
  places.push_back({s.ptr, (w.n_out + 1) * 4});
  places.push_back(s.col16 ? Planes::Place{s.col16, s.count * 2} : Planes::Place{s.col32, s.count * 4});
  places.push_back({s.val, s.count * 2});
  return places;
}

const void* MetalMatrix::columns() const {
  const Outliers& s = host.tqn.outliers;
  return s.col16 ? static_cast<const void*>(s.col16) : s.col32;
}

uint32_t MetalMatrix::outlier_flags() const {
  if (!has_outliers()) return 0;
  return host.tqn.outliers.col16 ? uint32_t(metal_args::kOutliers) : uint32_t(metal_args::kOutliers | metal_args::kWideColumns);
}

std::shared_ptr<MetalMatrix> make_matrix(const ContextPtr& context, const HostMatrix& host, std::shared_ptr<const Rotation> rotation) {
  auto m = std::make_shared<MetalMatrix>(context);
  m->name = host.name, m->n_out = host.n_out(), m->n_in = host.n_in(), m->host = host, m->rotation = std::move(rotation);
  if (host.packed) {
    m->planes.show(places_of(host.tqn), 2);
    return m;
  }
  if (host.dense.n_out > INT32_MAX || host.dense.n_in > INT32_MAX) throw Error(Cause::invalid_argument, host.name + ": unusable shape");
  const int64_t element = host.dense.type == kernels::DType::f32 ? 4 : 2;
  m->planes.show({{host.dense.data, host.dense.n_out * host.dense.n_in * element}}, 1);
  return m;
}

}  // namespace tq::metal
