// Matrices in device memory.
#pragma once
#include <map>
#include <memory>

#include "memory.h"
#include "views.h"

namespace tq::cuda {

// A rotation's constants; matrices that read the same activation share one.
struct Rotation {
  RotationView view;
  DeviceMemory memory;
  static std::shared_ptr<const Rotation> make(int64_t n, uint64_t seed);
};

struct CudaMatrix final : Matrix {
  bool packed = false;
  PackedView tqn;                            // when packed
  DenseView dense;                           // when not
  std::shared_ptr<const Rotation> rotation;  // null: none
  DeviceMemory memory;
  std::shared_ptr<void> host;  // in its place for a matrix that is only looked up
};

std::shared_ptr<CudaMatrix> upload_matrix(const HostMatrix& host, std::shared_ptr<const Rotation> rotation);

inline const CudaMatrix& cuda(const Matrix* m) { return static_cast<const CudaMatrix&>(*m); }
inline RotationView rotation_of(const CudaMatrix& m) { return m.rotation ? m.rotation->view : RotationView{}; }

// Rows of `count` strips from `first` on, as a matrix and outputs of their own.
PackedView slice(const PackedView& matrix, int first, int count);
OutputView slice(const OutputView& out, int first_strip);

}  // namespace tq::cuda
