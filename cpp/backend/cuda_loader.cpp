// Finds libtq_cuda.so beside the module that holds this code, or on the loader's path. The core never depends on it.
#include <dlfcn.h>

#include "backend/cuda_library.h"
#include "common/error.h"

namespace tq {
namespace {

constexpr const char* kLibraryName = "libtq_cuda.so";

std::string own_folder() {
  Dl_info info;
  if (!dladdr(reinterpret_cast<const void*>(&own_folder), &info) || !info.dli_fname) return "";
  const std::string path = info.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash + 1);
}

struct Loaded {
  const CudaLibrary* entry = nullptr;
  std::string problem;
};

Loaded load() {
  void* handle = dlopen((own_folder() + kLibraryName).c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) handle = dlopen(kLibraryName, RTLD_NOW | RTLD_LOCAL);
  if (!handle) return {nullptr, std::string("unsupported: no CUDA backend (built with -C cmake.define.TQ_CUDA=ON): ") + dlerror()};
  const auto entry = reinterpret_cast<decltype(&tq_cuda_library)>(dlsym(handle, "tq_cuda_library"));
  if (!entry) return {nullptr, std::string("unsupported: ") + kLibraryName + " lacks tq_cuda_library"};
  const CudaLibrary* library = entry();
  if (library->version != kCudaLibraryVersion)
    return {nullptr, std::string("unsupported: ") + kLibraryName + " has version " + std::to_string(library->version) +
                         ", this build needs " + std::to_string(kCudaLibraryVersion)};
  return {library, ""};
}

const Loaded& loaded() {
  static const Loaded result = load();
  return result;
}

}  // namespace

const CudaLibrary& cuda_library() {
  if (!loaded().entry) throw Error(Cause::unsupported, "device cuda: " + loaded().problem);
  return *loaded().entry;
}

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options) { return std::unique_ptr<Backend>(cuda_library().make(options)); }

std::string cuda_status() { return loaded().entry ? loaded().entry->status(0) : loaded().problem; }

}  // namespace tq
