#pragma once

namespace tq {

// Cores this process may use: its affinity mask, and its cgroup's CPU quota rounded up; at least 1.
int cpu_count();

}  // namespace tq
