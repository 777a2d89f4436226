"""Tokens of texts of any length."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..common.progress import Progress

_PIECE = 1 << 21  # characters that are encoded at once: the tokenizer takes some 140 bytes for each


class Encoder(Protocol):
    """What encode_long() needs of a Vocabulary."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        ...


def encode_long(vocabulary: Encoder, text: str, quiet: bool = True) -> NDArray[np.int32]:
    """Token ids of a text of any length, piece by piece: beyond two million characters it is cut behind a blank line, a line or a word,
    where a token that would span the cut becomes two. quiet: show no progress."""
    parts, first = [np.empty(0, np.int32)], 0
    with Progress(len(text), "reading text", quiet or len(text) <= _PIECE, unit="characters") as progress:
        while first < len(text):
            stop = first + _PIECE
            if stop < len(text):
                cuts = (text.rfind(mark, first + _PIECE // 2, stop) + len(mark) for mark in ("\n\n", "\n", " "))
                stop = next((cut for cut in cuts if cut > first + _PIECE // 2), stop)
            parts.append(np.array(vocabulary.encode(text[first:stop]), np.int32))
            first = stop
            progress.advance_to(min(stop, len(text)))
    return np.concatenate(parts)
