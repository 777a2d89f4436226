"""Everything that uses a context goes through here: requests wait in a queue, share the context's slots, and advance together, a pass at a
time, on one thread."""

import atexit
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from .._core import UnsupportedError
from .cache_budget import CacheBudget, draft_depth
from .handle import Handle
from .pace import Pace
from .slots import Slot, choose
from .snapshots import SNAPSHOTS_A_SLOT, Snapshots
from .tokens import Tokens
from .work import Completing, Work

logger = logging.getLogger(__name__)

_LINGER = 0.5  # seconds that the engine thread waits for more before it ends
_MAX_ROWS = 128  # positions of one sequence whose logits a pass gives at most; a row of logits may be a megabyte
Result = TypeVar("Result")


class QueueFull(RuntimeError):
    """Too many requests wait already."""


@dataclass
class _Call:
    """A function to run between two passes, and where its result goes."""

    function: Callable[[], Any]
    finished: threading.Event
    result: Any = None
    error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.function()
        except BaseException as error:
            self.error = error
        self.finished.set()


@dataclass
class Counters:
    """What was done since the beginning: tokens, passes, and seconds spent in them."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    passes: int = 0
    busy_seconds: float = 0.0


class Scheduler:
    """Runs requests through the slots of one context.

    Args:
        open_context: makes a `_core.Context` with so many slots.
        n_slots: how many to begin with. max_slots: how many there may be when requests would wait otherwise; a larger context then takes
            the place of the first, and the slots keep what they hold.
        queue_limit: requests that may wait for a slot; None: any number.
        pace: how many prompt tokens a pass may take.
        cache_budget: bytes of all caches, which precision then follows (`CacheBudget`); None: the slots' contents are all that is kept.
        four_bit_keys: whether the budget may keep keys in 4 bits.

    A pass carries one token of every sequence that generates, and of the prompts as many as keep it short, the earliest first. The thread
    that runs passes starts with the first request and ends when there has been nothing to do for a while.
    """

    def __init__(
        self,
        open_context: Callable[[int], Any],
        n_slots: int = 1,
        max_slots: int = 1,
        queue_limit: int | None = None,
        pace: Pace | None = None,
        cache_budget: int | None = None,
        four_bit_keys: bool = False,
    ) -> None:
        self._open_context, self.max_slots, self.queue_limit = open_context, max(n_slots, max_slots), queue_limit
        self.context = open_context(n_slots)
        self.snapshots = Snapshots(self.context, SNAPSHOTS_A_SLOT * n_slots, self._room)
        self._pace = pace or Pace(self.context.n_batch)
        self.slots = [Slot(index, self.context.n_ctx) for index in range(n_slots)]
        self.counters = Counters()
        self.latest_cache_stats: dict[str, Any] | None = None  # of the latest turn, where there is a budget
        self.budget: CacheBudget | None = None
        if cache_budget is not None:
            self.budget = CacheBudget(cache_budget, lambda: self.context, lambda: self.snapshots, four_bit_keys)
        self._running: list[Handle] = []
        self._time = 0
        self._closed = False
        self.in_pass = threading.RLock()  # held while the context is in use, so that a fork finds it at rest
        self._make_threads()
        _SCHEDULERS.add(self)

    def _make_threads(self) -> None:
        self._changed = threading.Condition(threading.Lock())  # guards the queues, the thread and the flags below
        self._queue: deque[Handle] = deque()
        self._calls: deque[_Call] = deque()
        self._thread: threading.Thread | None = None

    # --- for clients, from any thread ----------------------------------------------------------------------------------------------------

    def submit(self, work: Work, listener: Callable[[Handle], None] | None = None, may_grow: bool = True) -> Handle:
        """Queues a request.

        Args:
            work: what to do; ValueError when its tokens do not fit the context.
            listener: called from the engine thread, with the handle, whenever there is something new; it must not block.
            may_grow: a further slot may be made for it, up to max_slots; otherwise it waits for one of those there are.
        Raises QueueFull, and RuntimeError once closed.
        """
        if len(work.tokens) > self.context.n_ctx:
            raise ValueError(f"{len(work.tokens)} tokens exceed the context of {self.context.n_ctx} (n_ctx)")
        handle = Handle(work, self, listener, may_grow)
        with self._changed:
            self._check_open()
            free = len(self.slots) - len(self._running)  # those at the queue's head get these at the next pass and do not wait
            if self.queue_limit is not None and len(self._queue) >= self.queue_limit + free:
                raise QueueFull(f"{len(self._queue)} requests wait already; the limit is {self.queue_limit}")
            self._queue.append(handle)
            self._wake()
        return handle

    def run(self, function: Callable[[], Result]) -> Result:
        """Calls a function between two passes, when it may use the context and the slots; returns what it returns."""
        if threading.current_thread() is self._thread:
            return function()
        call = _Call(function, threading.Event())
        with self._changed:
            self._check_open()
            self._calls.append(call)
            self._wake()
        call.finished.wait()
        if call.error is not None:
            raise call.error
        result: Result = call.result
        return result

    def reserve(self, n_slots: int) -> int:
        """Sees to it that there are so many slots, where memory allows; returns how many there are."""
        return self.run(lambda: self._grow(n_slots))

    def forget(self) -> None:
        """Idle slots forget what they hold, and prefixes that are kept beside them are dropped."""

        def rewind() -> None:
            if self.budget is not None:
                self.budget.forget()
            for slot in self.slots:
                if not slot.busy:
                    slot.rewind(0)
            self.snapshots.drop_lost([slot.index for slot in self.slots if not slot.busy])

        self.run(rewind)

    def place(self, tokens: Tokens, state: bytes) -> None:
        """Loads a saved state into the slot that suits it; FormatError when it belongs to another model, RuntimeError when all slots are
        busy."""

        def load() -> None:
            found = self._choose(tokens)
            if found is None and self._grow(min(2 * len(self.slots), self.max_slots)) > len(self._running):
                found = self._choose(tokens)
            if found is None:
                raise RuntimeError(f"all {len(self.slots)} slots are busy; none can take the state")
            slot = found[0]
            if self.budget is not None:
                self.budget.fit(self.slots, self.budget.bytes_of(len(tokens)), [slot])
                self.budget.set_aside(slot)
            slot.rewind(0)
            self.context.load(slot.index, state)
            slot.assign(tokens)

        self.run(load)

    def cache_stats(self) -> dict[str, Any]:
        """See `Llama.cache_stats`."""
        return self.run(self._cache_stats)

    def _cache_stats(self) -> dict[str, Any]:
        tokens = [slot.n_tokens for slot in self.slots if slot.n_tokens]
        slots = {"prefixes": len(tokens), "tokens": sum(tokens), "bytes": sum(self.context.state_bytes(n) for n in tokens)}
        snapshots = {"count": len(self.snapshots), "bytes": self.snapshots.memory_bytes}
        found: dict[str, Any] = {"budget": None, "bytes": slots["bytes"] + snapshots["bytes"], "kept": {}}
        if self.budget is not None:
            found = self.budget.stats(self.slots)
        tokens_seen = {"prompt_tokens": self.counters.prompt_tokens, "cached_tokens": self.counters.cached_tokens}
        return {**found, "slots": slots, "snapshots": snapshots, **tokens_seen}

    @property
    def queued(self) -> int:
        """Requests that wait for a slot."""
        return len(self._queue)

    @property
    def active(self) -> int:
        """Requests that have a slot."""
        return len(self._running)

    def check_may_wait(self) -> None:
        """RuntimeError in a function that the engine calls: it would wait for itself."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("a logits processor, stopping criterion or draft model cannot wait for the model that calls it")

    def wake(self) -> None:
        """Has the engine thread look at its requests again."""
        with self._changed:
            if self._thread is not None:
                self._changed.notify_all()

    def close(self) -> None:
        """Ends every request with RuntimeError and frees the context. May be called more than once."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        with self.in_pass:
            self._fail_all(RuntimeError("the model is closed"))
            self.snapshots.clear()
            if self.budget is not None:
                self.budget.forget()
            self.context.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the model is closed")

    # --- the engine thread ---------------------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Starts the thread, or tells it that there is work; called with the lock held."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._drive, name="turboquant-engine", daemon=True)
            self._thread.start()
        else:
            self._changed.notify_all()

    def _drive(self) -> None:
        while self._has_work():
            with self.in_pass:
                try:
                    self.step()
                except BaseException as error:
                    self._fail_all(error)

    def _has_work(self) -> bool:
        """Waits until there is something to do; False when the thread should end."""
        with self._changed:
            while not (self._closed or self._calls or self._queue or self._running):
                if not self._changed.wait(_LINGER) and not (self._closed or self._calls or self._queue):
                    self._thread = None
                    return False
            if self._closed:
                self._thread = None
            return not self._closed

    def _fail_all(self, error: BaseException) -> None:
        with self._changed:
            waiting, calls = [*self._running, *self._queue], list(self._calls)
            self._queue.clear()
            self._calls.clear()
        for call in calls:
            call.error = error
            call.finished.set()
        for handle in waiting:
            self._leave(handle, error)

    def step(self) -> None:
        """One turn: functions that wait, requests that come and go, one pass."""
        while self._calls:
            self._calls.popleft().run()
        for handle in [handle for handle in self._running if handle.cancelled]:
            self._leave(handle)
        self._admit()
        self._pass([handle for handle in self._running if not handle.work.hidden], self._forward)
        self._pass([handle for handle in self._running if handle.work.hidden], self._embed)
        if self.budget is not None:
            self.latest_cache_stats = self._cache_stats()

    def _admit(self) -> None:
        """Gives slots to requests in the order of their arrival."""
        while self._queue:
            handle = self._queue[0]
            if handle.cancelled or handle.work.done:
                self._leave(self._queue.popleft())
                continue
            prefix = handle.work.tokens[: handle.work.first_row]
            if self.budget is not None and not self.budget.affords(self._running, handle):
                return
            found = self._choose(prefix)
            if found is None and handle.may_grow and self._grow(min(2 * len(self.slots), self.max_slots)) > len(self._running):
                found = self._choose(prefix)
            if found is None:
                return
            self._queue.popleft()
            if self.budget is not None:
                found = self.budget.make_room(handle, *found, self.slots, self._time)
            self._join(handle, *found)

    def _room(self, n_bytes: int) -> bool:
        """Whether there is room for a snapshot, for which others and idle prefixes may have to give way."""
        return self.budget is None or self.budget.fit(self.slots, n_bytes)

    def _choose(self, tokens: Tokens) -> tuple[Slot, Slot] | None:
        return choose(self.slots, tokens, self.snapshots.reach)

    def _join(self, handle: Handle, slot: Slot, source: Slot) -> None:
        work = handle.work
        prefix = work.tokens[: work.first_row]
        if self.snapshots.needed and not work.hidden:
            # Another request with this beginning will part from it where this one does, or ask for the same prompt again.
            handle.stops = {max(each.shared(prefix) for each in self.slots), len(work.tokens) - 1}
        if source is not slot:
            self._copy_prefix(source, slot, source.shared(prefix))
        slot.busy, handle.slot = True, slot
        self._align(handle)
        handle.cached_tokens = handle.evaluated = slot.n_tokens
        self.counters.cached_tokens += slot.n_tokens
        if isinstance(work, Completing):
            work.start(slot.n_tokens)
        self._running.append(handle)

    def _copy_prefix(self, source: Slot, target: Slot, n_tokens: int) -> None:
        """The target begins as the source does, as far as the model's state can be cut there or was kept; else it keeps what it has."""
        try:
            self.context.copy_slot(source.index, target.index, n_tokens)
        except UnsupportedError:
            n_tokens = self.snapshots.restore(source, n_tokens, target)
            if n_tokens == 0:
                return
        target.assign(source.tokens[:n_tokens])

    def _leave(self, handle: Handle, error: BaseException | None = None) -> None:
        """The request ends; its slot keeps what was evaluated."""
        if handle in self._running:
            self._running.remove(handle)
        if handle.slot is not None:
            handle.slot.busy, handle.slot = False, None
        if not handle.done:
            handle.finish(error)

    def _grow(self, n_slots: int) -> int:
        """A context with more slots in place of the present one; the number of slots there are then."""
        if n_slots <= len(self.slots):
            return len(self.slots)
        try:
            larger = self._open_context(n_slots)
        except (MemoryError, RuntimeError) as error:
            logger.warning("no memory for %d sequences at once, %d it is: %s", n_slots, len(self.slots), error)
            self.max_slots = len(self.slots)
            return len(self.slots)
        for slot in self.slots:
            if slot.n_tokens:
                larger.load(slot.index, self.context.save(slot.index, slot.n_tokens))
        self.context.close()
        self.context, self.snapshots = larger, Snapshots(larger, SNAPSHOTS_A_SLOT * n_slots, self._room)
        self.slots += [Slot(index, larger.n_ctx) for index in range(len(self.slots), n_slots)]
        return n_slots

    # --- one pass ------------------------------------------------------------------------------------------------------------------------

    def _align(self, handle: Handle) -> None:
        """Forgets what the slot holds beyond the sequence, and positions of which rows are still wanted."""
        slot, work = handle.slot, handle.work
        assert slot is not None
        keep = min(slot.shared(work.tokens), work.first_row, len(work.tokens) - 1)
        if keep < slot.n_tokens:
            self._rewind(slot, keep)

    def _rewind(self, slot: Slot, n_tokens: int) -> None:
        """The slot keeps its first n_tokens; fewer where the model cannot go back to just these."""
        try:
            self.context.rewind(slot.index, n_tokens)
        except UnsupportedError:
            n_tokens = self.snapshots.restore(slot, n_tokens, slot)
            if n_tokens == 0:
                self.context.rewind(slot.index, 0)
        slot.rewind(n_tokens)

    def _shares(self, handles: list[Handle]) -> list[tuple[Handle, int]]:
        """How many tokens of each sequence the pass takes: those that generate first, then prompts in the order of arrival. One with
        at most half as much to go as the first may take half of their room: a short question does not wait for the end of a long text."""
        lacking = {id(handle): len(handle.work.tokens) - handle.slot.n_tokens for handle in handles if handle.slot is not None}
        decoding = [handle for handle in handles if handle.evaluated >= handle.n_prompt]
        prompts = [handle for handle in handles if handle.evaluated < handle.n_prompt]
        room, shares = self.context.n_batch, []
        for handle in sorted(decoding, key=lambda handle: handle.slot.used if handle.slot else 0):
            count = min(lacking[id(handle)], room)
            if count:
                shares.append((handle, count))
                room -= count
        room = min(room, self._pace.prompt_rows(len(shares), len(prompts) > 1 or bool(self._queue)))
        return shares + self._prompt_shares(prompts, lacking, room)

    @staticmethod
    def _prompt_shares(prompts: list[Handle], lacking: dict[int, int], room: int) -> list[tuple[Handle, int]]:
        limits = {
            id(handle): min(
                handle.until_stop,
                lacking[id(handle)],
                _MAX_ROWS if handle.work.first_row < len(handle.work.tokens) - 1 and not handle.work.hidden else room,
            )
            for handle in prompts
        }
        counts = dict.fromkeys(limits, 0)
        least = min(prompts, key=lambda handle: lacking[id(handle)], default=None)
        shortest = [least] if least is not None and 2 * lacking[id(least)] <= lacking[id(prompts[0])] else []
        for handle, most in [*((handle, room // 2) for handle in shortest), *((handle, room) for handle in prompts)]:
            count = min(limits[id(handle)] - counts[id(handle)], most, room)
            counts[id(handle)] += count
            room -= count
        return [(handle, counts[id(handle)]) for handle in prompts if counts[id(handle)] > 0]

    def _pass(self, handles: list[Handle], forward: Callable[..., list[Any]]) -> None:
        """Evaluates tokens of some requests together and hands each the rows that it wants."""
        if not handles:
            return
        for handle in handles:
            self._align(handle)
        shares = self._shares(handles)
        if self.budget is not None:
            self.budget.before_pass(shares, self.slots)
            depth = draft_depth(len(self._running))
            for work in (handle.work for handle, _ in shares):
                if isinstance(work, Completing):
                    work.draft_depth = depth
        begun = time.perf_counter()
        try:
            self._prepare_for_drafts(shares)
            results = forward(shares)
        except BaseException as error:
            for handle, _ in shares:
                if handle.slot is not None:
                    handle.slot.rewind(0)  # how far the pass came is not known
                self._leave(handle, error)
            return
        seconds = time.perf_counter() - begun
        self._count(shares, seconds)
        for (handle, count), rows in zip(shares, results, strict=True):
            self._deliver(handle, count, rows)

    def _prepare_for_drafts(self, shares: list[tuple[Handle, int]]) -> None:
        """Some of several tokens of a sequence that generates may have to be taken back."""
        for handle, count in shares if self.snapshots.needed else ():
            if count > 1 and handle.evaluated >= handle.n_prompt and handle.slot is not None:
                self.snapshots.take_before_draft(handle.slot)

    def _count(self, shares: list[tuple[Handle, int]], seconds: float) -> None:
        prompt = sum(count for handle, count in shares if handle.evaluated < handle.n_prompt)
        decoding = sum(1 for handle, _ in shares if handle.evaluated >= handle.n_prompt)
        self._pace.measured(prompt, decoding, seconds)
        self.counters.passes += 1
        self.counters.busy_seconds += seconds
        self.counters.prompt_tokens += prompt
        self.counters.generated_tokens += decoding

    def _rows_of(self, handle: Handle, count: int) -> range:
        """The positions of this pass whose rows the work wants."""
        assert handle.slot is not None
        start = handle.slot.n_tokens
        return range(max(start, handle.work.first_row), start + count)

    def _batch(self, shares: list[tuple[Handle, int]]) -> tuple[Any, Any, Any, Any, list[int]]:
        """Tokens, positions, slots and output rows of a pass, and how many output rows each request has."""
        tokens, positions, slots, outputs, wanted, row = [], [], [], [], [], 0
        for handle, count in shares:
            slot = handle.slot
            assert slot is not None
            start = slot.n_tokens
            tokens.append(handle.work.tokens[start : start + count])
            positions.append(np.arange(start, start + count, dtype=np.int32))
            slots.append(np.full(count, slot.index, np.int32))
            rows = self._rows_of(handle, count)
            outputs.append(np.arange(row + rows.start - start, row + count, dtype=np.int32)[: len(rows)])
            wanted.append(len(rows))
            row += count
        return np.concatenate(tokens), np.concatenate(positions), np.concatenate(slots), np.concatenate(outputs), wanted

    def _forward(self, shares: list[tuple[Handle, int]]) -> list[Any]:
        *batch, wanted = self._batch(shares)
        best = all(handle.work.only_best for (handle, _), count in zip(shares, wanted, strict=True) if count)
        rows = (self.context.forward_best if best else self.context.forward)(*batch)
        return self._split(rows, wanted, best)

    def _embed(self, shares: list[tuple[Handle, int]]) -> list[Any]:
        *batch, wanted = self._batch(shares)
        return self._split(self.context.embed(*batch), wanted, False)

    @staticmethod
    def _split(rows: Any, wanted: list[int], best: bool) -> list[tuple[Any, bool]]:
        ends = np.cumsum(wanted)
        return [(rows[end - count : end], best) for end, count in zip(ends, wanted, strict=True)]

    def _deliver(self, handle: Handle, count: int, result: tuple[Any, bool]) -> None:
        """Notes the evaluated tokens and gives the work its rows; an error of a caller's function ends only that caller's request."""
        slot, work = handle.slot, handle.work
        assert slot is not None
        self._time += 1
        slot.append(work.tokens[slot.n_tokens : slot.n_tokens + count])
        slot.used = self._time
        if slot.n_tokens in handle.stops:
            self.snapshots.take(slot)
        handle.evaluated = max(handle.evaluated, min(slot.n_tokens, handle.n_prompt))
        rows, best = result
        complete = slot.n_tokens == len(work.tokens)
        try:
            if best and len(rows):
                work.take_best(rows[0], handle.emit)
            elif len(rows) or complete:
                work.take(rows, handle.emit)
            else:
                handle.notify()
        except BaseException as error:
            self._leave(handle, error)
            return
        if work.done:
            self._leave(handle)

    # --- after a fork --------------------------------------------------------------------------------------------------------------------

    def after_fork_in_child(self) -> None:
        """The child has the context as it was, but neither the thread nor the requests of its parent."""
        self.in_pass = threading.RLock()
        waiting = [*self._running, *self._queue]
        self._make_threads()
        self._running = []
        for handle in waiting:
            handle.orphan(RuntimeError("this process was forked while the request ran; it goes on in the parent"))


_SCHEDULERS: "weakref.WeakSet[Scheduler]" = weakref.WeakSet()
_forking: list[Scheduler] = []


def _before_fork() -> None:
    _forking[:] = list(_SCHEDULERS)
    for scheduler in _forking:
        scheduler.in_pass.acquire()


def _after_fork_in_parent() -> None:
    for scheduler in _forking:
        scheduler.in_pass.release()
    _forking.clear()


def _after_fork_in_child() -> None:
    for scheduler in _forking:
        scheduler.after_fork_in_child()
    _forking.clear()


@atexit.register
def _close_all() -> None:
    """A thread inside the core must not outlive the interpreter."""
    for scheduler in list(_SCHEDULERS):
        scheduler.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
