"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere, nothing when quiet."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import IO

from tqdm import tqdm

_LINE_SECONDS = 10.0


def duration(seconds: float) -> str:
    """`1:05:09`, `12:34`, `0:07`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Stopwatch:
    """Where time goes: `seconds` by kind of work; work inside other work counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = 0.0  # seconds of the work measured inside the current one

    @contextmanager
    def __call__(self, work: str) -> Iterator[None]:
        start, outer = time.monotonic(), self._inner
        self._inner = 0.0
        try:
            yield
        finally:
            elapsed = time.monotonic() - start
            self.seconds[work] = self.seconds.get(work, 0.0) + elapsed - self._inner
            self._inner = outer + elapsed


class Progress:
    """Counts work, in weights unless `unit` says otherwise.

    Args:
        total: weights in all.
        title: what is going on.
        quiet: show nothing.
        stream: where to; None: standard error.
        unit: what is counted, where it is not weights.
    """

    def __init__(self, total: int, title: str, quiet: bool = False, stream: IO[str] | None = None, unit: str = "weights") -> None:
        self._stream = stream or sys.stderr
        self._total, self._title, self._done, self._unit = max(total, 1), title, 0, unit
        self._start = self._last_line = time.monotonic()
        self._lines = not quiet and not self._stream.isatty()
        hide = quiet or self._lines
        self._bar = tqdm(
            total=total,
            desc=title,
            unit="w" if unit == "weights" else unit,
            unit_scale=True,
            disable=hide,
            file=self._stream,
            smoothing=0.05,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()

    def at(self, item: str) -> None:
        """Name what is being worked on."""
        self._bar.set_postfix_str(item, refresh=False)

    def part(self, before: int) -> Callable[[int], None]:
        """`advance_to` for a piece of work that starts when `before` weights are done."""
        return lambda weights: self.advance_to(before + weights)

    def advance_to(self, done: int) -> None:
        """`done` weights are finished, of the total."""
        if done == self._done:
            return
        self._bar.update(done - self._done)
        self._done = done
        now = time.monotonic()
        if self._lines and (now - self._last_line >= _LINE_SECONDS or done >= self._total):
            self._last_line = now
            left = (now - self._start) * (self._total - done) / max(done, 1)
            percent = 100 * done / self._total
            amount = f"{self._total / 1e6:.1f} M weights" if self._unit == "weights" else f"{self._total} {self._unit}"
            print(f"{self._title}: {percent:.0f} % of {amount}, {duration(left)} left", file=self._stream, flush=True)
