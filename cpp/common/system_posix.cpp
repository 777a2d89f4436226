// Linux and macOS.
#if !defined(_WIN32)
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <system_error>
#include <thread>
#if defined(__linux__)
#include <sched.h>
#endif

#include "common/error.h"
#include "common/system.h"
#include "common/text.h"

namespace tq::system {
namespace {

[[noreturn]] void fail(const std::string& path, const std::string& why) {
  throw Error(Cause::io, "cannot open " + printable(path) + ": " + why);
}
[[noreturn]] void fail_errno(const std::string& path) { fail(path, std::generic_category().message(errno)); }

// Closes on every way out; a mapping outlives the descriptor.
struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

void* writable(std::span<const uint8_t> bytes) { return const_cast<uint8_t*>(bytes.data()); }  // system calls take no const

}  // namespace

std::span<const uint8_t> map_file(const std::string& path) {
  // O_NONBLOCK: a FIFO must be refused, not waited for.
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0) fail_errno(path);
  struct stat info;
  if (::fstat(file.fd, &info) != 0) fail_errno(path);
  if (S_ISDIR(info.st_mode)) fail(path, "is a directory");
  if (!S_ISREG(info.st_mode)) fail(path, "is not a regular file");
  if (uint64_t(info.st_size) > std::numeric_limits<size_t>::max()) fail(path, "is larger than the address space");
  const size_t size = size_t(info.st_size);
  if (size == 0) return {};  // mmap refuses empty files; the reader reports what is missing
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (data == MAP_FAILED) fail_errno(path);
#ifdef MADV_HUGEPAGE
  // A file that is not in the page cache yet is then read into huge pages: two threads generate up to 9 % faster (docs/kernels.md).
  ::madvise(data, size, MADV_HUGEPAGE);
#endif
  return {static_cast<const uint8_t*>(data), size};
}

void unmap_file(std::span<const uint8_t> bytes) {
  if (!bytes.empty()) ::munmap(writable(bytes), bytes.size());
}

void prefetch(std::span<const uint8_t> bytes) {
  if (!bytes.empty()) ::madvise(writable(bytes), bytes.size(), MADV_WILLNEED);
}

bool lock_in_memory(std::span<const uint8_t> bytes) { return !bytes.empty() && ::mlock(bytes.data(), bytes.size()) == 0; }

void discard(std::span<uint8_t> bytes) {
#if defined(__linux__)
  const uintptr_t page = uintptr_t(::sysconf(_SC_PAGESIZE)), at = reinterpret_cast<uintptr_t>(bytes.data());
  const uintptr_t first = (at + page - 1) / page * page, last = (at + bytes.size()) / page * page;
  if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);  // a refusal costs only memory
#else
  (void)bytes;
#endif
}

std::string library_name(const std::string& name) {
#if defined(__APPLE__)
  return "lib" + name + ".dylib";
#else
  return "lib" + name + ".so";
#endif
}

void* load_library(const std::string& path, std::string& why) {
  void* handle = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    const char* text = ::dlerror();
    why = text ? text : "the system gives no reason";
  }
  return handle;
}

void* find_symbol(void* library, const char* name) { return ::dlsym(library, name); }

std::string folder_of(const void* address) {
  Dl_info info;
  if (!::dladdr(address, &info) || !info.dli_fname) return "";
  const std::string path = info.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash + 1);
}

int usable_cores() {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof set, &set) == 0) return std::max(CPU_COUNT(&set), 1);
#endif
  return std::max(int(std::thread::hardware_concurrency()), 1);
}

int process_id() { return int(::getpid()); }

}  // namespace tq::system
#endif
