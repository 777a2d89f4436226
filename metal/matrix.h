// Matrices as kernels see them: views of the mapped file where that is possible.
#pragma once
#include <array>

#include "arguments.h"
#include "memory.h"

namespace tq::metal {

// A rotation's constants; matrices that read the same activation share one.
struct Rotation {
  explicit Rotation(ContextPtr context) : memory(std::move(context)) {}
  static std::shared_ptr<const Rotation> make(const ContextPtr& context, int64_t n, uint64_t seed);
  metal_args::RotationArgs args{};
  bool small_primes = true;
  Allocation memory;
  int64_t hartley_offset = 0;
  Bound signs() const { return memory.at(); }
  Bound hartley() const { return memory.at(hartley_offset); }
};

// Host memory that kernels read, from several places: shown as one view where the places stand close together, else copied.
class Planes {
 public:
  struct Place {
    const void* data = nullptr;
    int64_t bytes = 0;
  };
  explicit Planes(const ContextPtr& context) : context_(context), copy_(context) {}
  ~Planes() {
    if (context_->inherited()) (void)view_.release();
  }
  Planes(const Planes&) = delete;
  // sparse: how many times its contents a view may show. Returns false when `may_copy` is less than what would have to be copied.
  bool show(const std::vector<Place>& places, int64_t sparse, int64_t may_copy = INT64_MAX);
  Bound at(const void* data) const;  // data: in one of the places; null: nothing
  int64_t offset(const void* data) const { return data ? at(data).offset : 0; }
  Bound start() const { return {memory(), 0}; }

 private:
  const Memory* memory() const { return view_ ? view_.get() : copy_.at().memory; }
  void copy(const std::vector<Place>& places);

  ContextPtr context_;
  std::unique_ptr<Memory> view_;
  const char* view_start_ = nullptr;
  Allocation copy_;
  struct Copied {
    const char* data;
    int64_t bytes, offset;
  };
  std::vector<Copied> copied_;
};

struct MetalMatrix final : Matrix {
  explicit MetalMatrix(const ContextPtr& context) : planes(context) {}
  HostMatrix host;
  Planes planes;
  std::shared_ptr<const Rotation> rotation;  // null: none
  bool packed() const { return host.packed; }
  bool has_outliers() const { return host.packed && host.tqn.outliers.count > 0; }
  uint32_t strips() const { return uint32_t(tqn::strips(uint64_t(host.tqn.n_out))); }
  const void* columns() const;
  uint32_t outlier_flags() const;
};

// What a packed matrix's kernels read of host memory.
std::vector<Planes::Place> places_of(const TqnMatrix& w);
std::shared_ptr<MetalMatrix> make_matrix(const ContextPtr& context, const HostMatrix& host, std::shared_ptr<const Rotation> rotation);

inline const MetalMatrix& metal(const Matrix* m) { return static_cast<const MetalMatrix&>(*m); }

}  // namespace tq::metal
