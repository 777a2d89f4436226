#include "common/cpu_count.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace tq {
namespace {

#if defined(__linux__)
int affinity_count() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : int(std::thread::hardware_concurrency());
}

// Cores that "quota period" allows; 0 where the file is absent or says "max" or -1.
int quota_cores(double quota, double period) { return quota > 0 && period > 0 ? int(std::ceil(quota / period)) : 0; }

int quota_v2(const std::string& folder) {
  std::ifstream file(folder + "/cpu.max");
  double quota = 0, period = 0;
  return file >> quota >> period ? quota_cores(quota, period) : 0;
}

int quota_v1(const std::string& folder) {
  double quota = 0, period = 0;
  return std::ifstream(folder + "/cpu.cfs_quota_us") >> quota && std::ifstream(folder + "/cpu.cfs_period_us") >> period
             ? quota_cores(quota, period)
             : 0;
}

// The tightest quota on the way from this process's cgroup up to the root. /proc/self/cgroup has lines "id:controllers:path".
int cgroup_count() {
  int limit = 0;
  const auto note = [&](int cores) { limit = cores == 0 ? limit : limit == 0 ? cores : std::min(limit, cores); };
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
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
int affinity_count() { return int(std::thread::hardware_concurrency()); }
int cgroup_count() { return 0; }
#endif

}  // namespace

int cpu_count() {
  const int cores = std::max(affinity_count(), 1), quota = cgroup_count();
  return quota > 0 ? std::min(cores, quota) : cores;
}

}  // namespace tq
