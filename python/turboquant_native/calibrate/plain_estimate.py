"""What plain rounding will take: time, by a probe of this machine, memory and disk."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from .. import _core
from ..common.errors import ConvertError
from ..common.memory import available_memory
from ..convert.conversion import TensorPlan
from ..convert.quantize import MatrixSpec, quantize_matrix, rotation_seed
from .estimate import Estimate, Stage, seconds_of, size_text

_BASE_MEMORY = 50e6  # of Python and its libraries, without those of calibration
_COPIES = 3  # of the largest tensor in float32: as read, rotated, and what encoding holds


def plain_estimate(plan: Sequence[TensorPlan], threads: int = 0, device: str = "cpu") -> Estimate:
    """Of a conversion that rounds every weight for itself, as `plan` says. Half a second of probing, which a GPU may be
    too large for: its time was never compared."""
    packed = [(tensor.weights, tensor.spec.bits) for tensor in plan if tensor.spec is not None]
    seconds_of_a_weight = {bits: _seconds_of_a_weight(bits, threads, device) for bits in {bits for _, bits in packed}}
    seconds = sum(weights * seconds_of_a_weight[bits] for weights, bits in packed)
    return Estimate([Stage("converting", seconds, plain_memory(plan), 2.0 * sum(tensor.bytes for tensor in plan))])


def plain_memory(plan: Sequence[TensorPlan]) -> float:
    """Bytes: one tensor after the other is held."""
    return _BASE_MEMORY + _COPIES * 4.0 * max(tensor.weights for tensor in plan)


def check_memory(plan: Sequence[TensorPlan]) -> None:
    """ConvertError where memory cannot hold the largest tensor while it is rounded."""
    if (needed := plain_memory(plan)) > (available := available_memory()):
        largest = max(plan, key=lambda tensor: tensor.weights)
        raise ConvertError(
            f"the conversion needs {size_text(needed)} of memory, most of it for {largest.name}; {size_text(available)} are free: "
            f"end other programs, or convert on a machine with more"
        )


def _seconds_of_a_weight(bits: int, threads: int, device: str) -> float:
    threads = threads or _core.cpu_count()
    w = np.random.default_rng(0).standard_normal((128 * threads, 512), dtype=np.float32)
    work = partial(quantize_matrix, w, MatrixSpec(bits, rotation_seed("probe", 0)), threads=threads, device=device)
    return seconds_of(work, threads if device == "cpu" else None) / w.size
