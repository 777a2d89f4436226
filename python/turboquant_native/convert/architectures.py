"""What distinguishes one model architecture from another: one table entry each.

Names, orientation and conventions are those of llama.cpp's GGUF files. `hyperparameters_*` return the same dictionary for a Hugging Face
config and for GGUF metadata of one model: key suffix (`rope.freq_base`) to value; the file holds them as `<arch>.<suffix>`.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.errors import ConvertError

Config = Mapping[str, Any]
Hyperparameters = dict[str, Any]
Shape = tuple[int, ...]

ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
DENSE = ("ffn_gate", "ffn_up", "ffn_down")
EXPERTS = ("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
SHARED_EXPERT = ("ffn_gate_inp_shexp", "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp")
PRE_NORMS = ("attn_norm", "ffn_norm")
POST_NORMS = ("post_attention_norm", "post_ffw_norm")
HEAD_NORMS = ("attn_q_norm", "attn_k_norm")
QKV_BIASES = ("attn_q", "attn_k", "attn_v")


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
        model_type: Hugging Face's name.
        gguf: the name in GGUF files and the prefix of the metadata keys.
        tensors: what every layer holds besides attention's four matrices.
        defaults: config entries that Hugging Face leaves out when they have this value.
        options: config -> hyperparameters beyond the common ones.
        gguf_defaults: the same for what llama.cpp implies and its files leave out.
        biases: the attention matrices that always have a bias.
        paired_rope: rotary pairs are neighbours, so q and k rows of a Hugging Face source are permuted.
        norm_offset: Hugging Face stores norm weights minus one.
        wide_head_norms: q and k norms span all heads, not one.
        activations: names that the feed-forward activation may have in a config.
    """

    model_type: str
    gguf: str
    tensors: tuple[str, ...] = PRE_NORMS + DENSE
    defaults: Config = field(default_factory=dict)
    options: Callable[[Config], Hyperparameters] = lambda config: {}
    gguf_defaults: Callable[[Hyperparameters], Hyperparameters] = lambda values: {}
    biases: tuple[str, ...] = ()
    paired_rope: bool = False
    norm_offset: bool = False
    wide_head_norms: bool = False
    activations: tuple[str, ...] = ("silu", "swish")

    @property
    def is_moe(self) -> bool:
        return "ffn_gate_inp" in self.tensors


# --- options of single architectures -----------------------------------------------------------------------------------------------------


def _window(config: Config) -> Hyperparameters:
    """Sliding window of a config; `layer_types` or the older keys say which layers use it."""
    window = config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return {}
    n_layers = config["num_hidden_layers"]
    types = config.get("layer_types")
    if types is None and "max_window_layers" in config:
        types = ["full_attention"] * config["max_window_layers"]
        types = (types + ["sliding_attention"] * n_layers)[:n_layers]
    if types is None:
        pattern = config.get("sliding_window_pattern", config.get("_sliding_window_pattern", 0))
    else:
        pattern = window_pattern([kind == "sliding_attention" for kind in types])
    return {} if pattern == 1 else {"attention.sliding_window": window, "attention.sliding_window_pattern": pattern}


def window_pattern(windowed: list[bool]) -> int:
    """n where every n-th layer attends to everything and the others through the window; 0: all windowed, 1: none."""
    if all(windowed):
        return 0
    pattern = windowed.index(False) + 1
    if any(use != bool((layer + 1) % pattern) for layer, use in enumerate(windowed)):
        raise ConvertError(
            f"layer_types: sliding and full attention alternate irregularly ({sum(windowed)} of {len(windowed)} layers slide)"
        )
    return pattern


def _gemma2(config: Config) -> Hyperparameters:
    return _gemma(config) | {
        "attn_logit_softcapping": config.get("attn_logit_softcapping") or 0.0,
        "final_logit_softcapping": config.get("final_logit_softcapping") or 0.0,
    }


def _gemma(config: Config) -> Hyperparameters:
    return _window(config) | {"attention.scale": config["query_pre_attn_scalar"] ** -0.5}


def _gemma3(config: Config) -> Hyperparameters:
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(cap):
            raise ConvertError(f"{cap} = {config[cap]} is not supported for gemma3")
    return _gemma(config)


def _gemma_gguf(pattern: int, layers_27b: int) -> Callable[[Hyperparameters], Hyperparameters]:
    """llama.cpp knows the window pattern and the attention scale (that of the 27B models differs) by the architecture's name."""

    def defaults(values: Hyperparameters) -> Hyperparameters:
        wide = values["embedding_length"] // values["attention.head_count"]
        scalar = wide if values["block_count"] == layers_27b else values["attention.key_length"]
        windowed = {"attention.sliding_window_pattern": pattern} if values.get("attention.sliding_window") else {}
        return windowed | {"attention.scale": scalar**-0.5}

    return defaults


def _gemma3_gguf(values: Hyperparameters) -> Hyperparameters:
    local = {"rope.freq_base_swa": 10000.0} if values.get("attention.sliding_window") else {}
    return _gemma_gguf(6, 62)(values) | local


def _granite(config: Config) -> Hyperparameters:
    return {
        "attention.scale": config.get("attention_multiplier", 1.0),
        "embedding_scale": config.get("embedding_multiplier", 1.0),
        "residual_scale": config.get("residual_multiplier", 1.0),
        "logit_scale": config.get("logits_scaling", 1.0),
    }


def _experts(config: Config) -> Hyperparameters:
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise ConvertError("layers without experts among layers with experts (mlp_only_layers, decoder_sparse_step) are not supported")
    values = {
        "expert_count": config.get("num_experts") or config.get("num_local_experts"),
        "expert_used_count": config["num_experts_per_tok"],
        "expert_feed_forward_length": config.get("moe_intermediate_size") or config["intermediate_size"],
        "expert_weights_norm": bool(config.get("norm_topk_prob", config["model_type"] == "mixtral")),
    }
    if shared := config.get("shared_expert_intermediate_size"):
        values["expert_shared_feed_forward_length"] = shared
    return _window(config) | values


def _experts_gguf(normalize: bool) -> Callable[[Hyperparameters], Hyperparameters]:
    return lambda values: {"expert_feed_forward_length": values.get("feed_forward_length"), "expert_weights_norm": normalize}


# --- the table ---------------------------------------------------------------------------------------------------------------------------

_GELU = ("gelu_pytorch_tanh", "gelu")  # gemma's first configs say gelu and mean its tanh form
_GEMMA_DEFAULTS = {"tie_word_embeddings": True, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096}
_QWEN_MOE_DEFAULTS = {"num_experts_per_tok": 4, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "num_experts": 60}
_QWEN3_MOE_DEFAULTS = {"head_dim": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": False}

ARCHITECTURES: dict[str, Architecture] = {
    entry.model_type: entry
    for entry in (
        Architecture("llama", "llama", paired_rope=True),
        Architecture("mistral", "llama", paired_rope=True, options=_window, defaults={"sliding_window": 4096}),
        Architecture(
            "mixtral",
            "llama",
            tensors=PRE_NORMS + EXPERTS,
            options=_experts,
            gguf_defaults=_experts_gguf(normalize=True),
            defaults={"rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_local_experts": 8, "num_experts_per_tok": 2},
            paired_rope=True,
        ),
        Architecture("qwen2", "qwen2", biases=QKV_BIASES, options=_window),
        Architecture("qwen3", "qwen3", tensors=PRE_NORMS + HEAD_NORMS + DENSE, options=_window, defaults={"head_dim": 128}),
        Architecture(
            "qwen2_moe",
            "qwen2moe",
            tensors=PRE_NORMS + EXPERTS + SHARED_EXPERT,
            biases=QKV_BIASES,
            options=_experts,
            gguf_defaults=_experts_gguf(normalize=False),
            defaults=_QWEN_MOE_DEFAULTS,
        ),
        Architecture(
            "qwen3_moe",
            "qwen3moe",
            tensors=PRE_NORMS + HEAD_NORMS + EXPERTS,
            options=_experts,
            gguf_defaults=_experts_gguf(normalize=True),
            defaults=_QWEN3_MOE_DEFAULTS,
        ),
        Architecture(
            "gemma",
            "gemma",
            defaults={"tie_word_embeddings": True, "head_dim": 256, "max_position_embeddings": 8192},
            norm_offset=True,
            activations=_GELU,
        ),
        Architecture(
            "gemma2",
            "gemma2",
            tensors=PRE_NORMS + POST_NORMS + DENSE,
            options=_gemma2,
            gguf_defaults=_gemma_gguf(pattern=2, layers_27b=46),
            defaults=_GEMMA_DEFAULTS
            | {
                "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0,
                "sliding_window_pattern": 2,
                "max_position_embeddings": 8192,
            },
            norm_offset=True,
            activations=_GELU,
        ),
        Architecture(
            "gemma3_text",
            "gemma3",
            tensors=PRE_NORMS + POST_NORMS + HEAD_NORMS + DENSE,
            options=_gemma3,
            gguf_defaults=_gemma3_gguf,
            defaults=_GEMMA_DEFAULTS
            | {
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "vocab_size": 262208,
                "rope_theta": 1e6,
                "rope_local_base_freq": 1e4,
                "sliding_window_pattern": 6,
                "max_position_embeddings": 131072,
            },
            norm_offset=True,
            activations=_GELU,
        ),
        Architecture("phi3", "phi3", options=_window, defaults={"rms_norm_eps": 1e-5}),
        Architecture(
            "olmo2",
            "olmo2",
            tensors=POST_NORMS + HEAD_NORMS + DENSE,
            wide_head_norms=True,
            defaults={"rms_norm_eps": 1e-5},
        ),
        Architecture("granite", "granite", options=_granite, paired_rope=True),
    )
}
# Multimodal configs whose text part is a supported architecture.
TEXT_MODELS = {"gemma3": "gemma3_text"}


def supported() -> list[str]:
    """Names that a config's model_type may have."""
    return sorted(ARCHITECTURES)


def _unsupported(kind: str, name: str, known: list[str]) -> ConvertError:
    closest = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"; closest: {', '.join(closest)}" if closest else ""
    return ConvertError(f"{kind} {name!r} is not supported{hint} (supported: {', '.join(known)})")


def by_model_type(model_type: str) -> Architecture:
    """The entry of a Hugging Face model_type; ConvertError naming the closest otherwise."""
    name = TEXT_MODELS.get(model_type, model_type)
    if name not in ARCHITECTURES:
        raise _unsupported("architecture", model_type, supported())
    return ARCHITECTURES[name]


def by_gguf_name(name: str, has_experts: bool) -> Architecture:
    """The entry of a GGUF general.architecture; experts tell mixtral from llama."""
    for entry in ARCHITECTURES.values():
        if entry.gguf == name and entry.is_moe == has_experts:
            return entry
    raise _unsupported("GGUF architecture", name, sorted({entry.gguf for entry in ARCHITECTURES.values()}))


# --- hyperparameters ---------------------------------------------------------------------------------------------------------------------

_INTEGERS = (
    "context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size",
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.sliding_window", "attention.sliding_window_pattern", "rope.dimension_count", "rope.scaling.original_context_length",
    "expert_count", "expert_used_count", "expert_feed_forward_length", "expert_shared_feed_forward_length",
)  # fmt: skip
_FLOATS = (
    "attention.layer_norm_rms_epsilon", "attention.scale", "rope.freq_base", "rope.freq_base_swa", "rope.scaling.factor",
    "rope.scaling.attn_factor", "attn_logit_softcapping", "final_logit_softcapping", "embedding_scale", "residual_scale", "logit_scale",
)  # fmt: skip
_NEUTRAL = {  # values that say no more than the key's absence
    "attention.sliding_window": 0, "expert_count": 0, "expert_used_count": 0, "expert_shared_feed_forward_length": 0,
    "attn_logit_softcapping": 0, "final_logit_softcapping": 0, "embedding_scale": 1, "residual_scale": 1, "logit_scale": 1,
}  # fmt: skip


def _integer(key: str, value: Any) -> int:
    """Within bounds that keep a damaged file from asking for endless work."""
    low = 0 if key in ("attention.sliding_window_pattern", "feed_forward_length") else 1
    high = 4096 if key in ("block_count", "expert_count") else 2**31 - 1
    if not isinstance(value, int | float) or value != int(value) or not low <= value <= high:
        raise ConvertError(f"{key} is {value!r}, expected a whole number from {low} to {high}")
    return int(value)


def _float(key: str, value: Any) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ConvertError(f"{key} is {value!r}, expected a finite number, 0 or more")
    return float(np.float32(value))


def _canonical(values: Hyperparameters) -> Hyperparameters:
    """Values of their types, floats rounded to what the file stores, sorted; whatever is absent or means nothing is left out."""
    out: Hyperparameters = {}
    for key, value in values.items():
        if value is None or value == _NEUTRAL.get(key):
            continue
        if key in _INTEGERS:
            out[key] = _integer(key, value)
        elif key in _FLOATS:
            out[key] = _float(key, value)
        else:
            out[key] = value
    if "attention.sliding_window" in out:
        out.setdefault("attention.sliding_window_pattern", 0)
    else:
        out.pop("attention.sliding_window_pattern", None)
        out.pop("rope.freq_base_swa", None)
    if "rope.scaling.attn_factor" not in out:
        out.pop("rope.scaling.original_context_length", None)
    return dict(sorted(out.items()))


def _rope_parameters(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """(rope of full attention, rope of windowed layers or empty), from today's `rope_parameters` or yesterday's top-level keys."""
    both = dict(config.get("rope_parameters") or {})
    if "full_attention" in both:
        return {"rope_type": "default", **both["full_attention"]}, dict(both.get("sliding_attention") or {})
    rope = both or dict(config.get("rope_scaling") or {})
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    rope.setdefault("rope_type", rope.get("type", "default"))
    local = {"rope_theta": config["rope_local_base_freq"]} if "rope_local_base_freq" in config else {}
    return rope, local


def _rope_scaling(config: Config, rope: dict[str, Any]) -> Hyperparameters:
    kind = rope["rope_type"]
    if kind in ("default", "llama3"):  # llama3's factors are the tensor rope_freqs.weight
        return {}
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}
    if kind in ("longrope", "su"):
        original = rope.get("original_max_position_embeddings") or config["original_max_position_embeddings"]
        factor = config["max_position_embeddings"] / original
        magnitude = rope.get("attention_factor") or (math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0)
        return {"rope.scaling.original_context_length": original, "rope.scaling.attn_factor": magnitude}
    raise ConvertError(f"rope scaling {kind!r} is not supported (supported: linear, llama3, longrope)")


def _check_options(architecture: Architecture, config: Config) -> None:
    """What the engine does in one way only, and a config may ask for in another."""
    activation = config.get("hidden_activation") or config.get("hidden_act") or architecture.activations[0]
    if activation not in architecture.activations:
        raise ConvertError(f"activation {activation!r} is not supported for {architecture.model_type}")
    if config.get("use_bidirectional_attention"):
        raise ConvertError("use_bidirectional_attention: only causal attention is supported")


def hyperparameters_of_config(architecture: Architecture, config: Config) -> Hyperparameters:
    """From a Hugging Face config.json (its text part); ConvertError names a missing or unusable entry."""
    config = {"rms_norm_eps": 1e-6, **architecture.defaults, **config}
    _check_options(architecture, config)
    try:
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        rope, local = _rope_parameters(config)
        partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
        values = {
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
        return _canonical(values | _rope_scaling(config, rope) | architecture.options(config))
    except KeyError as missing:
        raise ConvertError(f"config.json has no entry {missing}") from None
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise ConvertError(f"config.json holds values that make no model: {error}") from None


def hyperparameters_of_gguf(architecture: Architecture, metadata: Config, n_vocab: int) -> Hyperparameters:
    """From a GGUF file's metadata; `n_vocab` is the number of embedding rows."""
    known = (*_INTEGERS, *_FLOATS, "expert_weights_norm", "rope.scaling.type")
    values = {key: _scalar(key, metadata[f"{architecture.gguf}.{key}"]) for key in known if f"{architecture.gguf}.{key}" in metadata}
    values["vocab_size"] = n_vocab
    try:
        head_dim = values.get("attention.key_length") or values["embedding_length"] // values["attention.head_count"]
        values = {
            "attention.head_count_kv": values["attention.head_count"],
            "attention.key_length": head_dim,
            "attention.value_length": head_dim,
            "rope.dimension_count": head_dim,
            "rope.freq_base": 10000.0,
            **values,
        }
        values = architecture.gguf_defaults(values) | values
        _check_gguf_rope(values)
        return _canonical(values)
    except KeyError as missing:
        raise ConvertError(f"GGUF metadata has no key {architecture.gguf}.{missing.args[0]}") from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ConvertError(f"GGUF metadata of {architecture.gguf} makes no model: {error}") from None


def _check_gguf_rope(values: Hyperparameters) -> None:
    kind = values.get("rope.scaling.type", "none")
    if kind not in ("none", "linear", "longrope"):
        raise ConvertError(f"rope scaling {kind!r} is not supported (supported: linear, llama3, longrope)")
    if kind != "linear":
        values.pop("rope.scaling.type", None)
        values.pop("rope.scaling.factor", None)


def _scalar(key: str, value: Any) -> Any:
    """llama.cpp allows a value per layer; here all layers must agree."""
    if not isinstance(value, list | tuple | np.ndarray):
        return value
    if key == "attention.sliding_window_pattern":
        return window_pattern([bool(use) for use in value])
    if len(set(value)) != 1:
        raise ConvertError(f"{key} differs between layers ({sorted(set(value))}), which is not supported")
    return value[0]


# --- tensors -----------------------------------------------------------------------------------------------------------------------------


def _layer_shapes(architecture: Architecture, hp: Hyperparameters) -> dict[str, Shape]:
    """Shapes (n_out, n_in) or (n,) of one layer's tensors, experts apart, by name without `blk.N.`."""
    n_embd, n_ff, head_dim = hp["embedding_length"], hp["feed_forward_length"], hp["attention.key_length"]
    q, kv = hp["attention.head_count"] * head_dim, hp["attention.head_count_kv"] * head_dim
    expert_ff, shared_ff = hp.get("expert_feed_forward_length", 0), hp.get("expert_shared_feed_forward_length", 0)
    n_experts = hp.get("expert_count", 0)
    wide = architecture.wide_head_norms
    shapes: dict[str, Shape] = {
        "attn_q": (q, n_embd), "attn_k": (kv, n_embd), "attn_v": (kv, n_embd), "attn_output": (n_embd, q),
        "attn_q_norm": (q if wide else head_dim,), "attn_k_norm": (kv if wide else head_dim,),
        "ffn_gate": (n_ff, n_embd), "ffn_up": (n_ff, n_embd), "ffn_down": (n_embd, n_ff),
        "ffn_gate_inp": (n_experts, n_embd), "ffn_gate_inp_shexp": (n_embd,),
        "ffn_gate_shexp": (shared_ff, n_embd), "ffn_up_shexp": (shared_ff, n_embd), "ffn_down_shexp": (n_embd, shared_ff),
    }  # fmt: skip
    for expert in range(n_experts):
        shapes |= {
            f"ffn_gate.{expert}": (expert_ff, n_embd),
            f"ffn_up.{expert}": (expert_ff, n_embd),
            f"ffn_down.{expert}": (n_embd, expert_ff),
        }
    norms = (*PRE_NORMS, *POST_NORMS)
    return shapes | {name: (n_embd,) for name in norms}


def _layer_names(architecture: Architecture, hp: Hyperparameters) -> list[str]:
    names: list[str] = []
    for name in (*ATTENTION, *architecture.tensors):
        expanded = [f"{name.removesuffix('_exps')}.{e}" for e in range(hp["expert_count"])] if name.endswith("_exps") else [name]
        names += expanded
    return names


def tensor_shapes(architecture: Architecture, hp: Hyperparameters) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """(required, optional) tensors of a model by name in file order, with shapes (n_out, n_in) or (n,)."""
    n_embd, n_vocab, half = hp["embedding_length"], hp["vocab_size"], hp["rope.dimension_count"] // 2
    required: dict[str, Shape] = {"token_embd.weight": (n_vocab, n_embd), "output_norm.weight": (n_embd,)}
    optional: dict[str, Shape] = {
        "output.weight": (n_vocab, n_embd),
        "rope_freqs.weight": (half,),
        "rope_factors_long.weight": (half,),
        "rope_factors_short.weight": (half,),
    }
    shapes = _layer_shapes(architecture, hp)
    for layer in range(hp["block_count"]):
        required |= {f"blk.{layer}.{name}.weight": shapes[name] for name in _layer_names(architecture, hp)}
        for name in ATTENTION:
            chosen = required if name in architecture.biases else optional
            chosen[f"blk.{layer}.{name}.bias"] = shapes[name][:1]
    return required, optional


def permute_heads(w: NDArray[Any], n_heads: int) -> NDArray[Any]:
    """Rows of q or k (weight or bias) from Hugging Face's order (halves of a head rotate together) to llama.cpp's (neighbours do)."""
    half = w.shape[0] // n_heads // 2
    permuted: NDArray[Any] = w.reshape(n_heads, 2, half, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)
    return permuted


def rope_tensors(config: Config, hp: Hyperparameters) -> dict[str, NDArray[np.float32]]:
    """Rotary factors that GGUF keeps as tensors: each divides the inverse frequency of its pair of dimensions."""
    rope, _ = _rope_parameters(config)
    if rope["rope_type"] == "llama3":
        return {"rope_freqs.weight": _llama3_factors(rope, hp)}
    if rope["rope_type"] in ("longrope", "su"):
        return {f"rope_factors_{kind}.weight": np.asarray(rope[f"{kind}_factor"], np.float32) for kind in ("long", "short")}
    return {}


def _llama3_factors(rope: dict[str, Any], hp: Hyperparameters) -> NDArray[np.float32]:
    """1 for short wavelengths, `factor` for long ones, smooth between (Llama 3.1's scaling)."""
    dims = hp["rope.dimension_count"]
    frequencies = rope["rope_theta"] ** -(np.arange(0, dims, 2, dtype=np.float64) / dims)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth), np.float32)
