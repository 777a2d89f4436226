"""Which tokens each slot of a context holds, and which slot serves a new request best."""

from collections.abc import Callable, Sequence

import numpy as np

from .tokens import Tokens, common_prefix


class Slot:
    """One sequence's place in a context's cache.

    Attributes:
        index: its number in the context.
        n_tokens: tokens whose keys and values are there.
        busy: whether a request has it.
        used: when it was last used; larger is later.
    """

    def __init__(self, index: int, n_ctx: int) -> None:
        self.index, self.n_tokens, self.busy, self.used = index, 0, False, 0
        self._tokens = np.zeros(n_ctx, np.intc)

    @property
    def tokens(self) -> Tokens:
        """The tokens it holds (a view)."""
        return self._tokens[: self.n_tokens]

    def shared(self, tokens: Tokens) -> int:
        """How many leading tokens of a sequence it holds."""
        return common_prefix(self.tokens, tokens)

    def rewind(self, n_tokens: int) -> None:
        """Forgets everything from position n_tokens on."""
        self.n_tokens = min(self.n_tokens, n_tokens)

    def append(self, new: Tokens) -> None:
        """Notes tokens that were evaluated after those it holds."""
        self._tokens[self.n_tokens : self.n_tokens + len(new)] = new
        self.n_tokens += len(new)

    def assign(self, tokens: Tokens) -> None:
        """Notes that it now holds exactly these."""
        self._tokens[: len(tokens)] = tokens
        self.n_tokens = len(tokens)


def choose(slots: Sequence[Slot], tokens: Tokens, reach: Callable[[Slot, int], int] = lambda slot, n: n) -> tuple[Slot, Slot] | None:
    """(target, source): the free slot for a sequence, and the slot whose prefix it should begin with (often the same); None: all are busy.

    A free slot that already holds the prefix is taken when little else would be lost with it; otherwise the one unused for longest, and the
    prefix is to be copied, so that another conversation with the same beginning keeps its cache. reach: of so many first tokens of a slot,
    how many it can go back to.
    """
    free = [slot for slot in slots if not slot.busy]
    if not free:
        return None
    shared = {slot.index: reach(slot, slot.shared(tokens)) for slot in slots}
    source = max(slots, key=lambda slot: (shared[slot.index], not slot.busy, slot.used))
    if not source.busy and 2 * shared[source.index] >= source.n_tokens > 0:
        return source, source
    target = min(free, key=lambda slot: (slot.n_tokens > 0, slot.used))
    return target, source if shared[source.index] > shared[target.index] else target
