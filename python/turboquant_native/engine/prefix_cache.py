"""What one slot of the engine's cache holds, so that only tokens it does not share with a request are evaluated."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.intc]


def common_prefix(a: Tokens, b: Tokens) -> int:
    """Number of leading tokens that two sequences share."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if different.size else length


def check_tokens(tokens: Sequence[int] | Tokens, n_vocab: int) -> Tokens:
    """Tokens as an int array; TypeError for what is no integer, ValueError names the first one outside [0, n_vocab)."""
    ids = np.asarray(tokens)
    if ids.ndim != 1:
        raise ValueError(f"tokens must be one-dimensional, got shape {ids.shape}")
    if ids.size and ids.dtype.kind not in "iu":
        raise TypeError(f"tokens must be integers, got {ids.tolist()[0]!r} at position 0")
    outside = np.flatnonzero((ids < 0) | (ids >= n_vocab))
    if outside.size:
        raise ValueError(f"token {int(ids[outside[0]])} at position {int(outside[0])} is outside [0, {n_vocab})")
    return np.ascontiguousarray(ids, dtype=np.intc)


class PrefixCache:
    """Slot 0 of a context. Callers hold the lock of the engine while they use it.

    Args:
        context: a `_core.Context`.
        keep_logits: keep every token's logits in `rows` (n_vocab floats a token).
    """

    def __init__(self, context: Any, keep_logits: bool = False) -> None:
        self._context, self.keeps_logits = context, keep_logits
        self._tokens = np.zeros(context.n_ctx, np.intc)
        self.n_tokens = 0
        self.evaluated = 0  # tokens evaluated since the beginning, shared prefixes not counted
        self._last_logits: NDArray[np.float32] | None = None
        self._unread = False  # the context still holds the last logits
        self.rows: list[NDArray[np.float32]] = []
        self.user: object = None  # who evaluated last

    @property
    def tokens(self) -> Tokens:
        """Tokens whose keys and values are in the cache (a view)."""
        return self._tokens[: self.n_tokens]

    @property
    def last_logits(self) -> NDArray[np.float32] | None:
        """Logits after the last evaluated token, (n_vocab,)."""
        if self._unread:
            self._last_logits, self._unread = self._context.read_logits(), False
        return self._last_logits

    def truncate(self, n_tokens: int) -> None:
        """Forgets everything from position n_tokens on."""
        if n_tokens < self.n_tokens:
            self.n_tokens = n_tokens
            self._forget_logits()
            del self.rows[n_tokens:]

    def _forget_logits(self) -> None:
        self._last_logits, self._unread = None, False

    def best_after(self, tokens: Tokens, user: object = None) -> NDArray[np.void]:
        """The best tokens after a sequence, as `_core.Context.forward_best` gives them; the cache then holds exactly that sequence."""
        self._share(tokens, 1, user)
        new = tokens[self.n_tokens :]
        self._forget_logits()
        best: NDArray[np.void] = self._context.eval_best(new, self.n_tokens)
        self._hold(new)
        self._unread = True
        return best

    def _share(self, tokens: Tokens, rows: int, user: object) -> int:
        """Keeps what the cache shares with a sequence before its last `rows` tokens; returns where those begin."""
        self.user = user
        first_row = len(tokens) - rows
        if first_row < 0 or rows < 1:
            raise ValueError(f"cannot give logits of {rows} positions of {len(tokens)} tokens")
        if len(tokens) > len(self._tokens):
            raise ValueError(f"{len(tokens)} tokens exceed the context of {len(self._tokens)} (n_ctx)")
        self.truncate(min(common_prefix(self.tokens, tokens), first_row))
        return first_row

    def _hold(self, new: Tokens) -> None:
        start = self.n_tokens
        self._tokens[start : start + len(new)] = new
        self.n_tokens = start + len(new)
        self.evaluated += len(new)

    def logits_after(self, tokens: Tokens, rows: int = 1, user: object = None) -> NDArray[np.float32]:
        """Logits (rows, n_vocab) after each of the last `rows` tokens of a sequence; the cache then holds exactly that sequence."""
        first_row = self._share(tokens, rows, user)
        if self.keeps_logits:
            self.rows += list(self._append(tokens[self.n_tokens :], "all"))
            return np.stack(self.rows[first_row:])
        if rows == 1:
            return self._append(tokens[self.n_tokens :], "last").reshape(1, -1)
        if self.n_tokens < first_row:
            self._append(tokens[self.n_tokens : first_row], "none")
        return self._append(tokens[first_row:], "all")

    def _append(self, new: Tokens, logits: str) -> NDArray[np.float32]:
        self._forget_logits()
        result: NDArray[np.float32] = self._context.eval(new, self.n_tokens, 0, logits)
        self._hold(new)
        if logits != "none":
            self._last_logits = result if logits == "last" else result[-1]
        return result

    def save(self) -> bytes:
        """The cache as bytes, for `restore`."""
        return bytes(self._context.save(0, self.n_tokens))

    def restore(self, state: bytes, tokens: Tokens, last_logits: NDArray[np.float32] | None) -> None:
        """Puts a saved cache back, together with the tokens it belongs to."""
        self.user = None
        if len(tokens) > len(self._tokens):
            raise ValueError(f"the state holds {len(tokens)} tokens, the context only {len(self._tokens)} (n_ctx)")
        self.truncate(0)
        self._context.load(0, state)
        self._tokens[: len(tokens)] = tokens
        self.n_tokens, self._last_logits = len(tokens), last_logits
