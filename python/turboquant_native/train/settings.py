"""What a user may ask of tuning. Knows nothing of PyTorch, so that commands can declare their options without it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..common.errors import ConvertError


@dataclass(frozen=True)
class Settings:
    """How a model is tuned.

    Attributes:
        tokens: that pass in all.
        text_tokens: sampled from the teacher; None: a quarter of `tokens`, at most 4 million.
        real_share: of real text in a batch.
        calib: text file or folder; None: the standard library's documentation and sources.
        seq_len: tokens of a window.
        windows: of one step.
        rate: the learning rate, relative to what learns.
        code_rate: of the codes' latents, relative to the codes' magnitude; 0: codes stay.
        code_share: of all tiles, that are encoded anew at a time.
        code_steps: between two such times.
        dither: half the width of the noise that is added to what is encoded, in steps of the codes.
        seed: of text, order and noise.
    """

    tokens: int = 16_000_000
    text_tokens: int | None = None
    real_share: float = 0.125
    calib: Path | None = None
    seq_len: int = 512
    windows: int = 16
    rate: float = 2e-3
    code_rate: float = 0.0
    code_share: float = 0.01
    code_steps: int = 20
    dither: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for option, value, least in (
            ("--tokens", self.tokens, self.seq_len * self.windows),
            ("--text-tokens", self.sampled_windows * self.seq_len, 1),
            ("--windows", self.windows, 1),
            ("--seq-len", self.seq_len, 8),
        ):
            if value < least:
                raise ConvertError(f"{option} {value}: give {least} or more")
        if not 0 <= self.real_share <= 1:
            raise ConvertError(f"--real-share {self.real_share}: give a fraction from 0 to 1")
        if not 0 < self.rate <= 1:
            raise ConvertError(f"--rate {self.rate}: give a number above 0 and at most 1")

    @property
    def steps(self) -> int:
        """Of the optimizer."""
        return self.tokens // (self.seq_len * self.windows)

    @property
    def last_move(self) -> int:
        """The step from which on codes stay, so that the rest settles on them."""
        return self.steps * 9 // 10 if self.code_rate else 0

    @property
    def sampled_windows(self) -> int:
        """Of text that the teacher writes."""
        tokens = min(self.tokens // 4, 4_000_000) if self.text_tokens is None else self.text_tokens
        return max(1, tokens // self.seq_len)
