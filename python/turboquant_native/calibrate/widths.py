"""Which width every matrix gets: the plan a user wrote, the least predicted loss within a budget, or a simple rule to compare with.

Where one width is given for all layers, embedding and output still get the widths that pay: a bit of theirs must save as much loss as the
same bytes would save if the layers' width changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..common.errors import ConvertError
from ..convert.architectures import PER_LAYER_TABLE
from ..convert.conversion import Options, TensorPlan, make_plan
from ..convert.sources import Source
from .allocation import Choice, allocate
from .request import Request
from .rounding import layer_of
from .sensitivity import DISTORTION, Sensitivity

WIDTHS = _core.FORMATS
OUTLIER_FRACTIONS = (0.001, 0.002, 0.004, 0.008)  # what "auto" chooses from, besides none
# What is left of the loss that noise alone predicts, since later layers correct for part of it. Not applied to embedding and output.
CORRECTED = 0.68
# Energy times token frequency overrates what outliers save in the output matrix: about this part of it is real (docs/research/quality.md).
_FREQUENCY_TRUST = 0.33
_PLANE_OVERHEAD = 400  # bytes of header, checksum and padding that one tensor of a file takes at most
_PLANES = 3


@dataclass(frozen=True)
class Decision:
    """A plan, and what the allocation expects of it where there was one.

    Attributes:
        chosen: name -> choice, of the matrices whose widths the budget decided.
        predicted_kld: the sum over the matrices in `chosen`; what fixed matrices cost is not in it.
        outlier_gains: name -> by how much the KL divergence would be higher without the matrix's outliers.
    """

    plan: list[TensorPlan]
    chosen: dict[str, Choice] = field(default_factory=dict)
    predicted_kld: float | None = None
    outlier_gains: dict[str, float] = field(default_factory=dict)


class WidthChooser:
    """Decides for one model and request."""

    def __init__(self, source: Source, options: Options, request: Request) -> None:
        self._source, self._options, self._request = source, options, request

    @property
    def chooses(self) -> bool:
        """Whether a budget decides the widths."""
        return self._request.has_budget and not self._is_written

    @property
    def _is_written(self) -> bool:
        return self._request.plan is not None and self._request.plan.exists()

    def allocatable(self) -> list[TensorPlan]:
        """Tensors whose width the budget decides: those that can be packed and that no option names."""
        free = replace(self._options, tensor_bits=(), embed_bits=None, output_bits=None, outliers=0.0)
        fixed = {tensor.name for tensor in self._asked() if self._is_named(tensor)}
        return [tensor for tensor in make_plan(self._source, free) if tensor.spec is not None and tensor.name not in fixed]

    def open_embeddings(self) -> list[TensorPlan]:
        """Embedding and output, where the layers' width is given and theirs is not."""
        if self._request.has_budget or self._is_written or self._options.bits not in WIDTHS:
            return []
        return [tensor for tensor in self.allocatable() if tensor.is_embedding]

    def _is_named(self, tensor: TensorPlan) -> bool:
        """Whether an option decides this tensor's width by itself."""
        options = self._options
        if any(re.search(pattern, tensor.name) for pattern, _ in options.tensor_bits):
            return True
        reads_last = tensor.name == "output.weight" or (tensor.is_embedding and self._source.tied)
        return tensor.is_embedding and (options.embed_bits is not None or (reads_last and options.output_bits is not None))

    def check(self) -> None:
        """ConvertError for what cannot be fulfilled: an unreadable plan, a budget below the smallest widths."""
        self.given()
        if not self.chooses:
            return
        smallest, _ = self.reach()
        counted, aside = self._counted()
        if self._request.bpw is not None and self._request.bpw * counted < 8 * (smallest - aside):
            needed = 8 * (smallest - aside) / counted
            raise ConvertError(f"--bpw {self._request.bpw}: this model takes {needed:.2f} bits per weight at its smallest widths")
        if self._request.size is not None and self._request.size < smallest:
            raise ConvertError(f"--size {self._request.size} bytes: this model's tensors take {smallest} at their smallest widths")

    def reach(self) -> tuple[int, int]:
        """Bytes of all tensors at the smallest and at the largest widths that the budget may choose, without outliers."""
        free, plan = {tensor.name: tensor for tensor in self.allocatable()}, self._asked()
        others = sum(tensor.bytes for tensor in plan if tensor.name not in free)
        smallest, largest = (others + sum(at_width(tensor, bits).bytes for tensor in free.values()) for bits in (WIDTHS[0], WIDTHS[-1]))
        return smallest, largest

    def given(self) -> list[TensorPlan]:
        """The options' widths, or those of the plan file."""
        plan = self._asked()
        if self._request.plan is not None and self._is_written:
            return _apply(plan, read_plan(self._request.plan, plan))
        return plan

    def _asked(self) -> list[TensorPlan]:
        return make_plan(self._source, self._options)

    def with_embeddings(self, sensitivity: Sensitivity) -> list[TensorPlan]:
        """The given widths, and for embedding and output those that pay beside them."""
        plan, open_tensors = self.given(), self.open_embeddings()
        price = self._price(plan, sensitivity.together or 0.0)

        def cost(tensor: TensorPlan, bits: int) -> float:
            return sensitivity.at(tensor.name, bits) + price * at_width(tensor, bits).bytes

        best = {tensor.name: min(WIDTHS, key=lambda bits: cost(tensor, bits)) for tensor in open_tensors}
        return _apply(plan, {name: Choice(bits, 0, 0.0, self._options.outliers) for name, bits in best.items()})

    def _price(self, plan: Sequence[TensorPlan], loss: float) -> float:
        """Loss a byte saves in the layers, whose loss is `loss`: the geometric mean of a step to the next wider and the next narrower."""
        bits = self._options.bits
        layers = [tensor for tensor in plan if tensor.spec is not None and not tensor.is_embedding and tensor.spec.bits == bits]
        prices = []
        for other in WIDTHS:
            if abs(WIDTHS.index(other) - WIDTHS.index(bits)) == 1:
                saved = CORRECTED * loss * (DISTORTION[other] / DISTORTION[bits] - 1)
                prices.append(
                    saved / (sum(tensor.bytes for tensor in layers) - sum(at_width(tensor, other).bytes for tensor in layers) or 1)
                )
        return float(np.exp(np.mean(np.log(np.maximum(prices, np.finfo(np.float64).tiny)))))

    # --- the allocation

    def allocate(self, sensitivity: Sensitivity, frequency: NDArray[np.float32] | None, header: int) -> Decision:
        """The least predicted loss within the budget. frequency: (n_vocab,) mean probability of every token, needed where outliers are
        sought; header: bytes of the file before its tensors."""
        plan = self._asked()
        items = {tensor.name: self._choices(tensor, sensitivity, frequency) for tensor in self.allocatable()}
        others = sum(tensor.bytes for tensor in plan if tensor.name not in items)
        chosen = allocate(items, self._budget(plan, header) - others)
        gains = {name: _gain(choice, items[name]) for name, choice in chosen.items() if choice.outliers and self._request.auto_outliers}
        return Decision(_apply(plan, chosen), chosen, sum(choice.loss for choice in chosen.values()), gains)

    def _choices(self, tensor: TensorPlan, sensitivity: Sensitivity, frequency: NDArray[np.float32] | None) -> list[Choice]:
        part = 1.0 if tensor.is_embedding else CORRECTED
        choices = []
        for fraction, left in self._outlier_gains(tensor, frequency):
            for bits in WIDTHS:
                stored = at_width(tensor, bits, fraction)
                choices.append(Choice(bits, stored.bytes, part * left * sensitivity.at(tensor.name, bits), fraction))
        return choices

    def _outlier_gains(self, tensor: TensorPlan, frequency: NDArray[np.float32] | None) -> list[tuple[float, float]]:
        """(fraction of outliers, part of the loss that is left): the loss is taken to follow the energy of the weights that stay packed; in
        the output matrix a row counts as often as its token."""
        if not self._request.auto_outliers:
            return [(self._options.outliers, 1.0)]
        energy, trust = np.square(self._source.read(tensor.name)), 1.0
        if tensor.name == "output.weight" or (tensor.is_embedding and self._source.tied):
            assert frequency is not None
            energy *= frequency[:, None]
            trust = _FREQUENCY_TRUST
        total = float(energy.sum(dtype=np.float64)) or 1.0
        largest = _largest(energy.ravel(), round(OUTLIER_FRACTIONS[-1] * energy.size))
        top = {f: float(largest[: round(f * energy.size)].sum(dtype=np.float64)) / total for f in OUTLIER_FRACTIONS}
        return [(0.0, 1.0), *((fraction, 1 - trust * part) for fraction, part in top.items())]

    def _budget(self, plan: Sequence[TensorPlan], header: int) -> int:
        """Bytes for all tensors."""
        if self._request.bpw is not None:
            counted, aside = self._counted()
            return int(self._request.bpw * counted / 8) + aside
        assert self._request.size is not None
        return self._request.size - header - sum(_PLANE_OVERHEAD * (_PLANES if tensor.spec else 1) for tensor in plan)

    def _counted(self) -> tuple[int, int]:
        """Weights that a number of bits a weight is asked for, and bytes of those that it is not: of per-layer embeddings, which stay in 16
        bit, a token reads a row."""
        table = [tensor for tensor in self._asked() if tensor.name == PER_LAYER_TABLE]
        return self._source.parameters - sum(tensor.weights for tensor in table), sum(tensor.bytes for tensor in table)

    # --- the simple rule

    def simple_rule(self, header: int) -> list[TensorPlan]:
        """One width for all, the next for as many tensors as fit, embedding, output and the ends of the stack first."""
        plan = self._asked()
        free = {tensor.name: tensor for tensor in self.allocatable()}
        spare = self._budget(plan, header) - sum(tensor.bytes for tensor in plan if tensor.name not in free)
        outliers = 0.0 if self._request.auto_outliers else self._options.outliers
        size = {bits: {name: at_width(tensor, bits, outliers).bytes for name, tensor in free.items()} for bits in WIDTHS}
        low = max((bits for bits in WIDTHS if sum(size[bits].values()) <= spare), default=WIDTHS[0])
        high = WIDTHS[min(WIDTHS.index(low) + 1, len(WIDTHS) - 1)]
        spare -= sum(size[low].values())
        depth = 1 + max((layer_of(name) or 0 for name in free), default=0)
        chosen = {name: Choice(low, 0, 0.0, outliers) for name in free}
        for name in sorted(free, key=lambda name: -1 if (layer := layer_of(name)) is None else min(layer, depth - 1 - layer)):
            if (step := size[high][name] - size[low][name]) <= spare:
                chosen[name], spare = Choice(high, 0, 0.0, outliers), spare - step
        return _apply(plan, chosen)


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The largest ones, in descending order; count < len(values)."""
    return np.sort(np.partition(values, len(values) - count - 1)[len(values) - count :])[::-1]


def _gain(chosen: Choice, choices: Sequence[Choice]) -> float:
    """How much predicted loss a choice's outliers save, compared with the same width without outliers."""
    return min(choice.loss for choice in choices if choice.bits == chosen.bits and not choice.outliers) - chosen.loss


def at_width(tensor: TensorPlan, bits: int, outliers: float = 0.0) -> TensorPlan:
    """A packed tensor at another width."""
    assert tensor.spec is not None
    return replace(tensor, spec=replace(tensor.spec, bits=bits, outliers=outliers))


def _apply(plan: Sequence[TensorPlan], chosen: dict[str, Choice]) -> list[TensorPlan]:
    return [
        at_width(tensor, chosen[tensor.name].bits, chosen[tensor.name].outliers)
        if tensor.spec is not None and tensor.name in chosen
        else tensor
        for tensor in plan
    ]


def read_plan(path: Path, plan: Sequence[TensorPlan]) -> dict[str, Choice]:
    """The widths that a plan file gives; ConvertError naming what is wrong with it."""
    try:
        stored = json.loads(path.read_text())
        chosen = {name: Choice(int(entry["bits"]), 0, 0.0, float(entry.get("outliers", 0.0))) for name, entry in stored.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConvertError(f'--plan {path}: expected {{"NAME": {{"bits": 3, "outliers": 0}}, ...}}: {error}') from None
    packable = {tensor.name for tensor in plan if tensor.spec is not None}
    for name, choice in chosen.items():
        if name not in packable:
            raise ConvertError(f"--plan {path}: the model has no matrix {name} that can be packed")
        if choice.bits not in WIDTHS:
            raise ConvertError(f"--plan {path}: {name} has {choice.bits} bits: choose among {', '.join(map(str, WIDTHS))}")
    return chosen
