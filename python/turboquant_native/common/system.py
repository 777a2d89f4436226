"""Where operating systems differ: locks of files, memory figures, processes.

Windows has no forks, no limits of a process's memory and no removal of open files; what it cannot do is left out, not imitated.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

WINDOWS = sys.platform == "win32"
if sys.platform == "win32":
    import msvcrt
    from ctypes import wintypes
else:
    import fcntl
    import resource

CAN_REMOVE_OPEN_FILES = not WINDOWS
OPEN_PLAIN_FILE = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOINHERIT"))
"""Flags for os.open beside the way of access: links and FIFOs refused or not waited for, no child inherits, bytes stay as they are."""

_LOCKED_BYTE = 1 << 62  # Windows locks bytes, which others then cannot read: one that no file has
_POLL_SECONDS = 0.05


def lock_file(fd: int, wait: bool) -> None:
    """For one process at a time, until the file is closed. BlockingIOError when another one has it and `wait` is false."""
    if sys.platform == "win32":
        while not _lock_byte(fd):
            if not wait:
                raise BlockingIOError(errno.EAGAIN, "another process has locked the file")
            time.sleep(_POLL_SECONDS)
    else:
        fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable (fsync); Windows does so by itself."""
    if sys.platform != "win32":
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes.

    Linux's /proc where there is one: getrusage's figure starts from that of the process which forked this one.
    """
    if sys.platform == "win32":
        return _windows_peak_memory()
    else:  # spelled out: mypy must see that Windows does not get here
        try:
            status = Path("/proc/self/status").read_text()
        except OSError:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def free_memory() -> int:
    """Bytes that the system has available, files that are only cached among them; where it does not tell: all the memory there is."""
    if sys.platform == "win32":
        return _windows_free_memory()
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def process_birth(pid: int) -> str | None:
    """What tells a process from an earlier one of the same number: its start in the system's clock ticks, "dead" when it has ended but was
    not yet waited for, "" where the system does not tell. None when there is no such process, or it is another user's."""
    if sys.platform == "win32":
        return _windows_process_birth(pid)
    try:
        os.kill(pid, 0)
    except OSError:  # gone, or another user's
        return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "dead" if fields[0] == "Z" else fields[19]


def end_process(pid: int, force: bool) -> None:
    """Asks a process to end (SIGTERM) or, with `force`, ends it (SIGKILL); on Windows both end it. One that is gone is no error."""
    with contextlib.suppress(ProcessLookupError) if not WINDOWS else contextlib.suppress(OSError):
        os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM) if force else signal.SIGTERM)


if sys.platform == "win32":

    class _Overlapped(ctypes.Structure):
        _fields_ = (("internal", ctypes.c_size_t * 2), ("offset", ctypes.c_uint64), ("event", wintypes.HANDLE))

    def _lock_byte(fd: int) -> bool:
        """By its offset: msvcrt.locking locks where the file stands, and Wine lets none stand that far."""
        at_once, exclusive, taken = 1, 2, (33, 997)  # ERROR_LOCK_VIOLATION, ERROR_IO_PENDING
        where = _Overlapped(offset=_LOCKED_BYTE)
        if _kernel().LockFileEx(msvcrt.get_osfhandle(fd), at_once | exclusive, 0, 1, 0, ctypes.byref(where)):
            return True
        if (code := ctypes.get_last_error()) not in taken:
            raise ctypes.WinError(code)
        return False

    class _MemoryStatus(ctypes.Structure):
        _fields_ = (
            ("length", wintypes.DWORD),
            ("load", wintypes.DWORD),
            *((name, ctypes.c_uint64) for name in ("total", "free", "page", "page_free", "virtual", "virtual_free", "extended")),
        )

    class _ProcessMemory(ctypes.Structure):
        _fields_ = (
            ("length", wintypes.DWORD),
            ("faults", wintypes.DWORD),
            ("peak", ctypes.c_size_t),
            *((f"other{i}", ctypes.c_size_t) for i in range(7)),
        )

    def _kernel() -> Any:
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.GetCurrentProcess.restype = kernel.OpenProcess.restype = wintypes.HANDLE
        kernel.K32GetProcessMemoryInfo.argtypes = (wintypes.HANDLE, ctypes.c_void_p, wintypes.DWORD)
        kernel.GetProcessTimes.argtypes = (wintypes.HANDLE, *(ctypes.POINTER(wintypes.FILETIME),) * 4)
        kernel.WaitForSingleObject.argtypes = (wintypes.HANDLE, wintypes.DWORD)
        kernel.CloseHandle.argtypes = (wintypes.HANDLE,)
        kernel.LockFileEx.argtypes = (wintypes.HANDLE, *(wintypes.DWORD,) * 4, ctypes.POINTER(_Overlapped))
        return kernel

    def _windows_free_memory() -> int:
        status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
        if not _kernel().GlobalMemoryStatusEx(ctypes.byref(status)):
            raise ctypes.WinError(ctypes.get_last_error())
        return int(status.free)

    def _windows_peak_memory() -> int:
        kernel, counters = _kernel(), _ProcessMemory(length=ctypes.sizeof(_ProcessMemory))
        if not kernel.K32GetProcessMemoryInfo(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.length):
            raise ctypes.WinError(ctypes.get_last_error())
        return int(counters.peak)

    def _windows_process_birth(pid: int) -> str | None:
        kernel = _kernel()
        query, synchronize, signalled = 0x1000, 0x100000, 0
        handle = kernel.OpenProcess(query | synchronize, False, pid)
        if not handle:
            return None
        try:
            times = [wintypes.FILETIME() for _ in range(4)]
            known = kernel.GetProcessTimes(handle, *(ctypes.byref(entry) for entry in times))
            if kernel.WaitForSingleObject(handle, 0) == signalled or not known:
                return None
            return str(times[0].dwHighDateTime << 32 | times[0].dwLowDateTime)
        finally:
            kernel.CloseHandle(handle)
