"""A submitted request, as its client sees it."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from .generation import Chunk
from .slots import Slot
from .work import Work


class Owner(Protocol):
    """What a handle needs of the scheduler that it belongs to."""

    def check_may_wait(self) -> None: ...

    def wake(self) -> None: ...


class Handle:
    """A submitted request: an iterator of the chunks that it produces. Leaving the iteration early cancels it.

    Attributes:
        work: what was submitted.
        n_prompt: tokens of the sequence as submitted. cached_tokens: how many of them were in the cache. evaluated: how many are now.
        stops: numbers of tokens after which the prompt's evaluation stops for a snapshot.
        submitted, ended: times (`time.monotonic`); ended is None until then.
    """

    def __init__(self, work: Work, owner: Owner, listener: "Callable[[Handle], None] | None" = None, may_grow: bool = True) -> None:
        self.work, self._owner, self._listener, self.may_grow = work, owner, listener, may_grow
        self.n_prompt, self.cached_tokens, self.evaluated = len(work.tokens), 0, 0
        self.submitted = time.monotonic()
        self.ended: float | None = None
        self.cancelled = False
        self.error: BaseException | None = None
        self.slot: Slot | None = None
        self.stops: set[int] = set()
        self._chunks: deque[Chunk] = deque()
        self._changed = threading.Condition(threading.Lock())

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return self.ended is not None

    @property
    def until_stop(self) -> int:
        """Tokens that its slot may take before the next stop."""
        assert self.slot is not None
        n_tokens = self.slot.n_tokens
        return min((stop for stop in self.stops if stop > n_tokens), default=len(self.work.tokens)) - n_tokens

    def take(self) -> list[Chunk]:
        """The chunks that have come since the last call, without waiting."""
        with self._changed:
            chunks = list(self._chunks)
            self._chunks.clear()
        return chunks

    def wait(self) -> None:
        """Waits for the end, and raises what ended it where that was an error. KeyboardInterrupt cancels the request."""
        self._owner.check_may_wait()
        try:
            with self._changed:
                while not self.done:
                    self._changed.wait()
        except BaseException:
            self.cancel()
            raise
        if self.error is not None:
            raise self.error

    def __iter__(self) -> Iterator[Chunk]:
        self._owner.check_may_wait()
        try:
            while True:
                with self._changed:
                    while not self._chunks and not self.done:
                        self._changed.wait()
                    ended = self.done
                yield from self.take()
                if ended:
                    break
        finally:
            self.cancel()
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        """Ends the request at the next pass; what it produced stays. Nothing happens to one that has ended."""
        if not self.done:
            self.cancelled = True
            self._owner.wake()

    def emit(self, chunk: Chunk) -> None:
        """Called by the scheduler: more text."""
        with self._changed:
            self._chunks.append(chunk)
            self._changed.notify_all()
        self.notify()

    def finish(self, error: BaseException | None = None) -> None:
        """Called by the scheduler: the end."""
        with self._changed:
            self.error, self.ended = error, time.monotonic()
            self._changed.notify_all()
        self.notify()

    def notify(self) -> None:
        """Tells the listener, if there is one, that something is new."""
        if self._listener is not None:
            self._listener(self)

    def orphan(self, error: BaseException) -> None:
        """Ends the request in a forked child, where nobody will advance it and its lock may be held by a thread that is not there."""
        if self.slot is not None:
            self.slot.busy = False
        self._changed, self._listener = threading.Condition(threading.Lock()), None
        self.finish(error)
