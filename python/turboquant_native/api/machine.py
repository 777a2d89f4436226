"""How fast this machine reads weights: measured once, and corrected by every answer. Kept in `ROOT/machine.json`."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..common.json_files import read_object, write_json
from .store import home

_BLOCK = 32 << 20  # bytes a thread reads, beyond its share of the caches
_MIN_TOKENS = 16  # of an answer that says something about speed


def reading_rate(threads: int, gpu: bool, probe: bool = True) -> tuple[float, bool]:
    """(bytes of weights a second, whether earlier answers showed it); (0, False) where nothing is known.

    threads: 0: this process's cores.
    """
    known = _load()
    if seen := _rate(known.get(_key(threads, gpu))):
        return seen, True
    if gpu:
        return 0.0, False
    if not _rate(known.get("bandwidth")) and probe:
        known["bandwidth"] = memory_bandwidth()
        _save(known)
    return _rate(known.get("bandwidth")), False


def record(threads: int, gpu: bool, token_bytes: int, tokens: int, seconds: float) -> None:
    """Remembers what an answer showed: `tokens` in `seconds`, each reading `token_bytes`."""
    if tokens >= _MIN_TOKENS and seconds > 0:
        known = _load()
        known[_key(threads, gpu)] = token_bytes * tokens / seconds
        _save(known)


def memory_bandwidth(seconds: float = 0.2) -> float:
    """Bytes a second that all cores of this process read together, from memory."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    blocks = [np.ones(_BLOCK // 8) for _ in range(count)]
    with ThreadPoolExecutor(count) as pool:
        started, rounds = time.perf_counter(), 0
        while rounds == 0 or time.perf_counter() - started < seconds:
            list(pool.map(np.max, blocks))
            rounds += 1
        return rounds * count * _BLOCK / (time.perf_counter() - started)


def _key(threads: int, gpu: bool) -> str:
    return "gpu" if gpu else f"threads-{threads}"


def _rate(value: Any) -> float:
    """A kept figure, 0 where it is none."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e15
    return float(value) if known else 0.0


def _path() -> Path:
    return home() / "machine.json"


def _load() -> dict[str, Any]:
    """What is known; nothing where it is another machine's (a shared home folder)."""
    try:
        known = read_object(_path())
    except (OSError, ValueError):
        return {"machine": platform.node()}
    return known if known.get("machine") == platform.node() else {"machine": platform.node()}


def _save(known: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a convenience: a full or read-only disk stops nobody
        write_json(_path(), known)
