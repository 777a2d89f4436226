"""A model's vocabulary as llguidance sees it: the bytes of each token, and how a text is written with them."""

from functools import lru_cache
from typing import Any

from .vocabulary import Vocabulary


class GrammarTokens:
    """What llguidance's TokenizerWrapper asks of a tokenizer.

    llguidance writes text that a grammar leaves no choice in as the tokenizer would. Read from tokenizer.json it would see the name of a
    control token in such a text as that token, which no text may contain. Here such a name is text.

    Attributes:
        tokens: the bytes of each. special_token_ids: those that only their own name in a grammar can demand.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.eos_token_id, self.bos_token_id = min(vocabulary.end_tokens, default=0), None
        self.tokens = [vocabulary.piece(token) for token in range(vocabulary.n_vocab)]
        self.special_token_ids = [token for token in range(vocabulary.n_vocab) if vocabulary.is_control(token)]
        special = set(self.special_token_ids)
        self._ids = {piece: token for token, piece in enumerate(self.tokens) if piece and token not in special}
        self._longest = max(map(len, self._ids), default=0)
        opening = vocabulary.encode("a")
        self._adds_space = bool(opening) and vocabulary.piece(opening[0]).startswith(b" ")

    def __call__(self, text: bytes | str) -> list[int]:
        """Tokens of a text that stands within another one."""
        wanted = text if isinstance(text, bytes) else text.encode()
        try:
            ids = self._within(wanted)
        except ValueError:  # half a character
            return self._greedy(wanted)
        exact = all(token < len(self.tokens) for token in ids) and b"".join(self.tokens[token] for token in ids) == wanted
        return ids if exact else self._greedy(wanted)

    def _within(self, text: bytes) -> list[int]:
        """SentencePiece puts a space before a text: here before a character that is a token of its own, and goes with it."""
        if not self._adds_space:
            return self._vocabulary.encode(text)
        ids = self._vocabulary.encode(b"\x02" + text)
        start = next((i for i, token in enumerate(ids) if self._vocabulary.piece(token).endswith(b"\x02")), -1)
        return ids[start + 1 :]

    def _greedy(self, text: bytes) -> list[int]:
        ids, at = [], 0
        while at < len(text):
            ends = range(min(len(text), at + self._longest), at, -1)
            end = next((end for end in ends if text[at:end] in self._ids), None)
            if end is None:
                break
            ids.append(self._ids[text[at:end]])
            at = end
        return ids


@lru_cache(maxsize=4)
def grammar_tokenizer(vocabulary: Vocabulary) -> Any:
    """llguidance's LLTokenizer of a vocabulary; building it takes some tenths of a second."""
    import llguidance

    wrapper = llguidance.TokenizerWrapper(GrammarTokens(vocabulary))
    return llguidance.LLTokenizer(wrapper, n_vocab=vocabulary.n_vocab, eos_token=sorted(vocabulary.end_tokens))
