"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere, nothing when quiet."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import IO

from tqdm import tqdm

_LINE_SECONDS = 10.0
_TERMINAL_SECONDS = 0.5
_TRUSTED_PART = 0.2  # of a journey, behind which its pace alone says what is left


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


class Journey:
    """One line about a work of several stages: how much is done, what is going on, and the time left in all.

    The stages' times are estimates; from what the finished part really took, the rest is corrected.

    Args:
        stages: name -> estimated seconds.
        quiet: show nothing.
        stream: where to; None: standard error.
    """

    def __init__(self, stages: Mapping[str, float], quiet: bool = False, stream: IO[str] | None = None) -> None:
        self._stream, self._quiet = stream or sys.stderr, quiet
        self._stages = {name: max(seconds, 1e-3) for name, seconds in stages.items()}
        self._parts = dict.fromkeys(self._stages, 0.0)  # done of each, 0 to 1
        self._start = self._last_line = time.monotonic()
        self._width = 0  # of the line on the terminal

    @property
    def left(self) -> float:
        """Estimated seconds to the end."""
        total = sum(self._stages.values())
        done = sum(seconds * self._parts[name] for name, seconds in self._stages.items())
        elapsed, trust = time.monotonic() - self._start, min(1.0, done / (_TRUSTED_PART * total))
        pace = 1 - trust + trust * elapsed / done if done > 0 else 1.0  # real seconds an estimated one takes
        return (total - done) * pace

    def at(self, stage: str, part: float) -> None:
        """`part` of a stage is done, 0 to 1; a stage that was not announced takes no time."""
        if stage in self._parts:
            self._parts[stage] = min(max(part, self._parts[stage]), 1.0)
        now, on_terminal = time.monotonic(), self._stream.isatty()
        finished = all(done >= 1 for done in self._parts.values())
        if self._quiet or (now - self._last_line < (_TERMINAL_SECONDS if on_terminal else _LINE_SECONDS) and not finished):
            return
        self._last_line = now
        done = 1 - sum(seconds * (1 - self._parts[name]) for name, seconds in self._stages.items()) / sum(self._stages.values())
        line = f"{100 * done:3.0f} %  {stage}, {duration(self.left)} left in all"
        print(f"\r{line:{self._width}}" if on_terminal else line, end="" if on_terminal else "\n", file=self._stream, flush=True)
        self._width = len(line)

    def close(self) -> None:
        """Leaves the line."""
        if not self._quiet and self._width and self._stream.isatty():
            print(file=self._stream)


class Progress:
    """Counts work, in weights unless `unit` says otherwise.

    Args:
        total: weights in all.
        title: what is going on.
        quiet: show nothing.
        stream: where to; None: standard error.
        unit: what is counted, where it is not weights.
        journey: shows this work as its stage `title`, in place of a line of its own.
    """

    def __init__(
        self,
        total: int,
        title: str,
        quiet: bool = False,
        stream: IO[str] | None = None,
        unit: str = "weights",
        journey: Journey | None = None,
    ) -> None:
        self._stream = stream or sys.stderr
        self._total, self._title, self._done, self._unit = max(total, 1), title, 0, unit
        self._start = self._last_line = time.monotonic()
        self._journey, quiet = journey, quiet or journey is not None
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

    def tell(self, news: str) -> None:
        """A figure of the work: behind the bar on a terminal, a line of its own elsewhere."""
        self.at(news)
        if self._lines:
            print(f"{self._title}: {news}", file=self._stream, flush=True)

    def part(self, before: int) -> Callable[[int], None]:
        """`advance_to` for a piece of work that starts when `before` weights are done."""
        return lambda weights: self.advance_to(before + weights)

    def advance_to(self, done: int) -> None:
        """`done` weights are finished, of the total."""
        if done == self._done:
            return
        self._bar.update(done - self._done)
        self._done = done
        if self._journey is not None:
            self._journey.at(self._title, done / self._total)
        now = time.monotonic()
        if self._lines and (now - self._last_line >= _LINE_SECONDS or done >= self._total):
            self._last_line = now
            left = (now - self._start) * (self._total - done) / max(done, 1)
            percent = 100 * done / self._total
            amount = f"{self._total / 1e6:.1f} M weights" if self._unit == "weights" else f"{self._total} {self._unit}"
            print(f"{self._title}: {percent:.0f} % of {amount}, {duration(left)} left", file=self._stream, flush=True)
