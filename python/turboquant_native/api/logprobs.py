"""Log-probabilities in the completion endpoint's form: parallel lists of names, offsets and numbers."""

import codecs
from collections.abc import Sequence
from typing import Any

from ..engine.generation import TokenLogprob
from ..engine.vocabulary import Vocabulary


def token_name(vocabulary: Vocabulary, token: int) -> str:
    """A token's text; bytes that are no UTF-8 show as U+FFFD."""
    return vocabulary.piece(token).decode("utf-8", "replace")


def token_key(vocabulary: Vocabulary, token: int) -> str:
    """A token's text as a key: parts of a character are told apart by their bytes, "bytes:\\xf0\\x9f", as OpenAI writes them."""
    piece = vocabulary.piece(token)
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


class Offsets:
    """Where tokens begin in the returned text, in characters.

    Args:
        echoed: the text of the prompt, where it stands before the completion. Its control tokens may be part of it, by their names.
    """

    def __init__(self, vocabulary: Vocabulary, echoed: str = "") -> None:
        self._vocabulary, self._echoed = vocabulary, echoed.encode("utf-8", "surrogatepass")
        self._covered, self._characters = 0, 0  # bytes of the echoed text that tokens have covered; whole characters so far
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def next(self, token: int) -> int:
        """The offset of the token that follows; one that continues a character begins where the character does."""
        offset = self._characters
        self._characters += len(self._decode(self._shown(token)))
        return offset

    def _shown(self, token: int) -> bytes:
        """The bytes of a token that the text shows: none of BOS, nor the space that some tokenizers put before the first word."""
        piece = self._vocabulary.piece(token)
        rest = self._echoed[self._covered :]
        if not rest:
            return b"" if self._vocabulary.is_control(token) else piece
        for shown in (piece, piece.removeprefix(b" ")):
            if rest.startswith(shown):
                self._covered += len(shown)
                return shown
        return b""


def legacy_logprobs(vocabulary: Vocabulary, entries: Sequence[TokenLogprob], offsets: Sequence[int]) -> dict[str, list[Any]]:
    """{"tokens", "text_offset", "token_logprobs", "top_logprobs"}: one entry a token each."""
    return {
        "tokens": [token_name(vocabulary, entry.token) for entry in entries],
        "text_offset": list(offsets),
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [_alternatives(vocabulary, entry) for entry in entries],
    }


def _alternatives(vocabulary: Vocabulary, entry: TokenLogprob) -> dict[str, float] | None:
    if entry.logprob is None:
        return None
    best = {token_key(vocabulary, token): logprob for token, logprob in entry.top}
    return {**best, token_key(vocabulary, entry.token): entry.logprob}
