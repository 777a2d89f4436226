"""How many prompt tokens a pass may take: few enough that nobody waits long for it."""

_SECONDS = 0.4  # of a pass
_BESIDE = 3.0  # passes of generation alone that the prompts' share of a pass may last: streams then slow down at most so much
_LEAST = 16  # prompt tokens of a pass beside others: fewer would waste the products' width
_LEAST_ALONE = 64
_KEEP = 0.7  # of an average, at each new measurement


class Pace:
    """Prompts alone are cut at fixed places, so that their results do not depend on the clock even in the last bit; beside others they take
    what measured speeds allow.

    Args:
        n_batch: rows of a pass at most.
        row_seconds: about how long a prompt's token takes; 0: too short to matter.
    """

    def __init__(self, n_batch: int, row_seconds: float = 0.0) -> None:
        self._n_batch, self._row, self._decode = n_batch, row_seconds, 0.0
        self._alone = n_batch
        while self._alone > _LEAST_ALONE and self._alone * row_seconds > _SECONDS:
            self._alone //= 2

    def prompt_rows(self, decoding: int, others: bool) -> int:
        """Prompt tokens for the next pass, beside so many sequences that generate; others: further requests are there."""
        if not decoding and not others:
            return self._alone
        if self._row <= 0:
            return min(self._n_batch, 2 * _LEAST) if decoding else self._n_batch
        seconds = min(_SECONDS, _BESIDE * self._decode) if decoding and self._decode > 0 else _SECONDS
        if seconds >= self._n_batch * self._row:
            return self._n_batch
        return max(min(_LEAST, self._n_batch), int(seconds / self._row) // _LEAST * _LEAST)

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
