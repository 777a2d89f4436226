"""Saved states: of one moment (`LlamaState`), and of many prompts (`LlamaRAMCache`)."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..engine.tokens import common_prefix


@dataclass(frozen=True)
class LlamaState:
    """A moment of an engine: `Llama.load_state` continues from it, also in another process with the same model.

    Attributes:
        input_ids: (n_tokens,) tokens in the cache.
        llama_state: keys and values, in the engine's own form.
        logits: (n_vocab,) after the last token, None when nothing was evaluated.
        seed: the seed that was set.
        rows: (n_tokens, n_vocab) logits after each token, where `logits_all` kept them.
    """

    input_ids: NDArray[np.intc]
    llama_state: bytes
    logits: NDArray[np.float32] | None
    seed: int
    rows: NDArray[np.float32] | None = None

    @property
    def n_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def llama_state_size(self) -> int:
        """Bytes of keys and values."""
        return len(self.llama_state)


class LlamaRAMCache:
    """States of finished completions, the least recently used dropped beyond `capacity_bytes`. Set it with `Llama.set_cache`."""

    def __init__(self, capacity_bytes: int = 2 << 30) -> None:
        self.capacity_bytes = capacity_bytes
        self._states: OrderedDict[tuple[int, ...], LlamaState] = OrderedDict()

    @property
    def cache_size(self) -> int:
        """Bytes held."""
        return sum(state.llama_state_size for state in self._states.values())

    def _longest(self, key: Sequence[int]) -> tuple[int, ...] | None:
        wanted = np.asarray(key, np.intc)
        shared = {known: common_prefix(state.input_ids, wanted) for known, state in self._states.items()}
        best = max(shared, key=lambda known: shared[known], default=None)
        return best if best is not None and shared[best] > 0 else None

    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        """The state that shares the longest prefix with these tokens; KeyError when none shares any."""
        best = self._longest(key)
        if best is None:
            raise KeyError("no state shares a prefix with these tokens")
        self._states.move_to_end(best)
        return self._states[best]

    def __contains__(self, key: Sequence[int]) -> bool:
        return self._longest(key) is not None

    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        self._states[tuple(key)] = value
        self._states.move_to_end(tuple(key))
        while self.cache_size > self.capacity_bytes and self._states:
            self._states.popitem(last=False)
