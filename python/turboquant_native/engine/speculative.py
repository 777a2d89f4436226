"""Draft models: cheap guesses of the next tokens, which the engine checks many at a time."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.intc]


class LlamaDraftModel(Protocol):
    """Called with the tokens so far, returns its guess of those that follow (possibly none)."""

    def __call__(self, input_ids: Tokens, /, **kwargs: Any) -> Tokens: ...


class LlamaPromptLookupDecoding:
    """Guesses that text repeats: finds the latest earlier occurrence of the last few tokens and proposes what followed it.

    Args:
        max_ngram_size: length of the longest end of the text that is looked up; shorter ones are tried after it.
        num_pred_tokens: tokens proposed at once.
    """

    def __init__(self, max_ngram_size: int = 2, num_pred_tokens: int = 10) -> None:
        if max_ngram_size < 1 or num_pred_tokens < 1:
            raise ValueError(f"max_ngram_size and num_pred_tokens must be positive, got {max_ngram_size} and {num_pred_tokens}")
        self.max_ngram_size, self.num_pred_tokens = max_ngram_size, num_pred_tokens

    def __call__(self, input_ids: Tokens, /, **kwargs: Any) -> Tokens:
        for size in range(min(self.max_ngram_size, len(input_ids) - 1), 0, -1):
            windows = np.lib.stride_tricks.sliding_window_view(input_ids[:-1], size)
            found = np.flatnonzero((windows == input_ids[-size:]).all(axis=1))
            if found.size:
                start = int(found[-1]) + size
                return np.array(input_ids[start : start + self.num_pred_tokens])
        return np.empty(0, np.intc)


class LlamaModelDraft:
    """A smaller model with the same vocabulary as draft, greedy.

    Args:
        llm: an open `turboquant_native.Llama`; the caller closes it.
        num_pred_tokens: tokens proposed at once.
    """

    def __init__(self, llm: Any, num_pred_tokens: int = 4) -> None:
        if num_pred_tokens < 1:
            raise ValueError(f"num_pred_tokens must be positive, got {num_pred_tokens}")
        self.llm, self.num_pred_tokens = llm, num_pred_tokens

    def __call__(self, input_ids: Tokens, /, **kwargs: Any) -> Tokens:
        if len(input_ids) >= self.llm.n_ctx():
            return np.empty(0, np.intc)
        guesses: list[int] = []
        for token in self.llm.generate(input_ids.tolist(), temp=0.0):
            guesses.append(token)
            if len(guesses) == self.num_pred_tokens or len(input_ids) + len(guesses) >= self.llm.n_ctx():
                break
        return np.array(guesses, np.intc)
