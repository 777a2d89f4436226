"""Choosing tokens: options, logits processors, stopping criteria and log-probabilities.

The draw itself is C++ (`_core.Sampler`); what callers plug in runs here, on the logits of one position.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
Best = NDArray[np.void]  # a position's best tokens, see `_core.Context.forward_best`
LogitsProcessor = Callable[[NDArray[np.intc], Logits], Logits]
StoppingCriteria = Callable[[NDArray[np.intc], Logits], bool]


class LogitsProcessorList(list[LogitsProcessor]):
    """Processors applied in order, each f(input_ids, logits) -> logits of shape (n_vocab,)."""

    def __call__(self, input_ids: NDArray[np.intc], scores: Logits) -> Logits:
        for processor in self:
            scores = processor(input_ids, scores)
        return scores


class StoppingCriteriaList(list[StoppingCriteria]):
    """Criteria f(input_ids, logits) -> bool; generation ends when any of them is true."""

    def __call__(self, input_ids: NDArray[np.intc], logits: Logits) -> bool:
        return any(criterion(input_ids, logits) for criterion in self)


class MinTokensLogitsProcessor:
    """Forbids `token_eos` until `min_tokens` tokens were generated."""

    def __init__(self, min_tokens: int, token_eos: int) -> None:
        self.min_tokens, self.token_eos = min_tokens, token_eos
        self._prompt_tokens: int | None = None

    def __call__(self, input_ids: NDArray[np.intc], scores: Logits) -> Logits:
        if self._prompt_tokens is None:
            self._prompt_tokens = len(input_ids)
        if len(input_ids) - self._prompt_tokens < self.min_tokens:
            scores[self.token_eos] = -np.inf
        return scores


@dataclass(frozen=True)
class SamplingOptions:
    """How a token is drawn; the defaults are `create_completion`'s. temperature <= 0 is greedy."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last_n: int = 64

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, Real):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value!r}")
        for name in ("top_k", "penalty_last_n"):
            value = getattr(self, name)
            if value != int(value):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            object.__setattr__(self, name, max(-1, min(int(value), (1 << 31) - 1)))
        for name, low, high in (
            ("top_p", 0, 1),
            ("min_p", 0, 1),
            ("typical_p", 0, 1),
            ("frequency_penalty", -2, 2),
            ("presence_penalty", -2, 2),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} must be in [{low}, {high}], got {value}")
        if not self.repeat_penalty > 0:
            raise ValueError(f"repeat_penalty must be positive, got {self.repeat_penalty}")


_FOREIGN_SAMPLERS: dict[str, Any] = {"tfs_z": 1.0, "mirostat_mode": 0, "suffix": ""}
_FOREIGN_PARAMETERS = {"mirostat_tau", "mirostat_eta", "penalize_nl"}


def refuse_unsupported(**options: Any) -> None:
    """Raises for options that llama-cpp-python has and this engine has not: ValueError when one would change the result, TypeError for
    names that nobody knows."""
    for name, value in options.items():
        if name not in _FOREIGN_SAMPLERS and name not in _FOREIGN_PARAMETERS:
            raise TypeError(f"unexpected argument {name!r}")
        neutral = _FOREIGN_SAMPLERS.get(name, value)
        if value not in (None, neutral):
            raise ValueError(f"{name}={value!r} is not supported; leave it at {neutral!r}")


def check_logit_bias(bias: Mapping[Any, float] | None, n_vocab: int) -> dict[int, float]:
    """Token ids (also written as strings, as in JSON) with what is added to their logits."""
    try:
        checked = {int(token): float(value) for token, value in (bias or {}).items()}
    except (TypeError, ValueError, AttributeError):
        raise TypeError(f"logit_bias must map token ids to numbers, got {bias!r}") from None
    for token, value in checked.items():
        if not 0 <= token < n_vocab:
            raise ValueError(f"logit_bias names token {token}, outside [0, {n_vocab})")
        if np.isnan(value):
            raise ValueError(f"logit_bias of token {token} is NaN")
    return checked


class TokenChooser:
    """Draws the tokens of one sequence: bias, processors (a grammar is one), then the sampler.

    Args:
        sampler: a `_core.Sampler` that belongs to this sequence.
        logit_bias: checked token biases.
        processors: called with (tokens so far, logits); they may change the array in place.
    """

    def __init__(self, sampler: Any, logit_bias: Mapping[int, float] | None = None, processors: Sequence[LogitsProcessor] = ()) -> None:
        self._sampler = sampler
        self._bias = dict(logit_bias or {})
        self._processors = LogitsProcessorList(processors)

    def choose(self, history: NDArray[np.intc], logits: Logits) -> int:
        """The token that follows `history`, whose last logits (n_vocab,) are given and left unchanged."""
        if self._bias or self._processors:
            logits = self._adjust(history, logits.copy())
        return int(self._sampler.sample(logits, history))

    def needs_only_best(self, n_vocab: int) -> bool:
        """Whether `choose_best` decides as `choose` would."""
        return not self._bias and not self._processors and self._sampler.needed_candidates(n_vocab) > 0

    def choose_best(self, best: Best) -> int:
        """The next token from the best of the last position."""
        return int(self._sampler.sample_best(best))

    def _adjust(self, history: NDArray[np.intc], logits: Logits) -> Logits:
        for token, value in self._bias.items():
            logits[token] += value
        adjusted = np.asarray(self._processors(history, logits), dtype=np.float32)
        if adjusted.shape != logits.shape:
            raise ValueError(f"a logits processor returned shape {adjusted.shape}, expected {logits.shape}")
        return np.ascontiguousarray(adjusted)


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Log-probabilities over the last axis, in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def top_tokens(logprobs: NDArray[np.float64], count: int) -> list[int]:
    """Indices of the `count` largest entries, best first."""
    if count <= 0:
        return []
    best = np.argpartition(logprobs, -count)[-count:] if count < logprobs.size else np.arange(logprobs.size)
    return [int(token) for token in best[np.argsort(-logprobs[best], kind="stable")]]
