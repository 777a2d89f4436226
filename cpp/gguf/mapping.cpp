#include "gguf/mapping.h"

#include "common/system.h"

namespace tq::gguf {

Mapping::Mapping(const std::string& path) : bytes_(system::map_file(path)) {}
Mapping::~Mapping() { system::unmap_file(bytes_); }
void Mapping::prefetch() const { system::prefetch(bytes_); }
bool Mapping::lock() const { return system::lock_in_memory(bytes_); }

}  // namespace tq::gguf
