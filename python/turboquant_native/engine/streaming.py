"""From token pieces to text that may be shown: whole characters only, nothing of a stop string."""

import codecs
from collections.abc import Sequence


def undecided_length(text: str, markers: Sequence[str]) -> int:
    """Length of the longest end of a text that may still become one of the markers."""
    longest = max((len(marker) - 1 for marker in markers), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        suffix = text[-length:]
        if any(len(marker) > length and marker.startswith(suffix) for marker in markers):
            return length
    return 0


class TextStream:
    """Collects the bytes of generated tokens and gives out text as soon as it is certain.

    Held back are the bytes of an unfinished character and the longest end that may still become a stop string. Bytes that cannot become
    UTF-8 turn into U+FFFD.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._stop = [text for text in stop if text]
        self._held = ""
        self.stopped_by: str | None = None

    def push(self, piece: bytes) -> str:
        """Takes the next piece; returns text that is now final. After a stop string `stopped_by` is set and nothing more comes out."""
        if self.stopped_by is not None:
            return ""
        self._held += self._decode(piece)
        hits = [(position, text) for text in self._stop if (position := self._held.find(text)) >= 0]
        if hits:
            position, self.stopped_by = min(hits, key=lambda hit: (hit[0], -len(hit[1])))
            return self._release(position, drop_rest=True)
        return self._release(len(self._held) - undecided_length(self._held, self._stop))

    def finish(self) -> str:
        """The text held back for a stop string that never came. An unfinished character is dropped."""
        return self._release(len(self._held))

    def _release(self, count: int, drop_rest: bool = False) -> str:
        text, self._held = self._held[:count], "" if drop_rest else self._held[count:]
        return text
