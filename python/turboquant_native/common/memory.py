"""Memory: how much this process may still take."""

from __future__ import annotations

from pathlib import Path

from .system import free_memory

_CGROUPS = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes that this process may still take without swapping: what the system has available, within the limits of its control groups.

    Files that are only cached count as free. Where the system does not tell what is available: all the memory there is.
    """
    return min([free_memory(), *_cgroup_free(_CGROUPS)])


def _cgroup_free(root: Path) -> list[int]:
    """What the group of this process and those above it leave (version 2, then version 1)."""
    try:
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, name in groups:
        if controllers == "":
            found += _limits(root, name, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            found += _limits(root / "memory", name, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return found


def _limits(root: Path, name: str, limit: str, usage: str, cached: str) -> list[int]:
    """limit - usage + cached files, of the group and of its parents; a container sees its own group as the root."""
    found = []
    path = root / name.strip("/")
    for folder in (path, *path.parents):
        if folder != root and root not in folder.parents:
            break
        try:
            most, taken = int((folder / limit).read_text()), int((folder / usage).read_text())
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # "max": no limit
            continue
        found.append(max(0, most - taken + int(statistics.get(cached, 0))))
    return found
