"""Memory: how much this process may still take."""

from __future__ import annotations

import threading
from pathlib import Path

from .system import free_memory, peak_memory

_CGROUPS = Path("/sys/fs/cgroup")
_WATCH_SECONDS = 0.1


class MemoryWatch:
    """The most memory that this process held while a block ran, pages of mapped files left out: those the system takes back when it needs
    them, and may keep when it does not.

        with MemoryWatch() as memory: ...
        memory.peak

    Looks ten times a second. Where the system does not tell (it is Linux that does): the resident size, mapped files included.
    """

    peak: int = 0

    def __enter__(self) -> MemoryWatch:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory watch", daemon=True)
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._ended.wait(_WATCH_SECONDS):
            self._look()

    def _look(self) -> None:
        self.peak = max(self.peak, own_memory())


def own_memory() -> int:
    """Bytes that this process holds now and that are not pages of files; where the system does not tell: the largest resident size."""
    try:
        status = Path("/proc/self/status").read_text()
        return sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(("RssAnon:", "RssShmem:")))
    except (OSError, ValueError, IndexError):
        return peak_memory()


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
