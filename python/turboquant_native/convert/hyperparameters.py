"""The hyperparameters of a model, from a Hugging Face config or from GGUF metadata: the same dictionary for the same model.

Key suffix (`rope.freq_base`) to value; the file holds them as `<arch>.<suffix>`. Every field is checked by `fields.py` before it is used,
and how they fit each other here, by the reader's rules: what passes can be opened later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..common.errors import ConvertError
from .architectures import Architecture, Config, Hyperparameters, layer_pattern
from .fields import CONFIG_FIELDS, GGUF_FIELDS, checked, refused, shown
from .rope import gguf_rope_scaling, rope_parameters, rope_scaling

_FLOATS = frozenset(key for key, rule in GGUF_FIELDS.items() if rule.expected.startswith("a number"))
_NEUTRAL = {  # values that say no more than the key's absence
    "attention.sliding_window": 0, "expert_count": 0, "expert_used_count": 0, "expert_shared_feed_forward_length": 0,
    "attn_logit_softcapping": 0, "final_logit_softcapping": 0, "embedding_scale": 1, "residual_scale": 1, "logit_scale": 1,
    "rope.scaling.yarn_beta_fast": 32, "rope.scaling.yarn_beta_slow": 1, "rope.scaling.yarn_truncate": True,
    "attention.temperature_scale": 0, "embedding_length_per_layer_input": 0, "attention.shared_kv_layers": 0,
}  # fmt: skip
_OF_DELTA_NETS = ("ssm.conv_kernel", "ssm.state_size", "ssm.group_count", "ssm.time_step_rank", "ssm.inner_size")
_PATTERNS = ("attention.sliding_window_pattern", "attention.recurrent_layers", "rope.layer_pattern")
_BY_WINDOW = ("attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa")
_OF_LAYERS = ("attention.head_count_kv", ".feed_forward_length")  # may differ between them where heads do
_OF_YARN = ("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_truncate")
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
        rope, local_base = rope_parameters(origin, architecture, config)
        values = _common_values(config, rope, local_base) | rope_scaling(origin, architecture, config, rope) | architecture.options(config)
    except KeyError as missing:
        raise ConvertError(f"{origin}: has no entry {missing}") from None
    except ConvertError as error:
        raise error if str(error).startswith(origin) else ConvertError(f"{origin}: {error}") from None
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ConvertError(f"{origin}: holds values that make no model: {error}") from None
    return _canonical(origin, architecture, values, {key: _CONFIG_NAMES.get(key, key) for key in GGUF_FIELDS})


def _common_values(config: Config, rope: dict[str, Any], local_base: float | None) -> Hyperparameters:
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    partial = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    partial = 1.0 if rope["rope_type"] == "proportional" else partial  # the others turn too, by nothing
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
        "rope.freq_base_swa": local_base,
    }


def _check_options(origin: str, architecture: Architecture, config: Config) -> None:
    """What the engine does in one way only, and a config may ask for in another."""
    activation = config.get("hidden_activation") or config.get("hidden_act") or architecture.activations[0]
    if activation not in architecture.activations:
        raise ConvertError(f"{origin}: activation {activation!r} is not supported for {architecture.model_type}")
    if config.get("use_bidirectional_attention") not in (None, False, "vision"):  # of images only: there are none here
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
    if not architecture.by_window or "attention.sliding_window" not in out:
        for key in _BY_WINDOW:
            out.pop(key, None)
    if out.get("rope.scaling.type") != "yarn":
        for key in _OF_YARN:
            out.pop(key, None)
        if "rope.scaling.attn_factor" not in out:
            out.pop("rope.scaling.original_context_length", None)
    out.pop("rope.scaling.yarn_log_multiplier", None)  # is in attn_factor
    if "attention.temperature_scale" not in out:
        out.pop("attention.temperature_length", None)
    for key in _PATTERNS:
        if isinstance(out.get(key), int) and out[key] > out["block_count"]:
            out[key] = 0
    _check_consistent(origin, architecture, out, names)
    return dict(sorted(out.items()))


def _check_consistent(origin: str, architecture: Architecture, hp: Hyperparameters, names: dict[str, str]) -> None:
    """How the values must fit each other."""

    def demand(holds: bool, key: str, expected: str) -> None:
        if not holds:
            raise refused(origin, names[key], hp.get(key), expected)

    heads, head_dim = hp["attention.head_count"], hp["attention.key_length"]
    heads_kv, dims = hp["attention.head_count_kv"], hp["rope.dimension_count"]
    one_each = heads_kv if isinstance(heads_kv, list) else [heads_kv] * hp["block_count"]
    demand(len(one_each) == hp["block_count"], "attention.head_count_kv", f"one for each of {hp['block_count']} layers")
    divisors = all(heads % number == 0 for number in one_each)
    demand(divisors, "attention.head_count_kv", f"a divisor of {names['attention.head_count']}, {heads}")
    if "attention.key_length_swa" in hp:
        own = hp["attention.key_length_swa"]
        demand(own % 2 == 0 and hp["attention.value_length_swa"] == own, "attention.key_length_swa", "an even number, the same for values")
        demand(hp["rope.dimension_count_swa"] % 2 == 0, "rope.dimension_count_swa", "an even number")
        demand(hp["rope.dimension_count_swa"] <= own, "rope.dimension_count_swa", f"at most the size of a head, {own}")
    demand(head_dim % 2 == 0, "attention.key_length", "an even number")
    demand(hp["attention.value_length"] == head_dim, "attention.value_length", f"{names['attention.key_length']}, {head_dim}")
    demand(dims % 2 == 0 and dims <= head_dim, "rope.dimension_count", f"an even number up to the size of a head, {head_dim}")
    for key in _PATTERNS:
        pattern = hp.get(key, 0)
        demand(not isinstance(pattern, list) or len(pattern) == hp["block_count"], key, f"one entry for each of {hp['block_count']} layers")
    missing = [key for key in _OF_DELTA_NETS if architecture.delta_net and key not in hp]
    demand(not missing, missing[0] if missing else "block_count", "a number")
    growing = "attention.temperature_scale" in hp
    demand(not growing or "attention.temperature_length" in hp, "attention.temperature_length", "the length of the contexts of training")
    if architecture.delta_net:
        keys, heads, values = hp["ssm.group_count"], hp["ssm.time_step_rank"], hp["ssm.inner_size"]
        demand(heads % keys == 0, "ssm.group_count", f"a divisor of {names['ssm.time_step_rank']}, {heads}")
        demand(values % heads == 0 and values // heads <= 4096, "ssm.inner_size", f"{heads} heads of equal size, at most 4096")
    _check_feed_forward(architecture, hp, names, demand)


def _check_feed_forward(
    architecture: Architecture, hp: Hyperparameters, names: dict[str, str], demand: Callable[[bool, str, str], None]
) -> None:
    widths = hp.get("feed_forward_length", 0)
    demand(
        not isinstance(widths, list) or len(widths) == hp["block_count"],
        "feed_forward_length",
        f"one for each of {hp['block_count']} layers",
    )
    if not architecture.is_moe:
        demand(min(widths if isinstance(widths, list) else [widths]) >= 1, "feed_forward_length", "1 or more")
    demand(hp.get("attention.shared_kv_layers", 0) < hp["block_count"], "attention.shared_kv_layers", f"fewer than {hp['block_count']}")
    if not architecture.has_experts(hp):
        return
    experts, used = hp.get("expert_count", 0), hp.get("expert_used_count", 0)
    demand(1 <= experts <= _MAX_EXPERTS_IN_ALL // hp["block_count"], "expert_count", f"1 to {_MAX_EXPERTS_IN_ALL} in all layers together")
    demand(1 <= used <= experts, "expert_used_count", f"1 to {names['expert_count']}, {experts}")
    demand(hp.get("expert_feed_forward_length", 0) >= 1, "expert_feed_forward_length", "1 or more")


# --- GGUF --------------------------------------------------------------------------------------------------------------------------------


def hyperparameters_of_gguf(origin: str, architecture: Architecture, metadata: Config, n_vocab: int) -> Hyperparameters:
    """From a GGUF file's metadata; `n_vocab` is the number of embedding rows."""
    names = {key: f"{architecture.gguf}.{key}" for key in GGUF_FIELDS}
    found = {
        key: _same_in_all_layers(origin, architecture, names[key], metadata[names[key]]) for key in GGUF_FIELDS if names[key] in metadata
    }
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
    return _canonical(origin, architecture, gguf_rope_scaling(origin, values), names)


def _same_in_all_layers(origin: str, architecture: Architecture, key: str, value: Any) -> Any:
    """llama.cpp allows a value per layer; here all layers must agree but on a few."""
    if not isinstance(value, list | tuple | np.ndarray):
        return value
    if key.endswith(_PATTERNS):
        return layer_pattern([bool(use) for use in value])
    if architecture.by_window and key.endswith(_OF_LAYERS) and len(set(value)) > 1:
        return list(value)
    if len(value) == 0 or any(item != value[0] for item in value):
        raise ConvertError(f"{origin}: {key} differs between layers ({shown(str(list(value[:8])))}), which is not supported")
    return value[0]
