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
  std::span<const uint8_t> bytes() const { return bytes_; }
  void prefetch() const;
  bool lock() const;

 private:
  std::span<const uint8_t> bytes_;
};

}  // namespace tq::gguf
