"""Constructor arguments of llama-cpp-python that this engine does not need, or cannot honour."""

import logging
import warnings
from numbers import Integral
from typing import Any

logger = logging.getLogger(__name__)

# Accepted without effect: obsolete, or tuning of machinery that does not exist here. None of them would change a result; f16_kv, which
# LangChain passes as False, has not changed one in llama.cpp since type_k took its place.
# fmt: off
_WITHOUT_EFFECT = {
    "n_parts", "f16_kv", "low_vram", "mul_mat_q", "split_mode", "n_ubatch", "offload_kqv", "op_offload", "swa_full", "no_perf", "numa",
    "lora_scale", "kv_unified", "local_dir_use_symlinks",
}
# fmt: on
# They would change results; only these values leave the model as it is.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "lora_path": (None, ""),
    "lora_base": (None, ""),
    "kv_overrides": (None, {}),
    "vocab_only": (None, False),
    "tokenizer": (None,),  # the file's is used
    "n_gqa": (None, 0),
    "rms_norm_eps": (None, 0.0),
    "spm_infill": (None, False),
    "rpc_servers": (None, ""),
    "attention_type": (None, -1, 0),  # unspecified, causal
    "rope_scaling_type": (None, -1),
    "rope_freq_base": (None, 0.0, 10000.0),  # LangChain always passes 10000 and 1, meaning "the model's"
    "rope_freq_scale": (None, 0.0, 1.0),
    "yarn_ext_factor": (None, -1.0),  # llama-cpp-python's defaults, which mean the model's own
    "yarn_attn_factor": (None, 1.0),
    "yarn_beta_fast": (None, 32.0),
    "yarn_beta_slow": (None, 1.0),
    "yarn_orig_ctx": (None, 0),
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


def check_seed(seed: int) -> None:
    """ValueError for a seed that is no 64-bit number; negative ones mean: draw one."""
    if seed >= 1 << 64:
        raise ValueError(f"seed must be below 2**64, got {seed}")


def check_penalty_window(last_n_tokens_size: int) -> int:
    """How many tokens the penalties look back: 0 none, -1 all."""
    if last_n_tokens_size < -1:
        raise ValueError(f"last_n_tokens_size must be at least -1 (the whole text), got {last_n_tokens_size}")
    return last_n_tokens_size


def check_pooling(pooling_type: int) -> int:
    """The pooling asked for; unspecified means the one that the model was trained with, or the mean."""
    if not LLAMA_POOLING_TYPE_UNSPECIFIED <= pooling_type <= LLAMA_POOLING_TYPE_LAST:
        raise ValueError(f"pooling_type must be -1 (default) to 3 (last), got {pooling_type}")
    return pooling_type
