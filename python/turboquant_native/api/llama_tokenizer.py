"""`tokenize` and `detokenize` of a `Llama` as an object of their own, for callers that expect a tokenizer."""

from collections.abc import Sequence
from typing import Protocol


class Tokenizes(Protocol):
    """What has `Llama`'s two methods."""

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]: ...

    def detokenize(self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False) -> bytes: ...


class LlamaTokenizer:
    """A model's tokenizer, as text."""

    def __init__(self, llama: Tokenizes) -> None:
        self._llama = llama

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Token ids of a UTF-8 text."""
        return self._llama.tokenize(text, add_bos, special)

    def detokenize(self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False) -> bytes:
        """Bytes of tokens."""
        return self._llama.detokenize(tokens, prev_tokens, special)

    def encode(self, text: str, add_bos: bool = True, special: bool = True) -> list[int]:
        """Token ids of a text."""
        return self.tokenize(text.encode(), add_bos, special)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens; an unfinished character at either end is dropped."""
        return self.detokenize(tokens).decode("utf-8", "ignore")
