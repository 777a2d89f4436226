"""The hyperparameters of a model, from a Hugging Face config or from GGUF metadata: the same dictionary for the same model.

Key suffix (`rope.freq_base`) to value; the file holds them as `<arch>.<suffix>`. Every field is checked by `fields.py` before it is used,
and how they fit each other here, by the reader's rules: what passes can be opened later.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.errors import ConvertError
from .architectures import Architecture, Config, Hyperparameters, window_pattern
from .fields import CONFIG_FIELDS, GGUF_FIELDS, ROPE_FIELDS, checked, refused, required, shown

_FLOATS = frozenset(key for key, rule in GGUF_FIELDS.items() if rule.expected.startswith("a number"))
_NEUTRAL = {  # values that say no more than the key's absence
    "attention.sliding_window": 0, "expert_count": 0, "expert_used_count": 0, "expert_shared_feed_forward_length": 0,
    "attn_logit_softcapping": 0, "final_logit_softcapping": 0, "embedding_scale": 1, "residual_scale": 1, "logit_scale": 1,
}  # fmt: skip
_REQUIRED = ("context_length", "embedding_length", "block_count", "vocab_size", "attention.head_count")
_MAX_EXPERTS_IN_ALL = 1 << 17  # layers times experts: each is three tensors with a place in every table
_CONFIG_NAMES = {  # what a message calls a key, where the field of a config is not obvious from it
    "embedding_length": "hidden_size", "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim", "feed_forward_length": "intermediate_size", "block_count": "num_hidden_layers",
    "expert_count": "num_experts", "expert_used_count": "num_experts_per_tok", "expert_feed_forward_length": "moe_intermediate_size",
    "rope.dimension_count": "partial_rotary_factor times head_dim",
}  # fmt: skip


def checked_config(origin: str, config: dict[str, Any]) -> dict[str, Any]:
    """A config.json, its text part on top, with every field of its type; ConvertError names file, field, value and what was expected."""
    config = checked(origin, CONFIG_FIELDS, config)
    if quantization := config.get("quantization_config"):
        method = shown(quantization.get("quant_method", "unknown method")).strip("'")
        raise ConvertError(f"{origin}: the checkpoint is already quantized (quantization_config: {method}); convert the original one")
    if text := config.get("text_config"):
        config = {
            **config,
            **checked(origin, CONFIG_FIELDS, text, "text_config."),
        }  # the outer part has token ids that the text part may lack
    if config.get("model_type") is None:
        raise refused(origin, "model_type", None, "a name")
    return config


def hyperparameters_of_config(origin: str, architecture: Architecture, config: Config) -> Hyperparameters:
    """From a config that `checked_config` has passed; ConvertError names a missing or unusable entry."""
    config = {"rms_norm_eps": 1e-6, **architecture.defaults, **config}
    _check_options(origin, architecture, config)
    try:
        rope, local = _rope_parameters(origin, config)
        values = _common_values(config, rope, local) | _rope_scaling(origin, config, rope) | architecture.options(config)
    except KeyError as missing:
        raise ConvertError(f"{origin}: has no entry {missing}") from None
    except ConvertError as error:
        raise error if str(error).startswith(origin) else ConvertError(f"{origin}: {error}") from None
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ConvertError(f"{origin}: holds values that make no model: {error}") from None
    return _canonical(origin, architecture, values, {key: _CONFIG_NAMES.get(key, key) for key in GGUF_FIELDS})


def _common_values(config: Config, rope: dict[str, Any], local: dict[str, Any]) -> Hyperparameters:
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    partial = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    return {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config.get("num_key_value_heads") or config["num_attention_heads"],
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.dimension_count": int(head_dim * partial),
        "rope.freq_base": rope["rope_theta"],
        "rope.freq_base_swa": local.get("rope_theta"),
    }


def _check_options(origin: str, architecture: Architecture, config: Config) -> None:
    """What the engine does in one way only, and a config may ask for in another."""
    activation = config.get("hidden_activation") or config.get("hidden_act") or architecture.activations[0]
    if activation not in architecture.activations:
        raise ConvertError(f"{origin}: activation {activation!r} is not supported for {architecture.model_type}")
    if config.get("use_bidirectional_attention"):
        raise ConvertError(f"{origin}: use_bidirectional_attention: only causal attention is supported")


# --- what both kinds of source end in ----------------------------------------------------------------------------------------------------


def _canonical(origin: str, architecture: Architecture, values: Hyperparameters, names: dict[str, str]) -> Hyperparameters:
    """Values of their types and in the reader's ranges, floats rounded to what the file stores, sorted; whatever is absent or means nothing
    is left out. `names`: what messages call the keys."""
    present = {key: value for key, value in values.items() if value is not None}
    for key in _REQUIRED:
        if key not in present:
            raise ConvertError(f"{origin}: has no entry {names.get(key, key)!r}")
    named = checked(origin, {names[key]: rule for key, rule in GGUF_FIELDS.items()}, {names.get(key, key): v for key, v in present.items()})
    out = {key: named[names.get(key, key)] for key in present}
    out = {key: float(np.float32(value)) if key in _FLOATS else value for key, value in out.items() if value != _NEUTRAL.get(key)}
    if "attention.sliding_window" in out:
        out.setdefault("attention.sliding_window_pattern", 0)
    else:
        out.pop("attention.sliding_window_pattern", None)
        out.pop("rope.freq_base_swa", None)
    if "rope.scaling.attn_factor" not in out:
        out.pop("rope.scaling.original_context_length", None)
    _check_consistent(origin, architecture, out, names)
    return dict(sorted(out.items()))


def _check_consistent(origin: str, architecture: Architecture, hp: Hyperparameters, names: dict[str, str]) -> None:
    """How the values must fit each other."""

    def demand(holds: bool, key: str, expected: str) -> None:
        if not holds:
            raise refused(origin, names[key], hp.get(key), expected)

    heads, head_dim = hp["attention.head_count"], hp["attention.key_length"]
    heads_kv, dims = hp["attention.head_count_kv"], hp["rope.dimension_count"]
    demand(heads % heads_kv == 0, "attention.head_count_kv", f"a divisor of {names['attention.head_count']}, {heads}")
    demand(head_dim % 2 == 0, "attention.key_length", "an even number")
    demand(hp["attention.value_length"] == head_dim, "attention.value_length", f"{names['attention.key_length']}, {head_dim}")
    demand(dims % 2 == 0 and dims <= head_dim, "rope.dimension_count", f"an even number up to the size of a head, {head_dim}")
    if not architecture.is_moe:
        demand(hp.get("feed_forward_length", 0) >= 1, "feed_forward_length", "1 or more")
        return
    experts, used = hp.get("expert_count", 0), hp.get("expert_used_count", 0)
    demand(1 <= experts <= _MAX_EXPERTS_IN_ALL // hp["block_count"], "expert_count", f"1 to {_MAX_EXPERTS_IN_ALL} in all layers together")
    demand(1 <= used <= experts, "expert_used_count", f"1 to {names['expert_count']}, {experts}")
    demand(hp.get("expert_feed_forward_length", 0) >= 1, "expert_feed_forward_length", "1 or more")


# --- rotary positions of a config --------------------------------------------------------------------------------------------------------


def _rope_parameters(origin: str, config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """(rope of full attention, rope of windowed layers or empty), from today's `rope_parameters` or yesterday's top-level keys."""
    field = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    both = checked(origin, ROPE_FIELDS, config.get(field) or {}, f"{field}.")
    local: dict[str, Any] = {}
    rope = both
    if both.get("full_attention") is not None:
        rope = checked(origin, ROPE_FIELDS, both["full_attention"], f"{field}.full_attention.")
        local = checked(origin, ROPE_FIELDS, both.get("sliding_attention") or {}, f"{field}.sliding_attention.")
    elif config.get("rope_local_base_freq") is not None:
        local = {"rope_theta": config["rope_local_base_freq"]}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    # as transformers has it: the top-level field wins, and without any the model was not extended
    original = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    original = original or config["max_position_embeddings"]
    return {**rope, "rope_type": kind, "rope_theta": theta, "original_max_position_embeddings": original}, local


def _rope_scaling(origin: str, config: Config, rope: dict[str, Any]) -> Hyperparameters:
    kind = rope["rope_type"]
    if kind in ("default", "llama3"):  # llama3's factors are the tensor rope_freqs.weight
        return {}
    if kind == "linear":
        required(f"{origin}: rope scaling 'linear'", rope, ["factor"])
        return {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}
    if kind in ("longrope", "su"):
        original = rope["original_max_position_embeddings"]
        factor = config["max_position_embeddings"] / original
        magnitude = rope.get("attention_factor") or (math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0)
        return {"rope.scaling.original_context_length": original, "rope.scaling.attn_factor": magnitude}
    raise ConvertError(f"{origin}: rope scaling {shown(kind)} is not supported (supported: linear, llama3, longrope)")


def rope_tensors(origin: str, config: Config, hp: Hyperparameters) -> dict[str, NDArray[np.float32]]:
    """Rotary factors that GGUF keeps as tensors: each divides the inverse frequency of its pair of dimensions."""
    rope, _ = _rope_parameters(origin, config)
    tensors: dict[str, NDArray[np.float32]] = {}
    where = f"{origin}: rope scaling {rope['rope_type']!r}"
    if rope["rope_type"] == "llama3":
        required(where, rope, ["factor", "low_freq_factor", "high_freq_factor"])
        if not rope["low_freq_factor"] < rope["high_freq_factor"]:
            raise refused(where, "high_freq_factor", rope["high_freq_factor"], f"more than low_freq_factor, {rope['low_freq_factor']}")
        tensors = {"rope_freqs.weight": _llama3_factors(rope, hp)}
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


# --- GGUF --------------------------------------------------------------------------------------------------------------------------------


def hyperparameters_of_gguf(origin: str, architecture: Architecture, metadata: Config, n_vocab: int) -> Hyperparameters:
    """From a GGUF file's metadata; `n_vocab` is the number of embedding rows."""
    names = {key: f"{architecture.gguf}.{key}" for key in GGUF_FIELDS}
    found = {key: _same_in_all_layers(origin, names[key], metadata[names[key]]) for key in GGUF_FIELDS if names[key] in metadata}
    found.pop("pooling_type", None)  # of the embeddings, not of the model
    found["vocab_size"] = n_vocab
    values = {key: value for key, value in found.items() if value is not None}
    values = {key: checked(origin, {names[key]: GGUF_FIELDS[key]}, {names[key]: value})[names[key]] for key, value in values.items()}
    for key in _REQUIRED:
        if key not in values:
            raise ConvertError(f"{origin}: GGUF metadata has no key {names[key]}")
    head_dim = values.get("attention.key_length") or values["embedding_length"] // values["attention.head_count"]
    values = {
        "attention.head_count_kv": values["attention.head_count"],
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "rope.freq_base": 10000.0,
        **values,
    }
    if values["attention.key_length"] < 1:
        raise refused(origin, names["attention.key_length"], head_dim, "2 or more")
    values = architecture.gguf_defaults(values) | values
    _check_gguf_rope(origin, values)
    return _canonical(origin, architecture, values, names)


def _check_gguf_rope(origin: str, values: Hyperparameters) -> None:
    kind = values.get("rope.scaling.type", "none")
    if kind not in ("none", "linear", "longrope"):
        raise ConvertError(f"{origin}: rope scaling {shown(kind)} is not supported (supported: linear, llama3, longrope)")
    if kind != "linear":
        values.pop("rope.scaling.type", None)
        values.pop("rope.scaling.factor", None)


def _same_in_all_layers(origin: str, key: str, value: Any) -> Any:
    """llama.cpp allows a value per layer; here all layers must agree."""
    if not isinstance(value, list | tuple | np.ndarray):
        return value
    if key.endswith("attention.sliding_window_pattern"):
        return window_pattern([bool(use) for use in value])
    if len(value) == 0 or any(item != value[0] for item in value):
        raise ConvertError(f"{origin}: {key} differs between layers ({shown(str(list(value[:8])))}), which is not supported")
    return value[0]
