"""What a calibrated conversion measured, in figures (`OUT.quant.json`) and in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..common.progress import duration

ALLOCATED, SIMPLE_RULE = "allocated", "simple rule"  # plans
_WORDS = (
    (0.01, "hardly to be told from the original"),
    (0.1, "close to the original"),
    (0.4, "noticeable"),
    (1.0, "strong: answers often differ"),
)


def in_words(kld: float) -> str:
    """What a KL divergence in nats a token means to somebody who uses the model."""
    return next((words for limit, words in _WORDS if kld < limit), "the model is hardly usable")


@dataclass
class Report:
    """Everything measured on the way: `OUT.quant.json`."""

    settings: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)
    rounding_seconds: dict[str, float] = field(default_factory=dict)  # of one run; what an interrupted one did before is not in it
    tensors: dict[str, dict[str, Any]] = field(default_factory=dict)
    layer_kld: dict[str, float] = field(default_factory=dict)
    predicted_kld: float | None = None
    outlier_gains: dict[str, float] = field(default_factory=dict)  # predicted: what the KL divergence would be higher without them
    measured_kld: float | None = None
    outliers: dict[str, float] = field(default_factory=dict)  # of the whole file
    candidates: dict[str, float] = field(default_factory=dict)  # plan -> measured KL divergence
    kept: str = ""  # the plan of the file
    plain_kld: float | None = None  # measured: of the same widths and outliers by plain rounding
    summary: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """The file's loss and where the time went, for people."""
        times = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in self.seconds.items())
        return "\n".join([*self._loss(), *self._gains(), f"time: {times}"])

    def _loss(self) -> list[str]:
        if self.measured_kld is None:
            return []
        scale = "0.24 would be noticeable, 0.05 close to the original"
        return [f"loss: {in_words(self.measured_kld)} (KL divergence {self.measured_kld:.3g} nats a token on text of its own; {scale})"]

    def _gains(self) -> list[str]:
        """A line for each stage whose gain is known: the divergence with it and without."""
        lines = []
        if self.plain_kld is not None:
            lines.append(f"  calibrated rounding: {self.measured_kld:.4g}, by plain rounding {self.plain_kld:.4g}")
        if {ALLOCATED, SIMPLE_RULE} <= self.candidates.keys():
            allocated, simple = self.candidates[ALLOCATED], self.candidates[SIMPLE_RULE]
            kept = "the simple rule's" if self.kept == SIMPLE_RULE else "those by measured loss"
            lines.append(f"  widths by measured loss: {allocated:.4g}, by a simple rule {simple:.4g}; kept: {kept}")
        if self.outlier_gains:
            saved, share = sum(self.outlier_gains.values()), self.outliers["fraction"]
            lines.append(f"  {share:.3%} of the weights in 16 bit: predicted to save {saved:.2g} of it")
        return lines
