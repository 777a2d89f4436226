#include "gguf/mapping.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <limits>
#include <system_error>

#include "common/error.h"
#include "common/text.h"

namespace tq::gguf {

[[noreturn]] static void fail(const std::string& path, const std::string& why) {
  throw Error(Cause::io, "cannot open " + printable(path) + ": " + why);
}
[[noreturn]] static void fail_errno(const std::string& path) { fail(path, std::generic_category().message(errno)); }

// Closes on every way out; the mapping outlives the descriptor.
struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

Mapping::Mapping(const std::string& path) {
  // O_NONBLOCK: a FIFO must be refused, not waited for.
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0) fail_errno(path);
  struct stat info;
  if (::fstat(file.fd, &info) != 0) fail_errno(path);
  if (S_ISDIR(info.st_mode)) fail(path, "is a directory");
  if (!S_ISREG(info.st_mode)) fail(path, "is not a regular file");
  if (uint64_t(info.st_size) > std::numeric_limits<size_t>::max()) fail(path, "is larger than the address space");
  size_ = size_t(info.st_size);
  if (size_ == 0) return;  // mmap refuses empty files; the reader reports what is missing
  void* data = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (data == MAP_FAILED) fail_errno(path);
  data_ = static_cast<const uint8_t*>(data);
#ifdef MADV_HUGEPAGE
  // A file that is not in the page cache yet is then read into huge pages: two threads generate 6 to 9 % faster (docs/kernels.md).
  ::madvise(data, size_, MADV_HUGEPAGE);
#endif
}

Mapping::~Mapping() {
  if (data_) ::munmap(const_cast<uint8_t*>(data_), size_);
}

void Mapping::prefetch() const {
  if (data_) ::madvise(const_cast<uint8_t*>(data_), size_, MADV_WILLNEED);
}

bool Mapping::lock() const { return data_ && ::mlock(data_, size_) == 0; }

}  // namespace tq::gguf
