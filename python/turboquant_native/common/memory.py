"""How much memory this process took."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes.

    Linux's /proc where there is one: getrusage's figure starts from that of the process which forked this one.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def available_memory() -> float:
    """Bytes that this process may still take without swapping: what the system reports, within the limits of a control group; infinite
    where neither says anything."""
    limits = [float("inf")]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits.append(next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable:")))
    except (OSError, StopIteration):
        pass
    try:
        limit, used = (Path("/sys/fs/cgroup", name).read_text().strip() for name in ("memory.max", "memory.current"))
        if limit != "max":
            limits.append(float(int(limit) - int(used)))
    except (OSError, ValueError):
        pass
    return min(limits)
