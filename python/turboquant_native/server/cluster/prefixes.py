"""Which replica has seen the beginning of a request: it holds the keys and values of that text."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

_BLOCK = 256  # characters
_BLOCKS = 256  # of a request that are looked at: 64k characters
_ENTRIES = 1 << 16

Prefix = tuple[bytes, ...]


def prefix_of(body: bytes) -> Prefix:
    """A digest for each beginning of what a request says, in whole blocks; () where nothing is known of it."""
    try:
        fields = json.loads(body)
    except ValueError:
        return ()
    if not isinstance(fields, dict):
        return ()
    said = [fields.get(name) for name in ("model", "system", "instructions", "tools", "messages", "prompt", "input")]
    text = json.dumps(said, ensure_ascii=False, sort_keys=True)[: _BLOCK * _BLOCKS]
    digest, found = hashlib.blake2b(digest_size=16), []
    for start in range(0, len(text) - _BLOCK + 1, _BLOCK):
        digest.update(text[start : start + _BLOCK].encode("utf-8", "surrogatepass"))
        found.append(digest.copy().digest())
    return tuple(found)


class Seen:
    """The replica that answered last to each beginning; what was not used for longest is forgotten."""

    def __init__(self) -> None:
        self._last: OrderedDict[bytes, Any] = OrderedDict()

    def note(self, prefix: Prefix, replica: Hashable) -> None:
        """A replica answers to such a request."""
        for digest in prefix:
            self._last[digest] = replica
            self._last.move_to_end(digest)
        while len(self._last) > _ENTRIES:
            self._last.popitem(last=False)

    def best(self, prefix: Prefix, replicas: Sequence[Hashable]) -> Any:
        """The replica that has seen most of it, when that is at least half; None: any will do."""
        there = set(replicas)
        for length in range(len(prefix), max(1, (len(prefix) + 1) // 2) - 1, -1):
            replica = self._last.get(prefix[length - 1])
            if replica in there:
                return replica
        return None
