"""What a user may ask of a calibrated conversion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..common.errors import ConvertError

CACHE_STATISTICS = ("none", "means", "balances", "both")  # of keys: key_statistics.py
HESSIANS = ("activations", "end-loss")  # all alike; by the gradient of the model's loss


@dataclass(frozen=True)
class Effort:
    """How much work goes into a file.

    Attributes:
        windows: of the calibration text.
        sensitivity_windows: how many of them the sensitivities' Hessians see.
        verify: make the file of a simple rule too, keep that where it measures clearly better, and measure plain rounding beside.
        seq_len: tokens of a window, at most.
        probes: windows of held-out text on which losses are measured.
        sensitivity_probes: how many of them the sensitivities are measured on.
        adjacent: layers whose sensitivity is measured together.
        samples_at_8_bits: draw the text from the model rounded to 8 bits.
    """

    windows: int
    sensitivity_windows: int
    verify: bool = False
    seq_len: int = 512
    probes: int = 8
    sensitivity_probes: int = 8
    adjacent: int = 1
    samples_at_8_bits: bool = False


EFFORTS = {
    "fast": Effort(21, 6, probes=4, sensitivity_probes=4, adjacent=2, samples_at_8_bits=True),
    "normal": Effort(64, 24, verify=True),
    "max": Effort(256, 64, verify=True),
}


@dataclass(frozen=True)
class Request:
    """What the user asked of a calibrated conversion.

    Attributes:
        bpw: bits per weight of all tensors together; None: no such budget.
        size: bytes of the file; None: no such budget. Without either the widths are the options' own.
        plan: file with the widths: read where it exists, written where not.
        calib: text file or folder; None: the offline mix.
        effort: a key of EFFORTS.
        auto_outliers: let the allocation keep outliers where they pay.
        seq_len: tokens of a calibration window, at most.
        hessian: a key of HESSIANS: what decides how much the calibration tokens count.
        cache_statistics: one of CACHE_STATISTICS: what the file says of its layers' keys, for caches in codes.
        cache: folder that keeps reference, text and sensitivities for the next file of the model; None: they go with the rest.
        tuning: fields of calibrate.Settings in place of the defaults, for experiments.
    """

    bpw: float | None = None
    size: int | None = None
    plan: Path | None = None
    calib: Path | None = None
    effort: str = "normal"
    auto_outliers: bool = True
    seq_len: int = 512
    hessian: str = "activations"
    cache_statistics: str = "both"
    cache: Path | None = None
    tuning: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.effort not in EFFORTS:
            raise ConvertError(f"--effort {self.effort}: choose among {', '.join(EFFORTS)}")
        if self.hessian not in HESSIANS:
            raise ConvertError(f"--hessian {self.hessian}: choose among {', '.join(HESSIANS)}")
        if self.cache_statistics not in CACHE_STATISTICS:
            raise ConvertError(f"--cache-statistics {self.cache_statistics}: choose among {', '.join(CACHE_STATISTICS)}")
        if self.bpw is not None and self.size is not None:
            raise ConvertError("--bpw and --size: give one of them")
        if self.bpw is not None and not 0 < self.bpw <= 32:
            raise ConvertError(f"--bpw {self.bpw}: give bits per weight above 0 and at most 32, for example 2.5")

    @property
    def has_budget(self) -> bool:
        """Whether a size is given in place of widths."""
        return self.bpw is not None or self.size is not None

    @property
    def work(self) -> Effort:
        """What `effort` stands for."""
        return EFFORTS[self.effort]
