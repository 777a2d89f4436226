"""Rotary positions: from the ways that configs and GGUF files describe their scaling to the keys and tensors of a file.

Linear scaling and yarn are keys. Llama 3's, longrope and dynamic scaling are tensors of factors, each of which divides the inverse
frequency of its pair of dimensions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.errors import ConvertError
from .architectures import Architecture, Config, Hyperparameters
from .fields import ROPE_FIELDS, checked, refused, required, shown

_SUPPORTED = "supported: linear, llama3, longrope, yarn, dynamic"


def rope_parameters(origin: str, architecture: Architecture, config: Config) -> tuple[dict[str, Any], float | None]:
    """(rope, base of windowed layers where they have their own), from today's `rope_parameters` or yesterday's top-level keys."""
    field = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    both = checked(origin, ROPE_FIELDS, config.get(field) or {}, f"{field}.")
    rope, local = both, {"rope_theta": config.get("rope_local_base_freq")}
    if both.get("full_attention") is not None:
        rope = checked(origin, ROPE_FIELDS, both["full_attention"], f"{field}.full_attention.")
        local = {**local, **checked(origin, ROPE_FIELDS, both.get("sliding_attention") or {}, f"{field}.sliding_attention.")}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    # as transformers has it: the top-level field wins, and without any the model was not extended
    original = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    original = original or config["max_position_embeddings"]
    rope = {**rope, "rope_type": kind, "rope_theta": theta, "original_max_position_embeddings": original}
    return rope, _local_base(origin, field, local, config.get("rope_theta") or theta) if architecture.plain_windows else None


def _local_base(origin: str, field: str, local: dict[str, Any], theta: float) -> float:
    kind = local.get("rope_type") or local.get("type") or "default"
    if kind != "default":
        raise ConvertError(f"{origin}: {field}.sliding_attention: rope scaling {shown(kind)} is not supported in windowed layers")
    return local.get("rope_theta") or theta


def rope_scaling(origin: str, architecture: Architecture, config: Config, rope: dict[str, Any]) -> Hyperparameters:
    """The keys of a config's scaling."""
    kind = rope["rope_type"]
    if kind in ("default", "llama3") or (kind == "proportional" and architecture.by_window):  # these are the tensor rope_freqs.weight
        return {}
    original = rope["original_max_position_embeddings"]
    if kind == "linear":
        required(f"{origin}: rope scaling 'linear'", rope, ["factor"])
        return {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}
    if kind == "yarn":
        return _yarn(origin, config, rope)
    if kind == "dynamic":
        return {"rope.scaling.original_context_length": config["max_position_embeddings"], "rope.scaling.attn_factor": 1.0}
    if kind in ("longrope", "su"):
        factor = config["max_position_embeddings"] / original
        magnitude = rope.get("attention_factor") or (math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0)
        return {"rope.scaling.original_context_length": original, "rope.scaling.attn_factor": magnitude}
    raise ConvertError(f"{origin}: rope scaling {shown(kind)} is not supported ({_SUPPORTED})")


def _yarn(origin: str, config: Config, rope: dict[str, Any]) -> Hyperparameters:
    original = rope["original_max_position_embeddings"]
    factor = rope.get("factor") or config["max_position_embeddings"] / original
    if (magnitude := rope.get("attention_factor")) is None:
        one, all_dims = rope.get("mscale"), rope.get("mscale_all_dim")
        magnitude = _magnitude(factor, one) / _magnitude(factor, all_dims) if one and all_dims else _magnitude(factor)
    return _yarn_keys(
        origin,
        rope["rope_theta"],
        magnitude / _magnitude(factor),
        {
            "rope.scaling.factor": factor,
            "rope.scaling.original_context_length": original,
            "rope.scaling.yarn_beta_fast": rope.get("beta_fast") or 32,
            "rope.scaling.yarn_beta_slow": rope.get("beta_slow") or 1,
            "rope.scaling.yarn_truncate": rope.get("truncate") is not False,
        },
    )


def _yarn_keys(origin: str, base: float, attn_factor: float, keys: Hyperparameters) -> Hyperparameters:
    """attn_factor: what yarn's usual magnitude is multiplied by, as llama.cpp's files mean it."""
    if base <= 1:
        raise refused(f"{origin}: rope scaling 'yarn'", "rope_theta", base, "a number above 1")
    # where nothing is multiplied, two roundings of the same numbers may differ in the last place
    keys |= {} if abs(attn_factor - 1) < 1e-6 else {"rope.scaling.attn_factor": attn_factor}
    return {"rope.scaling.type": "yarn", **keys}


def _magnitude(factor: float, multiplier: float = 1.0) -> float:
    """Yarn's factor of cos and sin."""
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1


def rope_tensors(origin: str, architecture: Architecture, config: Config, hp: Hyperparameters) -> dict[str, NDArray[np.float32]]:
    """Rotary factors that GGUF keeps as tensors."""
    rope, _ = rope_parameters(origin, architecture, config)
    tensors: dict[str, NDArray[np.float32]] = {}
    where = f"{origin}: rope scaling {rope['rope_type']!r}"
    if rope["rope_type"] == "llama3":
        required(where, rope, ["factor", "low_freq_factor", "high_freq_factor"])
        if not rope["low_freq_factor"] < rope["high_freq_factor"]:
            raise refused(where, "high_freq_factor", rope["high_freq_factor"], f"more than low_freq_factor, {rope['low_freq_factor']}")
        tensors = {"rope_freqs.weight": _llama3_factors(rope, hp)}
    elif rope["rope_type"] == "proportional":
        tensors = {"rope_freqs.weight": _proportional_factors(rope, hp)}
    elif rope["rope_type"] == "dynamic":
        required(where, rope, ["factor"])
        tensors = {"rope_factors_long.weight": _dynamic_factors(where, rope["factor"], hp)}
    elif rope["rope_type"] in ("longrope", "su"):
        required(where, rope, ["long_factor", "short_factor"])
        tensors = {f"rope_factors_{kind}.weight": np.asarray(rope[f"{kind}_factor"], np.float32) for kind in ("long", "short")}
    for name, factors in tensors.items():
        check_rope_factors(origin, name, factors)
    return tensors


def check_rope_factors(origin: str, name: str, factors: NDArray[np.float32]) -> None:
    """ConvertError for a factor that no frequency can be divided by."""
    if (wrong := np.flatnonzero(~((factors > 0) & np.isfinite(factors)))).size:
        raise refused(origin, f"{name}[{wrong[0]}]", float(factors[wrong[0]]), "a finite number above 0")


def _llama3_factors(rope: dict[str, Any], hp: Hyperparameters) -> NDArray[np.float32]:
    """1 for short wavelengths, `factor` for long ones, smooth between (Llama 3.1's scaling)."""
    dims = hp["rope.dimension_count"]
    frequencies = rope["rope_theta"] ** -(np.arange(0, dims, 2, dtype=np.float64) / dims)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth), np.float32)


def _proportional_factors(rope: dict[str, Any], hp: Hyperparameters) -> NDArray[np.float32]:
    """The first pairs turn as they would without scaling; the others by next to nothing (llama.cpp's factor)."""
    half = hp["rope.dimension_count"] // 2
    turning = int((rope.get("partial_rotary_factor") or 1.0) * hp["rope.dimension_count"] // 2)
    return np.where(np.arange(half) < turning, rope.get("factor") or 1.0, 1e30).astype(np.float32)


def _dynamic_factors(where: str, factor: float, hp: Hyperparameters) -> NDArray[np.float32]:
    """Of contexts longer than the model was trained for: what dynamic scaling comes to at `factor` times that length.

    transformers makes the base larger with each further token, so that keys computed earlier no longer fit; here a context has one base,
    chosen by its size, and its keys, snapshots and saved states stay good.
    """
    dims = hp["rope.dimension_count"]
    if factor < 1 or dims < 4:
        raise refused(where, "factor", factor, "1 or more, of rotary embeddings of at least 4 dimensions")
    growth = (factor * factor - (factor - 1)) ** (dims / (dims - 2))
    return np.asarray(growth ** (np.arange(0, dims, 2, dtype=np.float64) / dims), np.float32)


def gguf_rope_scaling(origin: str, values: Hyperparameters) -> Hyperparameters:
    """A GGUF file's hyperparameters with its scaling in the keys that a config's comes to."""
    kind = values.get("rope.scaling.type", "none")
    if kind not in ("none", "linear", "longrope", "yarn"):
        raise ConvertError(f"{origin}: rope scaling {shown(kind)} is not supported ({_SUPPORTED})")
    prefix = "rope.scaling."
    if kind == "yarn":
        factor, multiplier = values.get(prefix + "factor", 1.0), values.get(prefix + "yarn_log_multiplier")
        usual = 1 / _magnitude(factor, multiplier) if multiplier else 1.0
        defaults = {prefix + "factor": factor, prefix + "original_context_length": values["context_length"]}
        values = {**defaults, **values}
        return values | _yarn_keys(origin, values["rope.freq_base"], values.pop(prefix + "attn_factor", 1.0) * usual, {})
    dropped = {prefix + "type", prefix + "factor"} if kind != "linear" else set()
    return {key: value for key, value in values.items() if key not in dropped}
