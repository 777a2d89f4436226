"""What distinguishes one model architecture from another: one table entry each.

Names, orientation and conventions are those of llama.cpp's GGUF files.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from ..common.errors import ConvertError
from .fields import PER_LAYER_FIELDS, checked

Config = Mapping[str, Any]
Hyperparameters = dict[str, Any]
Shape = tuple[int, ...]

ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
DENSE = ("ffn_gate", "ffn_up", "ffn_down")
EXPERTS = ("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
SHARED_EXPERT = ("ffn_gate_inp_shexp", "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp")
PRE_NORMS = ("attn_norm", "ffn_norm")
POST_NORMS = ("post_attention_norm", "post_ffw_norm")
EXPERTS_BESIDE = (*EXPERTS, "post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2")  # of a mixture beside a dense part
PER_LAYER = ("per_layer_model_proj", "inp_gate", "proj", "post_norm")
PER_LAYER_TABLE = "per_layer_token_embd.weight"
HEAD_NORMS = ("attn_q_norm", "attn_k_norm")
GATED_ATTENTION = (*ATTENTION, "attn_gate", *HEAD_NORMS)
DELTA_NET = ("attn_qkv", "attn_gate", "ssm_alpha", "ssm_beta", "ssm_conv1d", "ssm_norm", "ssm_out")
DELTA_NET_VECTORS = ("ssm_a", "ssm_dt.bias")
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
        plain_windows: layers with a window turn by a base of their own (`rope.freq_base_swa`), unscaled.
        expert_biases: router and experts have biases; those of the experts are one tensor (experts, width) for each of the three matrices.
        delta_net: some layers are gated delta nets, the others have a gate on their output.
        tiled_value_heads: llama.cpp has the value heads of such layers in an order of its own.
        renamed: llama.cpp's names of tensors whose place is another one here.
        parts: hyperparameter -> what every layer holds too where it is not 0.
        by_window: layers with a window have heads of a size of their own, and the layers different numbers of key heads and
            widths of the feed-forward.
        optional: tensors of a layer that a file may do without.
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
    plain_windows: bool = False
    expert_biases: bool = False
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    by_window: bool = False
    optional: tuple[str, ...] = ()
    delta_net: bool = False
    tiled_value_heads: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict)
    activations: tuple[str, ...] = ("silu", "swish")

    @property
    def is_moe(self) -> bool:
        """Whether every model of it has experts."""
        return "ffn_gate_inp" in self.tensors

    def has_experts(self, hp: Hyperparameters) -> bool:
        return self.is_moe or ("expert_count" in self.parts and bool(hp.get("expert_count")))

    def layer_tensors(self, hp: Hyperparameters) -> tuple[str, ...]:
        """What every layer of a model holds besides attention's matrices."""
        return self.tensors + tuple(name for key, names in self.parts.items() if hp.get(key) for name in names)

    def final_name(self, name: str) -> str:
        """The name of a tensor in our files, from llama.cpp's."""
        layer, _, rest = name.rpartition(".weight")[0].rpartition(".")
        return f"{layer}.{self.renamed[rest]}.weight" if rest in self.renamed else name


# --- options of single architectures -----------------------------------------------------------------------------------------------------


def _window(config: Config) -> Hyperparameters:
    """Sliding window of a config; `layer_types` or the older keys say which layers use it."""
    window = config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return {}
    n_layers = config["num_hidden_layers"]
    types = config.get("layer_types")
    if types is not None and len(types) != n_layers:
        raise ConvertError(f"layer_types has {len(types)} entries, expected num_hidden_layers, {n_layers}")
    if types is None and config.get("max_window_layers") is not None:
        n_full = min(config["max_window_layers"], n_layers)
        types = ["full_attention"] * n_full + ["sliding_attention"] * (n_layers - n_full)
    if types is None:
        pattern = config.get("sliding_window_pattern", config.get("_sliding_window_pattern", 0))
    else:
        pattern = layer_pattern([kind == "sliding_attention" for kind in types])
    return {} if pattern == 1 else {"attention.sliding_window": window, "attention.sliding_window_pattern": pattern}


def layer_pattern(chosen: list[bool]) -> int | list[bool]:
    """n where all layers but every n-th are chosen; 0: all are, 1: none. The list itself where they follow no such rule."""
    if all(chosen):
        return 0
    pattern = chosen.index(False) + 1
    return pattern if all(use == bool((layer + 1) % pattern) for layer, use in enumerate(chosen)) else chosen


def _smollm3(config: Config) -> Hyperparameters:
    """Some layers know no positions; where there are windows, these layers have them."""
    n_layers, interval = config["num_hidden_layers"], config.get("no_rope_layer_interval", 4)
    turns = config.get("no_rope_layers")  # true: it turns
    if turns is None:
        turns = [bool((layer + 1) % interval) for layer in range(n_layers)]
    if len(turns) < n_layers:
        raise ConvertError(f"no_rope_layers has {len(turns)} entries, expected num_hidden_layers, {n_layers}")
    types = config.get("layer_types") or ["full_attention" if turn else "sliding_attention" for turn in turns[:n_layers]]
    return _window({"use_sliding_window": False, **config, "layer_types": types}) | {"rope.layer_pattern": layer_pattern(turns[:n_layers])}


def _olmo3(config: Config) -> Hyperparameters:
    layers = range(config["num_hidden_layers"])
    types = config.get("layer_types") or ["sliding_attention" if (layer + 1) % 4 else "full_attention" for layer in layers]
    return _window({**config, "layer_types": types})


def _olmo_gguf(values: Hyperparameters) -> Hyperparameters:
    return {"rope.freq_base_swa": values["rope.freq_base"]}


def _ministral3(config: Config) -> Hyperparameters:
    """Queries grow with the position, beyond the context that yarn began with."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    length = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
    growth = {"attention.temperature_scale": rope.get("llama_4_scaling_beta") or 0, "attention.temperature_length": length}
    return _window({**config, "layer_types": None}) | growth  # transformers does not read layer_types here


def _ministral3_gguf(values: Hyperparameters) -> Hyperparameters:
    return {"attention.temperature_length": values.get("rope.scaling.original_context_length", values["context_length"])}


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
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step") not in (None, 1):
        raise ConvertError("layers without experts among layers with experts (mlp_only_layers, decoder_sparse_step) are not supported")
    values = {
        "expert_count": config.get("num_experts") or config.get("num_local_experts"),
        "expert_used_count": config.get("num_experts_per_tok"),
        "expert_feed_forward_length": config.get("moe_intermediate_size") or config["intermediate_size"],
        "expert_weights_norm": bool(config.get("norm_topk_prob", config["model_type"] == "mixtral")),
    }
    if shared := config.get("shared_expert_intermediate_size"):
        values["expert_shared_feed_forward_length"] = shared
    return _window(config) | values


def _experts_gguf(normalize: bool) -> Callable[[Hyperparameters], Hyperparameters]:
    return lambda values: {"expert_feed_forward_length": values.get("feed_forward_length"), "expert_weights_norm": normalize}


def _gemma4(config: Config) -> Hyperparameters:
    """Full layers have larger heads, and may take their keys' product for their values too."""
    n_layers = config["num_hidden_layers"]
    types = list(config.get("layer_types") or ["sliding_attention" if (layer + 1) % 6 else "full_attention" for layer in range(n_layers)])
    types[-1:] = ["full_attention"]  # as transformers has it
    kv_heads, head_dim = config.get("num_key_value_heads") or config["num_attention_heads"], config["head_dim"]
    full_kv = (config.get("num_global_key_value_heads") if config.get("attention_k_eq_v") else None) or kv_heads
    own = {"head_dim": config.get("global_head_dim") or 512, "num_key_value_heads": full_kv}
    layers = [_own_heads(config, layer, own if kind == "full_attention" else {}) for layer, kind in enumerate(types)]
    sizes = {kind: {size for size, other in zip((size for size, _ in layers), types, strict=True) if other == kind} for kind in set(types)}
    if any(len(found) != 1 for found in sizes.values()):
        raise ConvertError(
            f"per_layer_config: heads of the sizes {sorted(set().union(*sizes.values()))}, expected one size for each of layer_types"
        )
    full, numbers = sizes["full_attention"].pop(), [number for _, number in layers]
    windowed = {key: head_dim for key in ("attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa")}
    return (
        _window({**config, "layer_types": types})
        | {"attention.scale": 1.0, "final_logit_softcapping": config.get("final_logit_softcapping") or 0.0}
        | {"attention.key_length": full, "attention.value_length": full, "rope.dimension_count": full}
        | (windowed if "sliding_attention" in types else {})
        | {"attention.head_count_kv": _one_or_all(numbers)}
        | {"embedding_length_per_layer_input": config.get("hidden_size_per_layer_input") or 0}
        | _shared_keys(config, types)
        | (_experts_beside(config) if config.get("enable_moe_block") else {})
    )


def _one_or_all(numbers: list[int]) -> int | list[int]:
    """One number where all layers have the same."""
    return numbers if len(set(numbers)) > 1 else numbers[0]


def _shared_keys(config: Config, types: list[str]) -> Hyperparameters:
    """The last layers see the keys of an earlier one of their type; their feed-forward may be twice as wide."""
    shared, n_ff = config.get("num_kv_shared_layers") or 0, config["intermediate_size"]
    own = types[: max(len(types) - shared, 0)]
    if not set(types) <= set(own):
        raise ConvertError(f"num_kv_shared_layers is {shared}: the {len(own)} layers before have no keys for each of layer_types")
    wide = 2 if config.get("use_double_wide_mlp") else 1
    return {"attention.shared_kv_layers": shared, "feed_forward_length": _one_or_all([n_ff] * len(own) + [wide * n_ff] * shared)}


def _experts_beside(config: Config) -> Hyperparameters:
    for name in ("num_experts", "top_k_experts", "moe_intermediate_size"):
        if not config.get(name):
            raise ConvertError(f"{name} is {config.get(name)}, expected 1 or more where enable_moe_block is true")
    return {
        "expert_count": config.get("num_experts"),
        "expert_used_count": config.get("top_k_experts"),
        "expert_feed_forward_length": config.get("moe_intermediate_size"),
        "expert_weights_norm": True,
    }


def _own_heads(config: Config, layer: int, own: dict[str, int]) -> tuple[int, int]:
    """(size of a layer's heads, number of its key heads); what the config says of single layers comes before `own`."""
    values = {"head_dim": config["head_dim"], "num_key_value_heads": config.get("num_key_value_heads") or config["num_attention_heads"]}
    single = config.get("per_layer_config")
    values |= own if single is None else checked("per_layer_config", PER_LAYER_FIELDS, single.get(str(layer)) or {}, f"{layer}.")
    return values["head_dim"], values["num_key_value_heads"]


def _gemma4_gguf(values: Hyperparameters) -> Hyperparameters:
    windowed = values.get("attention.sliding_window")
    size = values.get("attention.key_length_swa", values["attention.key_length"])
    own = {"attention.key_length_swa": size, "attention.value_length_swa": size, "rope.dimension_count_swa": size}
    experts = {"expert_weights_norm": True} if values.get("expert_count") else {}
    return (
        {"attention.scale": 1.0}
        | experts
        | (own | {"rope.freq_base_swa": 10000.0, "attention.sliding_window_pattern": 6} if windowed else {})
    )


def _delta_net(config: Config) -> Hyperparameters:
    n_layers, interval = config["num_hidden_layers"], config.get("full_attention_interval") or 4
    types = config.get("layer_types") or ["linear_attention" if (layer + 1) % interval else "full_attention" for layer in range(n_layers)]
    if len(types) != n_layers:
        raise ConvertError(f"layer_types has {len(types)} entries, expected num_hidden_layers, {n_layers}")
    experts = _experts(config) if config.get("num_experts") else {}
    return experts | {
        "attention.recurrent_layers": layer_pattern([kind == "linear_attention" for kind in types]),
        "ssm.conv_kernel": config["linear_conv_kernel_dim"],
        "ssm.state_size": config["linear_key_head_dim"],
        "ssm.group_count": config["linear_num_key_heads"],
        "ssm.time_step_rank": config["linear_num_value_heads"],
        "ssm.inner_size": config["linear_num_value_heads"] * config["linear_value_head_dim"],
    }


def _delta_net_gguf(values: Hyperparameters) -> Hyperparameters:
    return {"attention.recurrent_layers": values.pop("full_attention_interval", 4)}


def _gpt_oss(config: Config) -> Hyperparameters:
    for name, value in (("swiglu_alpha", 1.702), ("swiglu_limit", 7.0)):
        if config.get(name, value) != value:
            raise ConvertError(f"{name} is {config[name]}, expected {value}: the engine has this one activation")
    layers = range(config["num_hidden_layers"])
    types = config.get("layer_types") or ["full_attention" if layer % 2 else "sliding_attention" for layer in layers]
    return _experts({**config, "layer_types": types}) | {"expert_weights_norm": True}


def _gpt_oss_gguf(values: Hyperparameters) -> Hyperparameters:
    windowed = {"attention.sliding_window_pattern": 2} if values.get("attention.sliding_window") else {}
    return _experts_gguf(normalize=True)(values) | windowed | {"rope.scaling.yarn_truncate": False}


# --- the table ---------------------------------------------------------------------------------------------------------------------------

_GELU = ("gelu_pytorch_tanh", "gelu")  # gemma's first configs say gelu and mean its tanh form
_GEMMA_DEFAULTS = {"tie_word_embeddings": True, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096}
_QWEN_MOE_DEFAULTS = {"num_experts_per_tok": 4, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "num_experts": 60}
_MINISTRAL3_ROPE = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384, "mscale": 1.0, "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}  # fmt: skip
_GEMMA4_ROPE = {
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}  # fmt: skip
_GPT_OSS_ROPE = {
    "rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False,
}  # fmt: skip
_QWEN3_MOE_DEFAULTS = {"head_dim": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": False}

_DELTA_NET_DEFAULTS = {
    "head_dim": 256,
    "partial_rotary_factor": 0.25,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
}
_QWEN3_5_MOE_DEFAULTS = {
    "num_attention_heads": 16, "num_key_value_heads": 2, "linear_num_value_heads": 32, "num_experts": 256, "num_experts_per_tok": 8,
    "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "norm_topk_prob": True, "intermediate_size": 0,
}  # fmt: skip
_QWEN3_NEXT_DEFAULTS = _QWEN3_5_MOE_DEFAULTS | {"num_experts": 512, "num_experts_per_tok": 10}
_DELTA_NET_NAMES = {"post_attention_norm": "ffn_norm"}

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
            plain_windows=True,
            activations=_GELU,
        ),
        Architecture(
            "gemma4_text",
            "gemma4",
            tensors=(*PRE_NORMS, *POST_NORMS, *HEAD_NORMS, *DENSE, "layer_output_scale"),
            options=_gemma4,
            gguf_defaults=_gemma4_gguf,
            defaults={
                "tie_word_embeddings": True,
                "head_dim": 256,
                "sliding_window": 512,
                "max_position_embeddings": 131072,
                "hidden_size_per_layer_input": 256,
                "rope_parameters": _GEMMA4_ROPE,
            },
            plain_windows=True,
            parts={"expert_count": EXPERTS_BESIDE, "embedding_length_per_layer_input": PER_LAYER},
            by_window=True,
            optional=("attn_v", "layer_output_scale"),
            activations=_GELU,
        ),
        Architecture("phi3", "phi3", options=_window, defaults={"rms_norm_eps": 1e-5}),
        Architecture(
            "olmo2",
            "olmo2",
            tensors=POST_NORMS + HEAD_NORMS + DENSE,
            gguf_defaults=_olmo_gguf,
            wide_head_norms=True,
            plain_windows=True,
            defaults={"rms_norm_eps": 1e-5},
        ),
        Architecture(
            "olmo3",
            "olmo2",
            tensors=POST_NORMS + HEAD_NORMS + DENSE,
            options=_olmo3,
            wide_head_norms=True,
            plain_windows=True,
            defaults={"rms_norm_eps": 1e-5, "rope_theta": 5e5, "sliding_window": 4096},
        ),
        Architecture(
            "smollm3",
            "smollm3",
            options=_smollm3,
            gguf_defaults=lambda values: {"rope.layer_pattern": 4},
            defaults={"tie_word_embeddings": True, "rope_theta": 2e6},
            paired_rope=True,
        ),
        Architecture("ministral", "llama", paired_rope=True, options=_window, defaults={"sliding_window": 4096}),
        Architecture(
            "ministral3",
            "mistral3",
            options=_ministral3,
            gguf_defaults=_ministral3_gguf,
            defaults={"rms_norm_eps": 1e-5, "head_dim": 128, "rope_parameters": _MINISTRAL3_ROPE},
            paired_rope=True,
        ),
        Architecture("granite", "granite", options=_granite, paired_rope=True),
        Architecture(
            "qwen3_5_text",
            "qwen35",
            tensors=PRE_NORMS + DENSE,
            options=_delta_net,
            gguf_defaults=_delta_net_gguf,
            defaults=_DELTA_NET_DEFAULTS | {"num_attention_heads": 16, "num_key_value_heads": 4, "linear_num_value_heads": 32},
            norm_offset=True,
            delta_net=True,
            tiled_value_heads=True,
            renamed=_DELTA_NET_NAMES,
        ),
        Architecture(
            "qwen3_5_moe_text",
            "qwen35moe",
            tensors=PRE_NORMS + EXPERTS + SHARED_EXPERT,
            options=_delta_net,
            gguf_defaults=lambda values: _experts_gguf(normalize=True)(values) | _delta_net_gguf(values),
            defaults=_DELTA_NET_DEFAULTS | _QWEN3_5_MOE_DEFAULTS,
            norm_offset=True,
            delta_net=True,
            tiled_value_heads=True,
            renamed=_DELTA_NET_NAMES,
        ),
        Architecture(
            "qwen3_next",
            "qwen3next",
            tensors=PRE_NORMS + EXPERTS + SHARED_EXPERT,
            options=_delta_net,
            gguf_defaults=lambda values: _experts_gguf(normalize=True)(values) | _delta_net_gguf(values),
            defaults=_DELTA_NET_DEFAULTS | _QWEN3_NEXT_DEFAULTS,
            norm_offset=True,
            delta_net=True,
            renamed=_DELTA_NET_NAMES,
        ),
        Architecture(
            "gpt_oss",
            "gpt-oss",
            tensors=(*PRE_NORMS, "attn_sinks", *EXPERTS),
            options=_gpt_oss,
            gguf_defaults=_gpt_oss_gguf,
            defaults={
                "rms_norm_eps": 1e-5,
                "head_dim": 64,
                "sliding_window": 128,
                "num_local_experts": 128,
                "num_experts_per_tok": 4,
                "rope_theta": 150000.0,
                "rope_parameters": _GPT_OSS_ROPE,
            },
            expert_biases=True,
            renamed={"post_attention_norm": "ffn_norm"},
        ),
    )
}
# Multimodal configs whose text part is a supported architecture.
TEXT_MODELS = {
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "mistral3": "mistral",
}


def supported() -> list[str]:
    """Names that a config's model_type may have."""
    return sorted({*ARCHITECTURES, *TEXT_MODELS})


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
        if entry.gguf == name and (entry.is_moe == has_experts or "expert_count" in entry.parts):
            return entry
    raise _unsupported("GGUF architecture", name, sorted({entry.gguf for entry in ARCHITECTURES.values()}))


def permute_heads(w: NDArray[Any], n_heads: int) -> NDArray[Any]:
    """Rows of q or k (weight or bias) from Hugging Face's order (halves of a head rotate together) to llama.cpp's (neighbours do)."""
    half = w.shape[0] // n_heads // 2
    permuted: NDArray[Any] = w.reshape(n_heads, 2, half, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)
    return permuted
