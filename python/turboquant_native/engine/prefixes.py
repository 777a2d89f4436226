"""Requests that start together share only what a slot holds already: what several of them begin with is evaluated before they start."""

from collections.abc import Sequence
from itertools import pairwise

from .engine import Engine
from .tokens import Tokens, common_prefix

_WORTH = 8  # tokens; a shorter common beginning costs less than a pass


def share(engine: Engine, sequences: Sequence[Tokens]) -> None:
    """Makes slots for the sequences, as far as memory allows, and puts their common beginnings there."""
    if len(sequences) < 2:
        return
    prefixes = common_beginnings(sequences)
    engine.scheduler.reserve(min(len(sequences), engine.scheduler.max_slots))
    for prefix in prefixes:
        engine.evaluate(prefix, 0)


def common_beginnings(sequences: Sequence[Tokens]) -> list[Tokens]:
    """What two or more sequences begin with, the shortest first: each goes on from one before it, or begins anew."""
    ordered = sorted(sequences, key=lambda tokens: tokens.tolist())
    found: dict[tuple[int, ...], Tokens] = {}
    for left, right in pairwise(ordered):
        length = common_prefix(left, right)
        if length >= _WORTH:
            found[tuple(left[:length].tolist())] = left[:length]
    return sorted(found.values(), key=len)
