"""What a user may ask of tuning. Knows nothing of PyTorch, so that commands can declare their options without it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..common.errors import ConvertError

_MOST_WINDOWS = 65536  # of real text that are kept in memory


@dataclass(frozen=True)
class Settings:
    """How a model is tuned.

    Attributes:
        tokens: that pass in all.
        text_tokens: sampled from the teacher; None: a quarter of `tokens`, at most 4 million.
        real_share: of real text in a batch; None: three quarters of `calib`, where that is given, else a quarter.
        calib: text file or folder; None: the standard library's documentation and sources.
        seq_len: tokens of a window.
        windows: of one step.
        rate: the learning rate, relative to what learns.
        codes: choose the codes again, group by group (`progressive.py`), which takes 16 bytes a weight; None: of models up to a billion
            weights, where the packed matrices have up to 3.2 bits on average.
        free_rate: the learning rate of weights that are yet to be rounded, relative to their magnitude.
        code_part: of the steps, in which codes are chosen.
        seed: of text and order.
    """

    tokens: int = 8_000_000
    text_tokens: int | None = None
    real_share: float | None = None
    calib: Path | None = None
    seq_len: int = 512
    windows: int = 16
    rate: float = 2e-3
    codes: bool | None = None
    free_rate: float = 2e-3
    code_part: float = 0.85
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {
            "--tokens": (self.tokens, self.seq_len * self.windows),
            "--text-tokens": (self.sampled_windows * self.seq_len, 1),
            "--windows": (self.windows, 1),
            "--seq-len": (self.seq_len, 8),
        }
        for option, (count, least) in counts.items():
            if count < least:
                raise ConvertError(f"{option} {count}: give {least} or more")
        if not 0 <= self.share_of_real_text <= 1:
            raise ConvertError(f"--real-share {self.real_share}: give a fraction from 0 to 1")
        if not 0 < self.code_part < 1:
            raise ConvertError(f"--code-part {self.code_part}: give a fraction between 0 and 1")
        for option, rate in (("--rate", self.rate), ("--free-rate", self.free_rate)):
            if not 0 < rate <= 1:
                raise ConvertError(f"{option} {rate}: give a number above 0 and at most 1")

    @property
    def steps(self) -> int:
        """Of the optimizer."""
        return self.tokens // (self.seq_len * self.windows)

    @property
    def share_of_real_text(self) -> float:
        """Of a batch."""
        if self.real_share is not None:
            return self.real_share
        return 0.25 if self.calib is None else 0.75

    @property
    def real_windows(self) -> int:
        """Of real text, so that none of it comes twice where there is enough."""
        wanted = self.share_of_real_text * self.steps * self.windows
        return max(1, min(round(wanted), _MOST_WINDOWS) if self.calib is not None else self.sampled_windows // 8)

    @property
    def sampled_windows(self) -> int:
        """Of text that the teacher writes."""
        tokens = min(self.tokens // 4, 4_000_000) if self.text_tokens is None else self.text_tokens
        return max(1, tokens // self.seq_len)
