"""Renders chat templates in a process of its own: the parent's side.

The child (api/template_worker.py) is started when the first template is rendered, and kept. It ends with this process, however that ends:
its input closes. A request that takes too long or too much memory ends it, and the next one starts another.
"""

import contextlib
import io
import json
import multiprocessing.spawn
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SECONDS = 2.0  # of one rendering
MEMORY = 256 << 20  # bytes, of one rendering
_START_SECONDS = 60.0
_REPLY_BYTES = 128 << 20  # the longest prompt that the child returns, every character escaped
_SCRIPT = Path(__file__).with_name("template_worker.py")
# Neither the user's site nor the current folder nor variables of the environment choose what the child imports.
_BOOT = "import sys; sys.path += sys.argv[4:]; exec(compile(open(sys.argv[3], encoding='utf-8').read(), sys.argv[3], 'exec'))"


class TemplateError(ValueError):
    """A chat template that cannot be used, or that refuses the messages."""


def _command(seconds: float, memory: int) -> list[str]:
    interpreter = multiprocessing.spawn.get_executable()
    if getattr(sys, "frozen", False) or not interpreter:
        raise RuntimeError(
            "chat templates are rendered by a Python interpreter of their own, and this program has none; name one with "
            "multiprocessing.set_executable"
        )
    places: list[str] = []
    for module in ("jinja2", "markupsafe"):
        spec = find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise ImportError(f"chat templates need {module}: pip install {module}")
        places.append(os.path.dirname(next(iter(spec.submodule_search_locations))))
    return [os.fsdecode(interpreter), "-I", "-S", "-c", _BOOT, str(seconds), str(memory), str(_SCRIPT), *dict.fromkeys(places)]


class _Child:
    """One running child. Only the process that started it ends it; a fork of that process merely lets go."""

    def __init__(self, seconds: float, memory: int) -> None:
        self._owner = os.getpid()
        # Unbuffered: what was not yet written must never be written by a fork.
        self._process = subprocess.Popen(
            _command(seconds, memory), bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert isinstance(self._process.stdout, io.RawIOBase)
        self._output: io.BufferedReader = io.BufferedReader(self._process.stdout)
        with self._kill_after(_START_SECONDS):
            ready = self._output.readline(_REPLY_BYTES) == b"ready\n"
        if not ready:
            self.end()
            raise RuntimeError("the process that renders chat templates does not start")

    def ask(self, request: bytes, seconds: float) -> bytes:
        """The reply to a request, b"" when the child ended over it; BrokenPipeError when it ended before it had read it."""
        assert self._process.stdin is not None
        with self._kill_after(seconds):
            rest = memoryview(request)
            while rest:
                rest = rest[self._process.stdin.write(rest) :]
            reply = self._output.readline(_REPLY_BYTES)
        return reply if reply.endswith(b"\n") else b""

    @contextlib.contextmanager
    def _kill_after(self, seconds: float) -> Iterator[None]:
        """Bounds the body by a timer: no call that waits for a pipe with a limit exists on every system."""
        timer = threading.Timer(seconds, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def end(self) -> None:
        """Ends the child, or only closes the pipes to it."""
        if os.getpid() == self._owner:
            self._process.kill()
            self._process.wait()
        else:
            self._process.returncode = 0  # not this process's child
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
            self._output.close()


class TemplateProcess:
    """Renders templates one after the other, for any number of threads, also after a fork.

    Args:
        seconds: for one rendering. memory: bytes for one rendering (enforced on Linux).
    """

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self._seconds, self._memory = seconds, memory
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._end_child = weakref.finalize(self, lambda: None)
        _processes.add(self)

    def render(self, source: str, values: dict[str, Any]) -> str:
        """The text of a template.

        Args:
            source: jinja2 text. values: what the template sees: JSON types, "messages" among them.

        Raises TemplateError when the template is broken, refuses the messages or exceeds the limits; TypeError names a value that is
        not JSON.
        """
        request = json.dumps({"source": source, "values": values}, default=_plain).encode() + b"\n"
        with self._lock:
            reply = json.loads(self._ask(request))
        if "error" in reply:
            raise TemplateError(reply["error"])
        return str(reply["text"])

    def _ask(self, request: bytes) -> bytes:
        for _ in range(2):  # a child that was killed while it waited says nothing about the template
            with contextlib.suppress(BrokenPipeError):
                return self._ask_once(request)
        raise TemplateError(self._limits())

    def _ask_once(self, request: bytes) -> bytes:
        try:
            reply = (self._child or self._start()).ask(request, self._seconds + 1)  # the child's own watchdog comes first
            if not reply:
                raise TemplateError(self._limits())
        except BaseException:  # also KeyboardInterrupt: the reply would be taken for the next request's
            self._end()
            raise
        return reply

    def _limits(self) -> str:
        return f"the chat template exceeds its limits ({self._seconds:g} seconds, {self._memory >> 20} MB), or crashed its interpreter"

    def _start(self) -> _Child:
        self._child = child = _Child(self._seconds, self._memory)
        self._end_child = weakref.finalize(self, child.end)
        return child

    def _end(self) -> None:
        self._child = None
        self._end_child()

    def _after_fork(self) -> None:
        """In the new process: the lock may be held by a thread that is not here, and the child is the old process's."""
        self._lock = threading.Lock()
        self._end()


def _plain(value: Any) -> Any:
    """JSON types of objects such as the openai package's."""
    if hasattr(value, "model_dump"):
        return value.model_dump(exclude_none=True)
    raise TypeError(f"messages, tools and template arguments must be JSON values, got {value!r} of type {type(value).__name__}")


_processes: "weakref.WeakSet[TemplateProcess]" = weakref.WeakSet()


def _let_go() -> None:
    for process in list(_processes):
        process._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
