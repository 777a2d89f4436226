"""Servers that run on this machine: each leaves a small file, `ROOT/run/PID.json`, while it lives.

A file counts only while the process that wrote it lives: same number, same start, same user. Files of dead processes are removed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..common.json_files import read_object, write_json
from ..common.system import end_process, process_birth
from .store import home


@dataclass(frozen=True)
class Server:
    """A process of `tqn serve`. started: seconds since 1970; birth: the start of the process as the system counts it."""

    pid: int
    host: str
    port: int
    model: str
    started: float
    birth: str

    @property
    def url(self) -> str:
        """Where its page is."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"


@contextlib.contextmanager
def registered(host: str, port: int, model: str, root: Path | None = None) -> Iterator[Server]:
    """For the server: it is listed until the block ends."""
    server = Server(os.getpid(), host, port, model, time.time(), process_birth(os.getpid()) or "")
    path = _folder(root) / f"{server.pid}.json"
    write_json(path, asdict(server))
    try:
        yield server
    finally:
        path.unlink(missing_ok=True)


def servers(root: Path | None = None) -> list[Server]:
    """Those that live, the oldest first."""
    folder = _folder(root)
    found = []
    for path in folder.glob("*.json") if folder.is_dir() else ():
        server = _read(path)
        if server is not None and alive(server):
            found.append(server)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    return sorted(found, key=lambda server: server.started)


def alive(server: Server) -> bool:
    """Whether this very process lives, and is ours."""
    return process_birth(server.pid) == server.birth


def stop(server: Server, seconds: float, force: bool = False) -> bool:
    """Asks a server to end (SIGTERM) and waits for it, with `force` then kills it; whether it has ended."""
    end_process(server.pid, force=False)
    if not _ends(server, seconds) and force:
        end_process(server.pid, force=True)
        return _ends(server, 5)
    return not alive(server)


def _ends(server: Server, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while alive(server) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(server)


def _folder(root: Path | None) -> Path:
    return (root or home()) / "run"


def _read(path: Path) -> Server | None:
    try:
        fields: dict[str, Any] = read_object(path, 1 << 16)
        server = Server(**fields)
    except (OSError, ValueError, TypeError):
        return None
    numbers = (server.pid, server.port, server.started)
    whole = all(isinstance(n, (int, float)) for n in numbers) and all(isinstance(t, str) for t in (server.host, server.model, server.birth))
    return server if whole and isinstance(server.pid, int) and server.pid > 0 and path.stem == str(server.pid) else None
