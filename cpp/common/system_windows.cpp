// Windows 10 and later. Paths come in UTF-8.
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <system_error>

#include "common/error.h"
#include "common/system.h"
#include "common/text.h"

namespace tq::system {
namespace {

[[noreturn]] void fail(const std::string& path, const std::string& why) {
  throw Error(Cause::io, "cannot open " + printable(path) + ": " + why);
}
std::string last_error() { return std::system_category().message(int(::GetLastError())); }

std::wstring wide(const std::string& text) {
  const int size = ::MultiByteToWideChar(CP_UTF8, 0, text.data(), int(text.size()), nullptr, 0);
  std::wstring out(size_t(std::max(size, 0)), L'\0');
  ::MultiByteToWideChar(CP_UTF8, 0, text.data(), int(text.size()), out.data(), size);
  return out;
}

std::string utf8(const std::wstring& text) {
  const int size = ::WideCharToMultiByte(CP_UTF8, 0, text.data(), int(text.size()), nullptr, 0, nullptr, nullptr);
  std::string out(size_t(std::max(size, 0)), '\0');
  ::WideCharToMultiByte(CP_UTF8, 0, text.data(), int(text.size()), out.data(), size, nullptr, nullptr);
  return out;
}

struct Closed {
  HANDLE handle;
  ~Closed() {
    if (handle && handle != INVALID_HANDLE_VALUE) ::CloseHandle(handle);
  }
};

void* writable(std::span<const uint8_t> bytes) { return const_cast<uint8_t*>(bytes.data()); }

}  // namespace

std::span<const uint8_t> map_file(const std::string& path) {
  const std::wstring name = wide(path);
  const DWORD attributes = ::GetFileAttributesW(name.c_str());
  if (attributes != INVALID_FILE_ATTRIBUTES && attributes & FILE_ATTRIBUTE_DIRECTORY) fail(path, "is a directory");
  // Others may rename or delete the file meanwhile, as on other systems.
  const Closed file{::CreateFileW(name.c_str(), GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, nullptr,
                                  OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr)};
  if (file.handle == INVALID_HANDLE_VALUE) fail(path, last_error());
  if (::GetFileType(file.handle) != FILE_TYPE_DISK) fail(path, "is not a regular file");
  LARGE_INTEGER length;
  if (!::GetFileSizeEx(file.handle, &length)) fail(path, last_error());
  if (uint64_t(length.QuadPart) > std::numeric_limits<size_t>::max()) fail(path, "is larger than the address space");
  if (length.QuadPart == 0) return {};  // an empty file cannot be mapped; the reader reports what is missing
  const Closed mapping{::CreateFileMappingW(file.handle, nullptr, PAGE_READONLY, 0, 0, nullptr)};
  if (!mapping.handle) fail(path, last_error());
  const void* data = ::MapViewOfFile(mapping.handle, FILE_MAP_READ, 0, 0, 0);
  if (!data) fail(path, last_error());
  return {static_cast<const uint8_t*>(data), size_t(length.QuadPart)};
}

void unmap_file(std::span<const uint8_t> bytes) {
  if (!bytes.empty()) ::UnmapViewOfFile(bytes.data());
}

void prefetch(std::span<const uint8_t> bytes) {
  WIN32_MEMORY_RANGE_ENTRY range{writable(bytes), bytes.size()};
  if (!bytes.empty()) ::PrefetchVirtualMemory(::GetCurrentProcess(), 1, &range, 0);
}

bool lock_in_memory(std::span<const uint8_t> bytes) { return !bytes.empty() && ::VirtualLock(writable(bytes), bytes.size()); }

void discard(std::span<uint8_t>) {}

std::string library_name(const std::string& name) { return name + ".dll"; }

void* load_library(const std::string& path, std::string& why) {
  // Never from the current folder; what a library with a folder needs is looked for beside it first.
  const DWORD beside = path.find_first_of("\\/") == std::string::npos ? 0 : LOAD_LIBRARY_SEARCH_DLL_LOAD_DIR;
  const HMODULE library = ::LoadLibraryExW(wide(path).c_str(), nullptr, LOAD_LIBRARY_SEARCH_DEFAULT_DIRS | beside);
  if (!library) why = path + ": " + last_error();
  return reinterpret_cast<void*>(library);
}

void* find_symbol(void* library, const char* name) {
  return reinterpret_cast<void*>(::GetProcAddress(reinterpret_cast<HMODULE>(library), name));
}

std::string folder_of(const void* address) {
  HMODULE module = nullptr;
  if (!::GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT,
                            static_cast<const wchar_t*>(address), &module))
    return "";
  std::wstring path(1 << 15, L'\0');
  path.resize(::GetModuleFileNameW(module, path.data(), DWORD(path.size())));
  const size_t slash = path.find_last_of(L"\\/");
  return slash == std::wstring::npos ? "" : utf8(path.substr(0, slash + 1));
}

int usable_cores() {
  DWORD_PTR process = 0, machine = 0;
  if (!::GetProcessAffinityMask(::GetCurrentProcess(), &process, &machine) || !process)
    return std::max(int(::GetActiveProcessorCount(ALL_PROCESSOR_GROUPS)), 1);
  return std::popcount(uint64_t(process));
}

int process_id() { return int(::GetCurrentProcessId()); }

}  // namespace tq::system
#endif
