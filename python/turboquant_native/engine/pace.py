"""How many prompt tokens a pass may take: few enough that nobody waits long for it, by what passes took so far."""

_ALONE = 0.4  # seconds of a pass that nobody waits for; a request that is given up frees the engine after it
_BESIDE = 3.0  # passes of generation alone that the prompts' share of a pass may last: streams then slow down at most so much
_LEAST = 16  # prompt tokens of a pass: fewer would waste the products' width
_KEEP = 0.7  # of an average, at each new measurement


class Pace:
    """Learns the speed of prompts and of generation.

    Args:
        n_batch: rows of a pass at most.
        row_seconds: a first guess of the time of a prompt's token; 0: none.
    """

    def __init__(self, n_batch: int, row_seconds: float = 0.0) -> None:
        self._n_batch, self._row, self._decode = n_batch, row_seconds, 0.0

    def prompt_rows(self, decoding: int) -> int:
        """Prompt tokens for the next pass, beside so many sequences that generate."""
        if self._row <= 0:
            return self._n_batch if not decoding else min(self._n_batch, 2 * _LEAST)
        seconds = _BESIDE * self._decode if decoding and self._decode > 0 else _ALONE
        rows = int(min(seconds, _ALONE) / self._row) // _LEAST * _LEAST
        return max(min(_LEAST, self._n_batch), min(rows, self._n_batch))

    def measured(self, prompt: int, decoding: int, seconds: float) -> None:
        """A pass of `prompt` prompt tokens beside `decoding` sequences took so long."""
        if prompt == 0:
            if decoding:
                self._decode = self._mix(self._decode, seconds)
        elif prompt >= _LEAST:
            self._row = self._mix(self._row, max(seconds - (self._decode if decoding else 0.0), 1e-9) / prompt)

    @staticmethod
    def _mix(average: float, value: float) -> float:
        return value if average <= 0 else _KEEP * average + (1 - _KEEP) * value
