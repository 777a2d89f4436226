"""Which devices run a model's layers."""

import logging
from collections.abc import Sequence

logger = logging.getLogger(__name__)


def device(n_gpu_layers: int, model_path: str, main_gpu: int = 0, tensor_split: Sequence[float] | None = None) -> str:
    """The device that `n_gpu_layers` asks for: any GPU that works, for all layers (-1) or the last ones, else the CPU with a warning.

    tensor_split: shares of the GPUs 0, 1, ... in these layers; None: all on main_gpu.
    """
    if n_gpu_layers == 0:
        return "cpu"
    from .. import _core

    states = _core.backends()
    for name in ("cuda", "metal"):
        if states.get(name, "").startswith("available"):
            metadata = _core.GgufFile(model_path).metadata
            n_layers = int(metadata[f"{metadata['general.architecture']}.block_count"])
            return device_parts(name, n_gpu_layers, n_layers, main_gpu, tensor_split)
    reasons = "; ".join(f"{name}: {state}" for name, state in states.items() if name != "cpu")
    logger.warning("n_gpu_layers=%d: no GPU can be used, running on the CPU (%s)", n_gpu_layers, reasons)
    return "cpu"


def device_parts(name: str, n_gpu_layers: int, n_layers: int, main_gpu: int = 0, tensor_split: Sequence[float] | None = None) -> str:
    """The core's description of the devices, such as "cpu*10,cuda:0*12,cuda:1*8"; more layers than there are mean all."""
    on_gpu = n_layers if n_gpu_layers < 0 else min(n_gpu_layers, n_layers)
    shares = list(tensor_split) if tensor_split else [0.0] * main_gpu + [1.0]
    if min(shares) < 0 or sum(shares) <= 0:
        raise ValueError(f"tensor_split={shares} must have shares of at least 0 and one above")
    ends = [round(on_gpu * sum(shares[: i + 1]) / sum(shares)) for i in range(len(shares))]
    counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    gpus = [f"{name}:{index}*{count}" for index, count in enumerate(counts) if count]
    if len(gpus) == 1 and on_gpu == n_layers:
        return gpus[0].rpartition("*")[0]
    return ",".join(([f"cpu*{n_layers - on_gpu}"] if on_gpu < n_layers else []) + gpus)
