"""Measurements: perplexity and KL divergence, base files, multiple choice, lm-evaluation-harness, speed, reports."""

from .evaluation import (
    CachedReference,
    Evaluation,
    LiveReference,
    Reference,
    Scorer,
    TokenScores,
    divergence,
    evaluate,
    mean_and_error,
    normalize,
    score_window,
    scored_rows,
    sizes,
    summarize,
    text_windows,
)

__all__ = [
    "CachedReference",
    "Evaluation",
    "LiveReference",
    "Reference",
    "Scorer",
    "TokenScores",
    "divergence",
    "evaluate",
    "mean_and_error",
    "normalize",
    "score_window",
    "scored_rows",
    "sizes",
    "summarize",
    "text_windows",
]
