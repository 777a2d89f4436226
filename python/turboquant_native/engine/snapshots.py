"""Snapshots of slots: where a model has recurrent layers, a slot can go back to these moments and to no others."""

import logging
from collections.abc import Callable, Container, Sequence

from .. import _core
from .slots import Slot

logger = logging.getLogger(__name__)

SNAPSHOTS_A_SLOT = 4  # are kept of recurrent layers, of all slots together


class Snapshots:
    """What a scheduler keeps of its slots' pasts; nothing where the model has attention alone, whose slots go back to any position.

    Args:
        context: whose slots they are; the snapshots end with it.
        limit: how many there may be of all slots together, those before drafts aside; the one unused for longest goes first.
        room: asked before each copy for so many bytes; where it says False, none is kept, except before drafts.

    Attributes:
        needed: whether the model has recurrent layers.
    """

    def __init__(self, context: _core.Context, limit: int, room: Callable[[int], bool] = lambda n_bytes: True) -> None:
        self._context, self._limit, self._room = context, limit, room
        self._bytes_each = context.snapshot(0).memory_bytes
        self.needed = self._bytes_each > 0
        self._kept: list[_core.Snapshot] = []  # the one unused for longest first
        self._before_draft: dict[int, _core.Snapshot] = {}  # slot -> its moment before unverified tokens

    @property
    def memory_bytes(self) -> int:
        """Of all copies of recurrent states."""
        return sum(snapshot.memory_bytes for snapshot in [*self._kept, *self._before_draft.values()])

    def __len__(self) -> int:
        return len(self._kept) + len(self._before_draft)

    def count(self, slot: Slot) -> int:
        """How many there are of a slot."""
        return sum(1 for snapshot in self._kept if snapshot.slot == slot.index)

    def take(self, slot: Slot) -> None:
        """Keeps the slot's present moment, where there is memory for it."""
        self.drop_lost()
        if any((snapshot.slot, snapshot.positions) == (slot.index, slot.n_tokens) for snapshot in self._kept):
            return
        while len(self._kept) >= self._limit:
            self._kept.pop(0)
        if self._room(self._bytes_each) and (taken := self._now(slot)) is not None:
            self._kept.append(taken)

    def take_before_draft(self, slot: Slot) -> None:
        """Keeps the slot's present moment until the next draft, where there is memory for it."""
        self._before_draft.pop(slot.index, None)
        self._room(self._bytes_each)
        if (taken := self._now(slot)) is not None:
            self._before_draft[slot.index] = taken

    def reach(self, slot: Slot, n_tokens: int) -> int:
        """To how many of its first n_tokens the slot can go back."""
        if not self.needed or n_tokens == slot.n_tokens:
            return n_tokens
        found = self.best(slot, n_tokens)
        return found.positions if found is not None else 0

    def best(self, slot: Slot, n_tokens: int) -> _core.Snapshot | None:
        """The latest of a slot's snapshots with at most n_tokens positions."""
        mine = [snapshot for snapshot in [*self._kept, *self._before_draft.values()] if snapshot.slot == slot.index and snapshot.intact]
        return max((found for found in mine if found.positions <= n_tokens), key=lambda found: found.positions, default=None)

    def restore(self, source: Slot, n_tokens: int, target: Slot) -> int:
        """The target becomes what the source was after at most its first n_tokens; after how many, 0 where nothing was kept and the target
        is as it was."""
        found = self.best(source, n_tokens)
        if found is None:
            return 0
        self._context.restore(target.index, found)
        if found in self._kept:
            self._kept.remove(found)
            self._kept.append(found)
        return found.positions

    def drop_lost(self, slots: Container[int] = ()) -> None:
        """Frees those that nothing can return to any more, and all of some slots (their numbers)."""
        self._kept = [snapshot for snapshot in self._kept if snapshot.intact and snapshot.slot not in slots]
        self._before_draft = {index: each for index, each in self._before_draft.items() if each.intact and index not in slots}

    def drop_oldest(self, slots: Sequence[Slot], spared: Container[object] = ()) -> bool:
        """Frees the one unused for longest, at last those before the drafts of slots that are idle now; False where none is left."""
        found = next((snapshot for snapshot in self._kept if snapshot not in spared), None)
        if found is not None:
            self._kept.remove(found)
            return True
        idle = (slot.index for slot in slots if not slot.busy)
        index = next((index for index in idle if index in self._before_draft and self._before_draft[index] not in spared), None)
        return index is not None and self._before_draft.pop(index) is not None

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
