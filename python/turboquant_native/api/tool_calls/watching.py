"""Calls seen from inside the engine, while their tokens are drawn."""

import codecs
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ...engine.vocabulary import Vocabulary


class TextOfTokens:
    """The text of generated tokens as a reader of answers sees it: whole characters, and control tokens only where they are shown."""

    def __init__(self, vocabulary: Vocabulary, shown_tokens: frozenset[int]) -> None:
        self._vocabulary, self._shown = vocabulary, shown_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, tokens: NDArray[np.intc]) -> str:
        """The text that these tokens add."""
        visible = (int(token) for token in tokens if not self._vocabulary.is_control(int(token)) or int(token) in self._shown)
        return self._decoder.decode(b"".join(self._vocabulary.piece(token) for token in visible))


class EndsWhen:
    """A stopping criterion on the answer's text.

    Args:
        push: takes the text that has come; True ends the answer.
    """

    def __init__(self, push: Callable[[str], bool], text: TextOfTokens, n_prompt: int) -> None:
        self._push, self._text, self._seen = push, text, n_prompt

    def __call__(self, input_ids: NDArray[np.intc], logits: NDArray[np.float32]) -> bool:
        new, self._seen = input_ids[self._seen :], len(input_ids)
        return self._push(self._text.push(new))
