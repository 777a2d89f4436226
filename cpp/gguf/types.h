// The numbers that GGUF gives to tensor types, and how many bytes a block of each holds.
#pragma once
#include <cstdint>

namespace tq::gguf {

enum TensorType : uint32_t { kF32 = 0, kF16 = 1, kI8 = 24, kI16 = 25, kI32 = 26, kI64 = 27, kF64 = 28, kBF16 = 30 };

struct TypeLayout {
  uint32_t type;
  const char* name;
  uint32_t block;  // elements
  uint32_t bytes;  // of a block
};

const TypeLayout* type_layout(uint32_t type);  // null for a type that no file may contain

}  // namespace tq::gguf
