"""Perplexity, and the KL divergence of a model's next-token distributions from a reference's, as llama-perplexity measures them.

A text is cut into windows of `ctx` tokens, each evaluated from an empty cache; where the model uses BOS it takes the place of a window's
first token. Scored are the predictions of positions ctx/2 .. ctx-2, so that each has half a window of context at least.

`python -m turboquant_native.evaluate` runs lm-evaluation-harness tasks (extra `[eval]`); `tqn eval` is this module on the command line.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..convert.inspection import describe
from ..engine.long_text import encode_long
from ..engine.vocabulary import Vocabulary

Logprobs = NDArray[np.float32]
_BLOCK_VALUES = 1 << 22  # values that one step of the arithmetic touches, so that memory does not grow with the vocabulary


def scored_rows(ctx: int) -> range:
    """Positions of a window whose predictions count."""
    return range(ctx // 2, ctx - 1)


class Scorer:
    """Logits of windows under one model; owns its context, not the model.

    Args:
        model: a `_core.Model`.
        ctx: tokens of a window, at least 4.
        cache: type of cached keys and values, as `_core.Context` names it.
    """

    def __init__(self, model: Any, ctx: int, cache: str = "auto") -> None:
        from .. import _core

        if ctx < 4:
            raise ValueError(f"ctx must be at least 4, got {ctx}")
        self.ctx = ctx
        self._context = _core.Context(model, n_ctx=ctx, n_batch=min(ctx, 512), cache=cache)
        self.n_vocab = int(self._context.n_vocab)
        self.vocabulary = Vocabulary(model.file.metadata, self.n_vocab)

    def logits(self, window: NDArray[np.int32]) -> Logprobs:
        """(len(scored_rows), n_vocab) logits of a window of tokens as they stand in the text."""
        tokens = np.array(window, np.int32)
        if self.vocabulary.add_bos:
            tokens[0] = self.vocabulary.bos
        first = scored_rows(self.ctx).start
        self._context.eval(tokens[:first], 0, 0, "none")
        rows: Logprobs = self._context.eval(tokens[first:-1], first, 0, "all")
        return rows

    def close(self) -> None:
        """Frees the context."""
        self._context.close()


def text_windows(vocabulary: Vocabulary, text: str, ctx: int, limit: int | None = None) -> NDArray[np.int32]:
    """(windows, ctx) tokens of a text, at most `limit` windows; ValueError when it is shorter than one."""
    tokens = encode_long(vocabulary, text)
    if vocabulary.add_bos and tokens[:1].tolist() != [vocabulary.bos]:
        tokens = np.concatenate([np.array([vocabulary.bos], np.int32), tokens])
    count = len(tokens) // ctx
    if count == 0:
        raise ValueError(f"the text has {len(tokens)} tokens, less than a window of {ctx}")
    count = min(count, limit or count)
    return tokens[: count * ctx].reshape(count, ctx)


class Reference(Protocol):
    """Where a reference's log-probabilities come from."""

    windows: NDArray[np.int32]
    n_vocab: int
    floor: float  # log-probabilities at or below it do not count towards the divergence

    def logprobs(self, index: int) -> Logprobs:
        """(len(scored_rows), n_vocab) natural log-probabilities of a window."""
        ...


def normalize(logits: Logprobs) -> Logprobs:
    """Log-probabilities in place of logits, row by row; the sums are float64."""
    peak = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - peak).sum(axis=1, keepdims=True, dtype=np.float64)
    logits -= (peak + np.log(total)).astype(np.float32)
    return logits


class LiveReference:
    """A reference model, evaluated again for every use."""

    floor = -np.inf

    def __init__(self, scorer: Scorer, windows: NDArray[np.int32]) -> None:
        self._scorer, self.windows, self.n_vocab = scorer, windows, scorer.n_vocab

    def logprobs(self, index: int) -> Logprobs:
        return normalize(self._scorer.logits(self.windows[index]))


class CachedReference:
    """A reference's log-probabilities in a file (`.npy` of shape (windows, rows, n_vocab)), for measuring many candidates.

    Args:
        path: the file; `store` writes it.
        windows: the windows that it was made from.
    """

    floor = -np.inf

    def __init__(self, path: str | Path, windows: NDArray[np.int32]) -> None:
        self._data = np.load(path, mmap_mode="r")
        self.windows = windows
        expected = (len(windows), len(scored_rows(windows.shape[1])))
        if self._data.shape[:2] != expected:
            raise ValueError(f"{path} holds {self._data.shape[:2]} windows and rows, expected {expected}")
        self.n_vocab = int(self._data.shape[2])

    @classmethod
    def store(cls, path: str | Path, reference: Reference, dtype: Any = np.float16) -> "CachedReference":
        """Evaluates a reference once into a file; float16 takes 25 MB a window of 512 tokens with 49152 words."""
        shape = (len(reference.windows), len(scored_rows(reference.windows.shape[1])), reference.n_vocab)
        data = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        for index in range(shape[0]):
            data[index] = reference.logprobs(index)
        data.flush()
        return cls(path, reference.windows)

    def logprobs(self, index: int) -> Logprobs:
        return np.asarray(self._data[index], dtype=np.float32)


@dataclass(frozen=True)
class TokenScores:
    """Per scored token: negative log-likelihoods (nats), KL divergence, and whether the best token is the same. Each (n,)."""

    nll: NDArray[np.float64]
    nll_reference: NDArray[np.float64] | None = None
    kld: NDArray[np.float64] | None = None
    same_top: NDArray[np.bool_] | None = None


def _row_blocks(rows: int, n_vocab: int) -> Iterator[slice]:
    step = max(1, _BLOCK_VALUES // n_vocab)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def divergence(reference: Logprobs, logprobs: Logprobs, floor: float = -np.inf) -> NDArray[np.float64]:
    """KL(reference || model) of each row, in nats, from log-probabilities (rows, n_vocab); reference values must exceed `floor`."""
    terms = np.exp(reference) * (reference - logprobs)
    if floor > -np.inf:
        terms[reference <= floor] = 0
    result: NDArray[np.float64] = terms.sum(axis=1, dtype=np.float64)
    return result


def score_window(logits: Logprobs, targets: NDArray[np.int32], reference: Logprobs | None = None, floor: float = -np.inf) -> TokenScores:
    """Scores of one window; logits (rows, n_vocab) are overwritten."""
    index = np.arange(len(targets))
    kld = np.empty(len(targets))
    same = np.empty(len(targets), bool)
    for block in _row_blocks(*logits.shape):
        normalize(logits[block])
        if reference is not None:
            kld[block] = divergence(reference[block], logits[block], floor)
            same[block] = reference[block].argmax(axis=1) == logits[block].argmax(axis=1)
    nll = -logits[index, targets].astype(np.float64)
    if reference is None:
        return TokenScores(nll)
    return TokenScores(nll, -reference[index, targets].astype(np.float64), kld, same)


@dataclass(frozen=True)
class Evaluation:
    """Figures of one model over all scored tokens; `_se` are standard errors, KLD is in nats, `bpw` bits of all tensors per parameter."""

    windows: int
    ctx: int
    scored: int
    ppl: float
    ppl_se: float
    ppl_reference: float | None = None
    ppl_reference_se: float | None = None
    kld_mean: float | None = None
    kld_mean_se: float | None = None
    kld_median: float | None = None
    kld_p99: float | None = None
    kld_p999: float | None = None
    kld_max: float | None = None
    same_top: float | None = None
    same_top_se: float | None = None
    bpw: float | None = None
    tensor_bytes: int | None = None
    file_bytes: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: what was measured."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def mean_and_error(values: NDArray[Any]) -> tuple[float, float]:
    """Mean and its standard error."""
    error = float(values.std() / np.sqrt(len(values) - 1)) if len(values) > 1 else 0.0
    return float(values.mean()), error


def _perplexity(nll: NDArray[np.float64]) -> tuple[float, float]:
    mean, error = mean_and_error(nll)
    ppl = float(np.exp(mean))
    return ppl, ppl * error


def summarize(scores: list[TokenScores], ctx: int, **sizes: Any) -> Evaluation:
    """The figures of all windows together."""
    nll = np.concatenate([score.nll for score in scores])
    figures: dict[str, Any] = dict(zip(("ppl", "ppl_se"), _perplexity(nll), strict=True))
    if scores[0].kld is not None:
        kld = np.concatenate([score.kld for score in scores if score.kld is not None])
        same = np.concatenate([score.same_top for score in scores if score.same_top is not None])
        reference = np.concatenate([score.nll_reference for score in scores if score.nll_reference is not None])
        figures["ppl_reference"], figures["ppl_reference_se"] = _perplexity(reference)
        figures["kld_mean"], figures["kld_mean_se"] = mean_and_error(kld)
        figures["same_top"], figures["same_top_se"] = mean_and_error(same)
        quantiles = np.quantile(kld, [0.5, 0.99, 0.999, 1.0])
        figures.update(zip(("kld_median", "kld_p99", "kld_p999", "kld_max"), map(float, quantiles), strict=True))
    return Evaluation(windows=len(scores), ctx=ctx, scored=len(nll), **figures, **sizes)


def sizes(model: Any) -> dict[str, Any]:
    """bpw, tensor_bytes and file_bytes of a `_core.Model`: every tensor of the file counts."""
    summary = describe(model.file)
    return {"bpw": summary.bits_per_weight, "tensor_bytes": summary.tensor_bytes, "file_bytes": summary.size}


def evaluate(
    model: Any,
    windows: NDArray[np.int32],
    reference: Reference | None = None,
    progress: Callable[[int, TokenScores], None] | None = None,
    cache: str = "auto",
) -> Evaluation:
    """Measures a model on windows of tokens.

    Args:
        model: a `_core.Model`.
        windows: (n, ctx) tokens from `text_windows`.
        reference: its `windows` must be these; without one only perplexity is measured.
        progress: called after each window with its index and scores.
        cache: type of cached keys and values, as `_core.Context` names it.

    Raises ValueError when the vocabularies or the windows differ.
    """
    scorer = Scorer(model, windows.shape[1], cache)
    try:
        if reference is not None and reference.n_vocab != scorer.n_vocab:
            raise ValueError(f"the reference has {reference.n_vocab} words, the model {scorer.n_vocab}")
        if reference is not None and not np.array_equal(reference.windows, windows):
            raise ValueError("the reference was evaluated on other windows")
        scores = []
        for index, window in enumerate(windows):
            targets = window[scored_rows(scorer.ctx).start + 1 :]
            if reference is None:
                scores.append(score_window(scorer.logits(window), targets))
            else:
                scores.append(score_window(scorer.logits(window), targets, reference.logprobs(index), reference.floor))
            if progress is not None:
                progress(index, scores[-1])
    finally:
        scorer.close()
    return summarize(scores, scorer.ctx, **sizes(model))
