"""Precision that follows the load: what slots hold, snapshots of recurrent layers and what was set aside share a number of bytes. Where
they would exceed it, snapshots go; then prefixes that no request uses are kept in fewer bits, the one unused for longest first, before any
of them is forgotten."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import _core
from .cache_types import budget_levels
from .handle import Handle
from .slots import Slot
from .snapshots import Snapshots
from .tokens import Tokens, common_prefix

_DRAFTED_ROWS = 16  # tokens of drafts that a pass may carry where several requests run
_WORTH = 16  # tokens; evaluating so few again costs less than taking them from elsewhere


@dataclass(eq=False)
class Kept:
    """A prefix outside the slots.

    Attributes:
        tokens: (n,) what it holds. state: as `_core.Context.save` wrote it.
        level: the state's place in `CacheBudget.levels`. used: when it was last used, as slots count it.
    """

    tokens: Tokens
    state: bytes
    level: int
    used: int


@dataclass
class Changes:
    """What a budget did since the beginning: snapshots dropped; prefixes kept in fewer bits, forgotten, taken up again (by type of cache);
    their tokens."""

    dropped_snapshots: int = 0
    requantized: int = 0
    evicted: int = 0
    taken_up: dict[str, int] = field(default_factory=dict)
    taken_up_tokens: dict[str, int] = field(default_factory=dict)


class CacheBudget:
    """The bytes of a scheduler's caches, and the prefixes that it keeps outside its slots.

    A slot counts what the tokens that it holds take, a kept prefix its saved state, a snapshot its copies. Everything follows from the
    order of requests and the numbers of their tokens: no clock decides.

    Args:
        budget: bytes; ValueError when one full sequence exceeds it.
        context: gives the present context, which may change; snapshots: its snapshots. four_bit_keys: whether keys may
            get so few bits.

    Attributes:
        levels: the types of cache that prefixes go through, the context's own first.
    """

    def __init__(self, budget: int, context: Callable[[], _core.Context], snapshots: Callable[[], Snapshots], four_bit_keys: bool) -> None:
        self.budget, self._context, self._snapshots = budget, context, snapshots
        self.levels = budget_levels(context().cache, four_bit_keys)
        self.kept: list[Kept] = []
        self.changes = Changes()
        least = self.bytes_of(context().n_ctx)
        if budget < least:
            raise ValueError(f"cache_budget={budget}: one sequence of {context().n_ctx} positions (n_ctx) takes {least} bytes")

    def bytes_of(self, n_tokens: int) -> int:
        """What so many tokens take in a slot."""
        return self._context().state_bytes(n_tokens) if n_tokens else 0

    def held(self, slots: Sequence[Slot]) -> int:
        """Bytes of the slots' tokens, of snapshots, and of all that is kept."""
        held = sum(self.bytes_of(slot.n_tokens) for slot in slots) + sum(len(kept.state) for kept in self.kept)
        return held + self._snapshots().memory_bytes

    def affords(self, running: Sequence[Handle], handle: Handle) -> bool:
        """Whether a request's tokens fit beside those of all that run; a request alone always does."""
        busy = sum(self.bytes_of(max(each.slot.n_tokens, len(each.work.tokens))) for each in running if each.slot is not None)
        return not running or busy + self.bytes_of(len(handle.work.tokens)) <= self.budget

    def make_room(self, handle: Handle, slot: Slot, source: Slot, slots: Sequence[Slot], now: int) -> tuple[Slot, Slot]:
        """Sees to the bytes that a request will take in its slot; returns the slot and the one whose prefix it begins with. A kept prefix
        goes into the slot where it is longer than what slots have, and what else the slot held is set aside."""
        prefix, snapshots = handle.work.tokens[: handle.work.first_row], self._snapshots()
        kept, shared = self._best(prefix, whole=snapshots.needed)
        in_slots = snapshots.reach(source, source.shared(prefix))
        if shared <= in_slots:
            kept = None
        beginning = snapshots.best(source, in_slots)  # which the request may return to
        wanted = self.bytes_of(len(handle.work.tokens))
        if kept is None and source is slot and 2 * in_slots >= slot.n_tokens > 0:  # the slot goes on
            self.fit(slots, wanted - self.bytes_of(slot.n_tokens), [slot, beginning])
            return slot, slot
        aside = self.set_aside(slot)
        if kept is None and source is slot and in_slots > 0 and not snapshots.needed:
            kept, shared = aside, in_slots
        self.fit(slots, wanted, [source, kept or beginning])
        if kept is None:
            return slot, source
        self._take_up(kept, shared, slot, now)
        return slot, slot

    def before_pass(self, shares: Sequence[tuple[Handle, int]], slots: Sequence[Slot]) -> None:
        """Room for the tokens of a pass. What runs goes on even where nothing idle is left to give way; no further request starts then."""
        held = [(handle.slot.n_tokens, count) for handle, count in shares if handle.slot is not None]
        self.fit(slots, sum(self.bytes_of(n + count) - self.bytes_of(n) for n, count in held))

    def _best(self, tokens: Tokens, whole: bool) -> tuple[Kept | None, int]:
        """The kept prefix that shares most with a sequence, and how many tokens. whole: only one of which all are shared is of use."""
        found, most = None, 0
        for kept in self.kept:
            shared = common_prefix(kept.tokens, tokens)
            if shared > most and (shared == len(kept.tokens) or not whole):
                found, most = kept, shared
        return found, most

    def set_aside(self, slot: Slot) -> Kept | None:
        """Keeps what an idle slot holds, which then holds nothing; what is kept already, or is short, is dropped: None."""
        tokens, kept = slot.tokens.copy(), None
        if not len(tokens):
            return None
        if len(tokens) >= _WORTH and not any(common_prefix(each.tokens, tokens) == len(tokens) for each in self.kept):
            kept = Kept(tokens, self._context().save(slot.index, len(tokens)), 0, slot.used)
            self.kept.append(kept)
        self._context().release(slot.index)
        self._snapshots().drop_lost()
        slot.rewind(0)
        return kept

    def _take_up(self, kept: Kept, n_tokens: int, slot: Slot, now: int) -> None:
        """An empty slot gets the first n_tokens of a kept prefix, which stays where much else would be lost with it."""
        context = self._context()
        context.load(slot.index, context.convert(kept.state, n_tokens, "auto"))
        slot.assign(kept.tokens[:n_tokens])
        name = self.levels[kept.level]
        self.changes.taken_up[name] = self.changes.taken_up.get(name, 0) + 1
        self.changes.taken_up_tokens[name] = self.changes.taken_up_tokens.get(name, 0) + n_tokens
        if 2 * n_tokens >= len(kept.tokens):
            self.kept.remove(kept)
        else:
            kept.used = now

    def fit(self, slots: Sequence[Slot], wanted: int, spared: Sequence[Slot | Kept | _core.Snapshot | None] = ()) -> bool:
        """Makes room for `wanted` bytes more; False where nothing is left that could give way. spared: these stay as they are."""
        self._snapshots().drop_lost()
        while self.held(slots) + wanted > self.budget and self._snapshots().drop_oldest(slots, spared):
            self.changes.dropped_snapshots += 1
        while self.held(slots) + wanted > self.budget:
            idle: list[Slot | Kept] = [slot for slot in slots if not slot.busy and slot.n_tokens and slot not in spared]
            idle += [kept for kept in self.kept if kept not in spared]
            if not idle:
                return False
            self._shrink(min(idle, key=lambda each: (_level(each), each.used)))
        return True

    def forget(self) -> None:
        """Drops everything that is kept."""
        self.kept.clear()

    def _shrink(self, found: Slot | Kept) -> None:
        """One step down for an idle prefix; more than one where a few tokens, in whole tiles, take no less."""
        if isinstance(found, Slot):
            aside = self.set_aside(found)
            if aside is None:
                return
            found = aside
        for level in range(found.level + 1, len(self.levels)):
            smaller = self._context().convert(found.state, len(found.tokens), self.levels[level])
            if len(smaller) < len(found.state):
                found.state, found.level = smaller, level
                self.changes.requantized += 1
                return
        self.kept.remove(found)
        self.changes.evicted += 1

    def stats(self, slots: Sequence[Slot]) -> dict[str, Any]:
        """See `Llama.cache_stats`."""
        kept = {
            name: {
                "prefixes": sum(1 for each in self.kept if each.level == level),
                "tokens": sum(len(each.tokens) for each in self.kept if each.level == level),
                "bytes": sum(len(each.state) for each in self.kept if each.level == level),
            }
            for level, name in enumerate(self.levels)
        }
        changes = {name: getattr(self.changes, name) for name in ("dropped_snapshots", "requantized", "evicted")}
        taken_up = {"taken_up": dict(self.changes.taken_up), "taken_up_tokens": dict(self.changes.taken_up_tokens)}
        return {"budget": self.budget, "bytes": self.held(slots), "kept": kept, **changes, **taken_up}


def _level(each: Slot | Kept) -> int:
    return 0 if isinstance(each, Slot) else each.level


def draft_depth(running: int) -> int | None:
    """How many tokens a draft may guess for each of so many requests that run; None: as many as it likes."""
    return None if running <= 1 else _DRAFTED_ROWS // running
