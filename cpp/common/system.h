// What the operating system does for the core: files in memory, libraries, processors, processes. The one place that knows which system it
// is: system_posix.cpp and system_windows.cpp.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace tq::system {

// A file, read-only in memory; empty for an empty file. Throws Error(io) that names the file and the system's reason, also for folders,
// pipes and devices. The bytes stay until unmap_file.
std::span<const uint8_t> map_file(const std::string& path);
void unmap_file(std::span<const uint8_t> bytes);
// Asks the system to read the bytes ahead; a hint.
void prefetch(std::span<const uint8_t> bytes);
// Keeps the bytes in memory; false where the system refuses.
bool lock_in_memory(std::span<const uint8_t> bytes);
// Gives whole pages of ordinary memory back to the system; what they held is lost, later they read as zeros or as before. Where the system
// cannot, nothing happens.
void discard(std::span<uint8_t> bytes);

// "libNAME.so", or what the system calls a library of that name.
std::string library_name(const std::string& name);
// A handle of a library that stays loaded, or null and the reason in `why`.
void* load_library(const std::string& path, std::string& why);
void* find_symbol(void* library, const char* name);  // null: there is none
// The folder, with its last separator, of the library or program that holds `address`; empty where the system cannot tell.
std::string folder_of(const void* address);

// Cores that the scheduler may give this process; at least 1.
int usable_cores();
// Differs between a process and one forked off it. Windows has no forks: there it never changes.
int process_id();

}  // namespace tq::system
