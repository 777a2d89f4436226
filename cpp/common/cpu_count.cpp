#include "common/cpu_count.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "common/system.h"

namespace tq {
namespace {

#if defined(__linux__)
// A small file's text; empty where it cannot be read. No stream: those break in an extension that has libstdc++ linked in statically, when
// the process has loaded the shared one before (a stream finds the other copy's locale facets).
std::string text_of(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "re"), &std::fclose);
  std::string text(1 << 16, '\0');
  text.resize(file ? std::fread(text.data(), 1, text.size(), file.get()) : 0);
  return text;
}

// Cores that "quota period", in microseconds, allows; 0 where that is not what the text says (a file is absent, "max", -1).
int quota_cores(const std::string& text) {
  int64_t quota = 0, period = 0;
  const char* end = text.data() + text.size();
  const auto [next, error] = std::from_chars(text.data(), end, quota);
  if (error != std::errc() || next == end || std::from_chars(next + 1, end, period).ec != std::errc()) return 0;
  return quota > 0 && period > 0 ? int(std::min<int64_t>((quota - 1) / period + 1, INT32_MAX)) : 0;
}

int quota_v2(const std::string& folder) { return quota_cores(text_of(folder + "/cpu.max")); }

int quota_v1(const std::string& folder) {
  return quota_cores(text_of(folder + "/cpu.cfs_quota_us") + text_of(folder + "/cpu.cfs_period_us"));
}

// The tightest quota on the way from this process's cgroup up to the root. /proc/self/cgroup has lines "id:controllers:path".
int cgroup_count() {
  int limit = 0;
  const auto note = [&](int cores) { limit = cores == 0 ? limit : limit == 0 ? cores : std::min(limit, cores); };
  const std::string groups = text_of("/proc/self/cgroup");
  for (size_t start = 0, end; start < groups.size(); start = end + 1) {
    end = std::min(groups.find('\n', start), groups.size());
    const std::string line = groups.substr(start, end - start);
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    const bool v2 = controllers.empty();
    if (!v2 && controllers.find("cpu") == std::string::npos) continue;
    for (;;) {
      if (v2)
        note(quota_v2("/sys/fs/cgroup" + path));
      else
        note(quota_v1("/sys/fs/cgroup/" + controllers + path)), note(quota_v1("/sys/fs/cgroup/cpu" + path));
      if (path.empty()) break;
      path.resize(path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
    }
  }
  return limit;
}
#else
int cgroup_count() { return 0; }
#endif

}  // namespace

int cpu_count() {
  const int cores = system::usable_cores(), quota = cgroup_count();
  return quota > 0 ? std::min(cores, quota) : cores;
}

}  // namespace tq
