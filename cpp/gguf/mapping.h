// A file mapped read-only into memory.
#pragma once
#include <cstdint>
#include <span>
#include <string>

namespace tq::gguf {

class Mapping {
 public:
  explicit Mapping(const std::string& path);  // throws Error(io) naming the path and the system's reason
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  std::span<const uint8_t> bytes() const { return {data_, size_}; }
  void prefetch() const;
  bool lock() const;

 private:
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace tq::gguf
