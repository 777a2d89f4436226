"""Constructor arguments of llama-cpp-python that this engine does not need, or cannot honour."""

import logging
import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import Any

logger = logging.getLogger(__name__)

# Accepted without effect: obsolete, or tuning of machinery that does not exist here.
# fmt: off
_WITHOUT_EFFECT = {
    "n_parts", "f16_kv", "low_vram", "n_gqa", "rms_norm_eps", "mul_mat_q", "split_mode", "n_ubatch", "offload_kqv",
    "op_offload", "swa_full", "no_perf", "numa", "last_n_tokens_size", "spm_infill", "rpc_servers", "yarn_ext_factor",
    "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_orig_ctx", "attention_type", "lora_scale", "kv_unified",
    "local_dir_use_symlinks",
}
# fmt: on
# They would change results; only these values leave the model as it is.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "lora_path": (None, ""),
    "lora_base": (None, ""),
    "kv_overrides": (None, {}),
    "vocab_only": (None, False),
    "tokenizer": (None,),  # the file's is used
    "rope_scaling_type": (None, -1),
    "rope_freq_base": (None, 0.0, 10000.0),  # LangChain always passes 10000 and 1, meaning "the model's"
    "rope_freq_scale": (None, 0.0, 1.0),
}

LLAMA_POOLING_TYPE_UNSPECIFIED = -1
LLAMA_POOLING_TYPE_NONE = 0
LLAMA_POOLING_TYPE_MEAN = 1
LLAMA_POOLING_TYPE_CLS = 2
LLAMA_POOLING_TYPE_LAST = 3


def check(arguments: dict[str, Any], strict: bool) -> None:
    """Sorts arguments that `Llama` does not name: known ones pass or raise ValueError, unknown ones warn (TypeError when strict)."""
    for name, value in arguments.items():
        if name in _NEUTRAL:
            if value not in _NEUTRAL[name]:
                raise ValueError(f"{name}={value!r} is not supported")
        elif name not in _WITHOUT_EFFECT:
            if strict:
                raise TypeError(f"Llama() got an unexpected argument {name!r}")
            warnings.warn(f"Llama() does not know the argument {name!r}; it has no effect", stacklevel=3)


def check_numbers(**numbers: int) -> None:
    """TypeError for a constructor argument that is no integer."""
    for name, value in numbers.items():
        if not isinstance(value, Integral):
            raise TypeError(f"{name} must be an integer, got {value!r}")


def check_cache_type(type_k: int | None, type_v: int | None) -> None:
    """The cache is float16 (ggml type 1)."""
    for name, value in (("type_k", type_k), ("type_v", type_v)):
        if value not in (None, 1):
            raise ValueError(f"{name}={value} is not supported; the cache is float16 (1)")


def check_pooling(pooling_type: int) -> int:
    """The pooling in force; unspecified means the mean."""
    if pooling_type == LLAMA_POOLING_TYPE_UNSPECIFIED:
        return LLAMA_POOLING_TYPE_MEAN
    if not LLAMA_POOLING_TYPE_NONE <= pooling_type <= LLAMA_POOLING_TYPE_LAST:
        raise ValueError(f"pooling_type must be -1 (default) to 3 (last), got {pooling_type}")
    return pooling_type


def device(n_gpu_layers: int, model_path: str, main_gpu: int = 0, tensor_split: Sequence[float] | None = None) -> str:
    """The device that `n_gpu_layers` asks for: any GPU that works, for all layers (-1) or the last ones, else the CPU with a warning.

    tensor_split: shares of the GPUs 0, 1, ... in these layers; None: all on main_gpu.
    """
    if n_gpu_layers == 0:
        return "cpu"
    from . import _core

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
