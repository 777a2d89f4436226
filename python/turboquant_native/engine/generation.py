"""One completion in progress: logits go in, tokens and text come out. It knows nothing of where logits come from."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .sampling import Best, Logits, StoppingCriteriaList, TokenChooser, log_softmax, top_tokens
from .streaming import TextStream
from .tokens import Tokens
from .vocabulary import Vocabulary


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
    """When a completion ends, and what of it is text.

    Attributes:
        stop_tokens: control tokens that end it as a stop string does; their text is never seen.
        shown_tokens: control tokens whose names are part of the text, such as a family's marks of tool calls.
    """

    max_tokens: int
    stop: Sequence[str] = ()
    stop_tokens: frozenset[int] = frozenset()
    shown_tokens: frozenset[int] = frozenset()
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
    def needs_only_best(self) -> bool:
        """Whether only the draw looks at the logits, and only at the best of them: `advance_best` then does what `advance` would."""
        draw = self._chooser.needs_only_best(self._vocabulary.n_vocab)
        return draw and self._logprobs is None and not self._limits.criteria

    @property
    def n_logprobs(self) -> int:
        """How many alternatives are reported with each token."""
        return self._logprobs or 0

    def advance_best(self, best: Best) -> Chunk:
        """`advance` from the best tokens of a position."""
        return self._append(self._chooser.choose_best(best))

    def _append(self, token: int, logits: Logits | None = None) -> Chunk:
        if token in self._vocabulary.end_tokens or token in self._limits.stop_tokens:
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
        hidden = self._vocabulary.is_control(token) and token not in self._limits.shown_tokens
        return b"" if hidden else self._vocabulary.piece(token)

    def _end(self, reason: str) -> Chunk:
        self.finish_reason = reason
        return Chunk(self._stream.finish())
