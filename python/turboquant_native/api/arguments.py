"""Constructor arguments of llama-cpp-python that this engine does not need, or cannot honour."""

import logging
import warnings
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
