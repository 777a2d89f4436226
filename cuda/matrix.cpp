#include "matrix.h"

#include <cstring>
#include <vector>

namespace tq::cuda {
namespace {

constexpr int64_t kPieceAlign = 256;
// Kernels read whole steps of a strip, so that the last strip's codes need this much readable memory behind them.
constexpr int64_t kCodesPadding = 64 * 256;

// Pieces of one allocation: first all sizes, then all addresses.
class Pieces {
 public:
  int64_t add(int64_t bytes) {
    const int64_t at = total_;
    total_ += round_up(bytes, kPieceAlign);
    return at;
  }
  int64_t total() const { return total_; }

 private:
  int64_t total_ = 0;
};

void copy(const DeviceMemory& memory, int64_t at, const void* from, int64_t bytes, const std::string& name) {
  if (bytes > 0) check(cudaMemcpy(memory.as<char>() + at, from, size_t(bytes), cudaMemcpyHostToDevice), "uploading " + name);
}

// Codes, strip by strip, in the order in which they stand on the device.
void copy_codes(const DeviceMemory& memory, int64_t at, const TqnMatrix& w, const std::string& name) {
  constexpr int64_t kMost = int64_t(16) << 20;
  const int tiles = int(tqn::tiles_per_strip(uint64_t(w.n_in)));
  const int64_t strips = int64_t(tqn::strips(uint64_t(w.n_out))), bytes = strip_bytes(tiles, w.k),
                at_once = std::max<int64_t>(kMost / bytes, 1);
  std::vector<uint8_t> part(size_t(std::min(strips, at_once) * bytes));
  const uint8_t* from = w.codes;
  for (int64_t first = 0; first < strips; first += at_once) {
    const int64_t count = std::min(at_once, strips - first);
    for (int64_t strip = 0; strip < count; strip++)
      for (int tile = 0; tile < tiles; tile++) {
        uint8_t* to =
            part.data() + strip * bytes + tile / kGroupTiles * kGroupTiles * tqn::tile_bytes(w.k) + tile % kGroupTiles * tqn::kTileLanes;
        for (int plane = 0; plane < w.k; plane++, from += tqn::kTileLanes) std::memcpy(to + plane * kGroupPlane, from, tqn::kTileLanes);
      }
    copy(memory, at + first * bytes, part.data(), count * bytes, name);
  }
}

Element element_of(kernels::DType type) {
  return type == kernels::DType::f16 ? Element::f16 : type == kernels::DType::bf16 ? Element::bf16 : Element::f32;
}

void upload_dense(CudaMatrix& m, const DenseMatrix& host) {
  const Element element = element_of(host.type);
  const int64_t width = host.n_in * bytes_of(element), stride = round_up(width, 64);
  m.memory = DeviceMemory(host.n_out * stride);
  check(cudaMemcpy2D(m.memory.as<char>(), size_t(stride), host.data, size_t(width), size_t(width), size_t(host.n_out),
                     cudaMemcpyHostToDevice),
        "uploading " + m.name);
  m.dense = {element, m.memory.as<char>(), stride, int(host.n_out), int(host.n_in)};
}

// A table of which a pass reads some rows stays where memory is plenty.
void keep_on_host(CudaMatrix& m, const DenseMatrix& host) {
  const Element element = element_of(host.type);
  const int64_t width = host.n_in * bytes_of(element);
  m.host = mapped_host_memory(host.n_out * width);
  std::memcpy(m.host.get(), host.data, size_t(host.n_out * width));
  void* seen = nullptr;
  check(cudaHostGetDevicePointer(&seen, m.host.get(), 0), "mapping " + m.name);
  m.dense = {element, seen, width, int(host.n_out), int(host.n_in)};
}

void upload_packed(CudaMatrix& m, const TqnMatrix& w) {
  tqn::PlaneBytes bytes;
  if (!tqn::plane_bytes(uint64_t(w.n_out), uint64_t(w.n_in), w.k, &bytes))
    throw Error(Cause::invalid_argument, m.name + ": unusable shape or format");
  const Outliers& s = w.outliers;
  const int64_t n_ptr = s.count ? w.n_out + 1 : 0, col_bytes = s.count * (s.col16 ? 2 : 4);
  Pieces pieces;
  const int64_t strips = int64_t(tqn::strips(uint64_t(w.n_out))), tiles = int64_t(tqn::tiles_per_strip(uint64_t(w.n_in)));
  const int64_t codes = pieces.add(strips * strip_bytes(int(tiles), w.k) + kCodesPadding), row_scale = pieces.add(int64_t(bytes.row_scale)),
                codebook = pieces.add(int64_t(bytes.codebook));
  const int64_t ptr = pieces.add(n_ptr * 4), col = pieces.add(col_bytes), val = pieces.add(s.count * 2);
  m.memory = DeviceMemory(pieces.total());
  copy_codes(m.memory, codes, w, m.name);
  copy(m.memory, row_scale, w.row_scale, int64_t(bytes.row_scale), m.name);
  copy(m.memory, codebook, w.codebook, int64_t(bytes.codebook), m.name);
  copy(m.memory, ptr, s.ptr, n_ptr * 4, m.name);
  copy(m.memory, col, s.col16 ? static_cast<const void*>(s.col16) : s.col32, col_bytes, m.name);
  copy(m.memory, val, s.val, s.count * 2, m.name);
  char* base = m.memory.as<char>();
  PackedView& v = m.tqn;
  v.codes = reinterpret_cast<uint8_t*>(base + codes), v.row_scale = reinterpret_cast<uint16_t*>(base + row_scale);
  v.codebook = reinterpret_cast<int8_t*>(base + codebook);
  if (bytes.codebook) std::memcpy(v.book.value, w.codebook, bytes.codebook);
  v.scale = w.scale, v.k = w.k, v.n_out = int(w.n_out), v.n_in = int(w.n_in);
  v.strips = int(strips), v.tiles = int(tiles);
  if (!s.count) return;
  v.outliers.ptr = reinterpret_cast<int32_t*>(base + ptr), v.outliers.val = reinterpret_cast<uint16_t*>(base + val);
  if (s.col16)
    v.outliers.col16 = reinterpret_cast<uint16_t*>(base + col);
  else
    v.outliers.col32 = reinterpret_cast<int32_t*>(base + col);
}

}  // namespace

std::shared_ptr<const Rotation> Rotation::make(int64_t n, uint64_t seed) {
  const auto plan = kernels::RotationPlan::make(n, seed);
  auto rotation = std::make_shared<Rotation>();
  RotationView& v = rotation->view;
  if (plan.primes.size() > std::size(v.primes))
    throw Error(Cause::unsupported, "rotation of width " + std::to_string(n) + " has too many odd factors");
  Pieces pieces;
  const int64_t signs = pieces.add(n * 4);
  std::vector<int64_t> at;
  for (const auto& matrix : plan.hartley) at.push_back(pieces.add(int64_t(matrix.size()) * 4));
  rotation->memory = DeviceMemory(pieces.total());
  copy(rotation->memory, signs, plan.signs.data(), n * 4, "rotation");
  v.n = int(n), v.log2_block = plan.log2_block, v.n_primes = int(plan.primes.size());
  v.signs = rotation->memory.as<float>();
  for (size_t p = 0; p < at.size(); p++) {
    copy(rotation->memory, at[p], plan.hartley[p].data(), int64_t(plan.hartley[p].size()) * 4, "rotation");
    v.primes[p] = plan.primes[p];
    v.hartley[p] = reinterpret_cast<const float*>(rotation->memory.as<char>() + at[p]);
  }
  return rotation;
}

std::shared_ptr<CudaMatrix> upload_matrix(const HostMatrix& host, std::shared_ptr<const Rotation> rotation) {
  auto m = std::make_shared<CudaMatrix>();
  m->name = host.name, m->n_out = host.n_out(), m->n_in = host.n_in();
  m->packed = host.packed, m->rotation = std::move(rotation);
  if (host.packed)
    upload_packed(*m, host.tqn);
  else if (host.only_looked_up)
    keep_on_host(*m, host.dense);
  else
    upload_dense(*m, host.dense);
  return m;
}

PackedView slice(const PackedView& matrix, int first, int count) {
  PackedView part = matrix;
  const int row = first * tqn::kTileRows;
  part.codes = matrix.group(first, 0);
  part.row_scale += row;
  if (part.outliers.ptr) part.outliers.ptr += row;
  part.strips = count, part.n_out = std::min(matrix.n_out - row, count * tqn::kTileRows);
  return part;
}

OutputView slice(const OutputView& out, int first_strip) {
  OutputView part = out;
  part.y += first_strip * tqn::kTileRows;
  if (part.bias) part.bias += first_strip * tqn::kTileRows;
  return part;
}

}  // namespace tq::cuda
