"""Answers under way, as the event loop sees them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from ..api.completion import Completion
from ..engine.generation import Chunk
from ..engine.handle import Handle
from ..engine.scheduler import QueueFull
from . import errors
from .metrics import Metrics, Stopwatch

Result = TypeVar("Result")


class Running:
    """One completion in the engine, and its news in the event loop.

    Args:
        completion: checked and ready. seconds: how long it may take, waiting included; None: without limit.
    Raises ApiError 429 when too many wait already.
    """

    def __init__(self, completion: Completion, model: str, metrics: Metrics, seconds: float | None, registry: "Registry") -> None:
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()
        self._model, self._metrics, self._registry = model, metrics, registry
        self._watch, self._closed = Stopwatch(), False
        self._problem: errors.ApiError | None = None
        self.completion = completion
        try:
            self.handle = completion.submit(self._notify, may_grow=False)
        except QueueFull as error:
            raise errors.queue_full(metrics.retry_after()) from error
        registry.add(self)
        self._timer = None if seconds is None else self._loop.call_later(seconds, self.abort, errors.timed_out(seconds))

    def _notify(self, handle: Handle) -> None:
        """Called in the engine's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news.set)

    async def steps(self) -> AsyncIterator[list[Chunk]]:
        """The chunks as they come; an empty list when only more of the prompt was evaluated. Raises what ended it, if that was an error."""
        while True:
            await self._news.wait()
            self._news.clear()
            ended = self.handle.done
            chunks = self.handle.take()
            if chunks:
                self._watch.token()
            yield chunks
            if ended:
                break
        if self._problem is not None:
            raise self._problem
        if self.handle.error is not None:
            raise self.handle.error

    async def chunks(self) -> list[Chunk]:
        """All chunks, when it has ended."""
        return [chunk async for step in self.steps() for chunk in step]

    def abort(self, problem: errors.ApiError) -> None:
        """Ends it with an error."""
        self._problem = self._problem or problem
        self.handle.cancel()

    def close(self) -> None:
        """It has ended, or nobody wants it any more: frees its slot and counts it."""
        if self._closed:
            return
        self._closed = True
        cancelled = not self.handle.done
        self.handle.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self._registry.discard(self)
        generation = self.completion.generation
        self._metrics.answered(self._model, self._watch, generation.n_prompt, self.handle.cached_tokens, generation.n_generated, cancelled)

    def timings(self) -> dict[str, float]:
        """Counts and rates under llama-server's names."""
        timings = self.completion.generation.timings
        return {
            "prompt_n": timings.prompt_tokens,
            "prompt_per_second": _rate(timings.prompt_tokens, timings.prompt_seconds),
            "predicted_n": self.completion.generation.n_generated,
            "predicted_per_second": _rate(timings.generated_tokens, timings.generation_seconds),
            "cached_n": self.handle.cached_tokens,
        }

    def progress(self) -> dict[str, int]:
        """How much of the prompt is evaluated."""
        return {"processed": self.handle.evaluated, "total": self.handle.n_prompt}


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 3) if seconds > 0 else 0.0


class Registry:
    """All answers under way, and whether new ones may begin."""

    def __init__(self) -> None:
        self._running: set[Running] = set()
        self.closing = False

    def add(self, running: Running) -> None:
        self._running.add(running)

    def discard(self, running: Running) -> None:
        self._running.discard(running)

    def __len__(self) -> int:
        return len(self._running)

    def check_open(self) -> None:
        """ApiError 503 once the server is ending."""
        if self.closing:
            raise errors.unavailable("the server is ending")

    async def drain(self, grace: float) -> None:
        """Lets running answers end by themselves for so many seconds, then ends them with an error."""
        self.closing = True
        deadline = time.monotonic() + grace
        while self._running and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        for running in list(self._running):
            running.abort(errors.unavailable("the server ended before the answer was complete"))


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result], on_end: Callable[[], None]) -> Result:
    """The result of `work`, which is given up when the client leaves; `on_end` is called in any case."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        on_end()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
