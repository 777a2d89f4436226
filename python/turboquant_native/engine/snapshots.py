"""Snapshots of slots: where a model has recurrent layers, a slot can go back to these moments and to no others."""

import logging

from .. import _core
from .slots import Slot

logger = logging.getLogger(__name__)

SNAPSHOTS_A_SLOT = 4  # are kept of recurrent layers, of all slots together


class Snapshots:
    """What a scheduler keeps of its slots' pasts; nothing where the model has attention alone, whose slots go back to any position.

    Args:
        context: whose slots they are; the snapshots end with it.
        limit: how many there may be of all slots together, those before drafts aside; the one unused for longest goes first.

    Attributes:
        needed: whether the model has recurrent layers.
    """

    def __init__(self, context: _core.Context, limit: int) -> None:
        self._context, self._limit = context, limit
        self.needed = context.snapshot(0).memory_bytes > 0
        self._kept: list[_core.Snapshot] = []  # the one unused for longest first
        self._before_draft: dict[int, _core.Snapshot] = {}  # slot -> its moment before unverified tokens

    @property
    def memory_bytes(self) -> int:
        """Of all copies of recurrent states."""
        return sum(snapshot.memory_bytes for snapshot in [*self._kept, *self._before_draft.values()])

    def count(self, slot: Slot) -> int:
        """How many there are of a slot."""
        return sum(1 for snapshot in self._kept if snapshot.slot == slot.index)

    def take(self, slot: Slot) -> None:
        """Keeps the slot's present moment, where there is memory for it."""
        self._kept = [snapshot for snapshot in self._kept if snapshot.intact]
        if all((snapshot.slot, snapshot.positions) != (slot.index, slot.n_tokens) for snapshot in self._kept):
            taken = self._now(slot)
            self._kept += [] if taken is None else [taken]
            del self._kept[: -self._limit]

    def take_before_draft(self, slot: Slot) -> None:
        """Keeps the slot's present moment until the next draft, where there is memory for it."""
        self._before_draft.pop(slot.index, None)
        if (taken := self._now(slot)) is not None:
            self._before_draft[slot.index] = taken

    def reach(self, slot: Slot, n_tokens: int) -> int:
        """To how many of its first n_tokens the slot can go back."""
        if not self.needed or n_tokens == slot.n_tokens:
            return n_tokens
        found = self._best(slot, n_tokens)
        return found.positions if found is not None else 0

    def restore(self, source: Slot, n_tokens: int, target: Slot) -> int:
        """The target becomes what the source was after at most its first n_tokens; after how many, 0 where nothing was kept and the target
        is as it was."""
        found = self._best(source, n_tokens)
        if found is None:
            return 0
        self._context.restore(target.index, found)
        if found in self._kept:
            self._kept.remove(found)
            self._kept.append(found)
        return found.positions

    def clear(self) -> None:
        """Frees them all."""
        self._kept.clear()
        self._before_draft.clear()

    def _now(self, slot: Slot) -> _core.Snapshot | None:
        try:
            return self._context.snapshot(slot.index)
        except MemoryError as error:
            logger.warning("no memory for a snapshot of slot %d after %d tokens: %s", slot.index, slot.n_tokens, error)
            return None

    def _best(self, slot: Slot, n_tokens: int) -> _core.Snapshot | None:
        mine = [snapshot for snapshot in [*self._kept, *self._before_draft.values()] if snapshot.slot == slot.index and snapshot.intact]
        return max((found for found in mine if found.positions <= n_tokens), key=lambda found: found.positions, default=None)
