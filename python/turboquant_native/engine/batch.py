"""Many completions at once: each forward pass carries a token of every running sequence, and parts of the prompts that join."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..api.completion import Completion, CompletionRequest, completion_dict, finished
from .generation import Chunk, Generation

if TYPE_CHECKING:
    from ..api.llama import Llama


@dataclass
class _Sequence:
    """A completion that has a slot of the context."""

    index: int
    slot: int
    generation: Generation
    evaluated: int = 0
    chunks: list[Chunk] = field(default_factory=list)

    @property
    def waiting(self) -> int:
        """Tokens that must be evaluated before the next one can be drawn."""
        return len(self.generation.history) - self.evaluated


class Batch:
    """Runs generations through the slots of one context; sequences join when a slot is free and leave when they end."""

    def __init__(self, context: Any, generations: Sequence[Generation]) -> None:
        self._context = context
        self._queue = deque(enumerate(generations))
        self._free = list(range(context.n_slots))
        self._running: list[_Sequence] = []
        self.chunks: list[list[Chunk]] = [[] for _ in generations]

    def run(self) -> None:
        """Drives all generations to their end."""
        while self._queue or self._running:
            self._join()
            if self._running:
                self._step()
            self._leave()

    def _join(self) -> None:
        while self._queue and self._free:
            index, generation = self._queue.popleft()
            if generation.finish_reason is None:
                self._running.append(_Sequence(index, self._free.pop(), generation, chunks=self.chunks[index]))

    def _leave(self) -> None:
        self._free += [sequence.slot for sequence in self._running if sequence.generation.finish_reason]
        self._running = [sequence for sequence in self._running if not sequence.generation.finish_reason]

    def _shares(self) -> list[tuple[_Sequence, int]]:
        """How many tokens of each sequence this pass takes: those that generate come first, prompts share what is left of n_batch."""
        room, shares = self._context.n_batch, []
        for sequence in sorted(self._running, key=lambda sequence: sequence.waiting):
            count = min(sequence.waiting, room)
            if count:
                shares.append((sequence, count))
                room -= count
        return shares

    def _step(self) -> None:
        shares = self._shares()
        tokens = [sequence.generation.history[sequence.evaluated : sequence.evaluated + count] for sequence, count in shares]
        positions = [np.arange(sequence.evaluated, sequence.evaluated + count, dtype=np.int32) for sequence, count in shares]
        slots = [np.full(count, sequence.slot, np.int32) for sequence, count in shares]
        ends = np.cumsum([count for _, count in shares])
        drawing = [row for row, (sequence, count) in enumerate(shares) if count == sequence.waiting]
        best = all(shares[share][0].generation.best_suffice for share in drawing)
        forward = self._context.forward_best if best else self._context.forward
        rows = forward(np.concatenate(tokens), np.concatenate(positions), np.concatenate(slots), (ends[drawing] - 1).astype(np.int32))
        for sequence, count in shares:
            sequence.evaluated += count
        for row, share in enumerate(drawing):
            sequence = shares[share][0]
            generation = sequence.generation
            sequence.chunks.append(generation.advance_best(rows[row]) if best else generation.advance(rows[row]))


def generate(llm: "Llama", requests: Sequence[CompletionRequest], n_slots: int) -> list[dict[str, Any]]:
    """Completions of all requests, in their order; each is what it would be alone.

    The context for it is made for this call: n_slots sequences as long as the longest request needs.
    """
    from .. import _core

    if n_slots < 1:
        raise ValueError(f"n_slots must be positive, got {n_slots}")
    if not requests:
        return []
    generations = [Completion(llm, request).generation for request in requests]
    n_ctx = max(len(generation.history) + generation.room for generation in generations)
    context = _core.Context(llm._model, n_ctx=n_ctx, n_slots=min(n_slots, len(requests)), n_batch=max(llm.context_params.n_batch, n_slots))
    try:
        batch = Batch(context, generations)
        batch.run()
    finally:
        context.close()
    results = [finished(llm, generation, chunks) for generation, chunks in zip(generations, batch.chunks, strict=True)]
    return [completion_dict(llm, result, request.logprobs is not None) for result, request in zip(results, requests, strict=True)]
