"""One completion in progress: logits go in, tokens and text come out. It knows nothing of where logits come from, so that single,
speculative and batched generation share it."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .prefix_cache import PrefixCache, Tokens
from .sampling import Best, Logits, StoppingCriteriaList, TokenChooser, log_softmax, top_tokens
from .streaming import TextStream
from .vocabulary import Vocabulary

DraftModel = Callable[[Tokens], Tokens]


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability (natural) of a token where it stands, with the most likely alternatives."""

    token: int
    logprob: float | None  # None: a text's first token has no context
    top: list[tuple[int, float]]


@dataclass
class Chunk:
    """What one step adds: text that is final now, and the tokens with their log-probabilities when asked for."""

    text: str
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


def token_logprob(logits: Logits, token: int, count: int) -> TokenLogprob:
    """The log-probability of `token` under one position's logits (n_vocab,), with the `count` best."""
    logprobs = log_softmax(logits)
    return TokenLogprob(token, float(logprobs[token]), [(best, float(logprobs[best])) for best in top_tokens(logprobs, count)])


@dataclass(frozen=True)
class Limits:
    """When a completion ends."""

    max_tokens: int
    stop: Sequence[str] = ()
    criteria: StoppingCriteriaList = field(default_factory=StoppingCriteriaList)


@dataclass
class Timings:
    """Where a completion's time went; `prompt_tokens` counts those that were evaluated, not those found in the cache."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    generated_tokens: int = 0
    generation_seconds: float = 0.0


class Generation:
    """The state of one completion.

    Args:
        prompt: its tokens.
        chooser: draws this sequence's tokens.
        limits: where it ends; max_tokens is exact.
        logprobs: None, or the number of alternatives to report with each token.
    """

    def __init__(self, vocabulary: Vocabulary, prompt: Tokens, chooser: TokenChooser, limits: Limits, logprobs: int | None = None) -> None:
        self._vocabulary, self._chooser, self._limits, self._logprobs = vocabulary, chooser, limits, logprobs
        self._stream = TextStream(limits.stop)
        self._history = np.empty(len(prompt) + limits.max_tokens, np.intc)
        self._history[: len(prompt)] = prompt
        self._length = self.n_prompt = len(prompt)
        self.timings = Timings()
        self.finish_reason: str | None = "length" if limits.max_tokens == 0 else None

    @property
    def history(self) -> Tokens:
        """Prompt and generated tokens (a view)."""
        return self._history[: self._length]

    @property
    def n_generated(self) -> int:
        return self._length - self.n_prompt

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._stream.stopped_by

    @property
    def room(self) -> int:
        """Tokens that may still come."""
        return len(self._history) - self._length

    def advance(self, logits: Logits) -> Chunk:
        """Draws the next token from logits (n_vocab,); `finish_reason` is set when that was the end."""
        if self._limits.criteria(self.history, logits):
            return self._end("stop")
        return self._append(self._chooser.choose(self.history, logits), logits)

    @property
    def best_suffice(self) -> bool:
        """Whether only the draw looks at the logits, and only at the best of them: `advance_best` then does what `advance` would."""
        suffice = self._chooser.best_suffice(self._vocabulary.n_vocab)
        return suffice and self._logprobs is None and not self._limits.criteria

    def advance_best(self, best: Best) -> Chunk:
        """`advance` from the best tokens of a position."""
        return self._append(self._chooser.choose_best(best))

    def _append(self, token: int, logits: Logits | None = None) -> Chunk:
        if token in self._vocabulary.end_tokens:
            return self._end("stop")
        self._history[self._length] = token
        self._length += 1
        logprobs = [] if self._logprobs is None or logits is None else [token_logprob(logits, token, self._logprobs)]
        chunk = Chunk(self._stream.push(self._visible_piece(token)), [token], logprobs)
        if self._stream.stopped_by is not None:
            self.finish_reason = "stop"
        elif self.n_generated == self._limits.max_tokens:
            self.finish_reason = "length"
            chunk.text += self._stream.finish()
        return chunk

    def _visible_piece(self, token: int) -> bytes:
        return b"" if self._vocabulary.is_control(token) else self._vocabulary.piece(token)

    def _end(self, reason: str) -> Chunk:
        self.finish_reason = reason
        return Chunk(self._stream.finish())


def run(
    generation: Generation,
    cache: PrefixCache,
    lock: Any,
    own_cache: Callable[[], AbstractContextManager[PrefixCache]],
    draft: DraftModel | None = None,
) -> Iterator[Chunk]:
    """Drives a generation to its end. The lock is held only within a step, so an abandoned iterator blocks nobody.

    When somebody else has used the cache between two steps, the generation goes on in a cache of its own: streams that run at the same
    time would otherwise evaluate their whole texts again at every token.
    With a draft model each step evaluates its guesses together with the last token and keeps those that the sampler agrees with: the
    text is that of plain generation.
    """
    step = _plain_step if draft is None else partial(_speculative_step, draft)
    with ExitStack() as stack:
        while generation.finish_reason is None:
            if generation.n_generated and cache.user is not generation:
                cache = stack.enter_context(own_cache())
            started, first, evaluated = time.perf_counter(), generation.n_generated == 0, cache.evaluated
            chunks = step(generation, cache, lock)
            _record(generation.timings, first, time.perf_counter() - started, cache.evaluated - evaluated, len(chunks))
            yield from chunks


def _record(timings: Timings, first: bool, seconds: float, evaluated: int, drawn: int) -> None:
    """The first step evaluates the prompt; its token comes with it."""
    if first:
        timings.prompt_seconds, timings.prompt_tokens = seconds, evaluated
    else:
        timings.generation_seconds += seconds
        timings.generated_tokens += drawn


def _plain_step(generation: Generation, cache: PrefixCache, lock: Any) -> list[Chunk]:
    if generation.best_suffice and not cache.keeps_logits:
        with lock:
            best = cache.best_after(generation.history, user=generation)
        return [generation.advance_best(best)]
    with lock:
        rows = cache.logits_after(generation.history, user=generation)
    return [generation.advance(rows[0])]


def _speculative_step(draft: DraftModel, generation: Generation, cache: PrefixCache, lock: Any) -> list[Chunk]:
    guesses = np.asarray(draft(generation.history), dtype=np.intc)[: generation.room - 1]
    with lock:
        rows = cache.logits_after(np.concatenate([generation.history, guesses]), rows=len(guesses) + 1, user=generation)
    chunks = []
    for row, logits in enumerate(rows):
        chunks.append(generation.advance(logits))
        if generation.finish_reason or row == len(guesses) or generation.history[-1] != guesses[row]:
            break
    return chunks


def prompt_logprobs(cache: PrefixCache, lock: Any, prompt: Tokens, count: int, block: int = 128) -> list[TokenLogprob]:
    """Log-probabilities of a prompt's own tokens, some positions at a time (logits of a long prompt would not fit in memory)."""
    found = [TokenLogprob(int(prompt[0]), None, [])]
    for end in range(1, len(prompt), block):
        stop = min(end + block, len(prompt))
        with lock:
            rows: NDArray[np.float32] = cache.logits_after(prompt[: stop - 1], rows=stop - end)
        found += [token_logprob(row, int(token), count) for row, token in zip(rows, prompt[end:stop], strict=True)]
    return found
