"""Which tensors a model of an architecture has, and their shapes."""

from .architectures import (
    ATTENTION,
    DELTA_NET,
    DELTA_NET_VECTORS,
    GATED_ATTENTION,
    PER_LAYER_TABLE,
    POST_NORMS,
    PRE_NORMS,
    Architecture,
    Hyperparameters,
    Shape,
)
from .folding import EXPERT_SCALES, ROUTER_SCALE


def _is_chosen(layer: int, pattern: int | list[bool]) -> bool:
    """By a pattern of `layer_pattern`."""
    return bool(pattern[layer]) if isinstance(pattern, list) else pattern == 0 or (layer + 1) % pattern != 0


def is_recurrent(layer: int, hp: Hyperparameters) -> bool:
    """Whether a layer of an architecture with delta nets is one."""
    return _is_chosen(layer, hp.get("attention.recurrent_layers", 1))


def _has_window(layer: int, hp: Hyperparameters) -> bool:
    return _is_chosen(layer, hp.get("attention.sliding_window_pattern", 1))


def _attention_shapes(architecture: Architecture, hp: Hyperparameters, layer: int) -> dict[str, Shape]:
    n_embd, head_dim, kv_heads = hp["embedding_length"], hp["attention.key_length"], hp["attention.head_count_kv"]
    if architecture.by_window and _has_window(layer, hp):
        head_dim = hp.get("attention.key_length_swa", head_dim)
    q, kv = hp["attention.head_count"] * head_dim, (kv_heads[layer] if isinstance(kv_heads, list) else kv_heads) * head_dim
    wide = architecture.wide_head_norms
    return {
        "attn_q": (q, n_embd), "attn_k": (kv, n_embd), "attn_v": (kv, n_embd), "attn_output": (n_embd, q),
        "attn_q_norm": (q if wide else head_dim,), "attn_k_norm": (kv if wide else head_dim,),
    }  # fmt: skip


def shares_keys(layer: int, hp: Hyperparameters) -> bool:
    """Whether a layer sees an earlier one's keys and values and has none of its own."""
    return bool(layer >= hp["block_count"] - hp.get("attention.shared_kv_layers", 0))


def _layer_shapes(architecture: Architecture, hp: Hyperparameters, layer: int) -> dict[str, Shape]:
    """Shapes (n_out, n_in) or (n,) of one layer's tensors, those of attention apart, by name without `blk.N.`."""
    n_embd, n_ff, n_own = hp["embedding_length"], hp["feed_forward_length"], hp.get("embedding_length_per_layer_input", 0)
    n_ff = n_ff[layer] if isinstance(n_ff, list) else n_ff
    expert_ff, shared_ff = hp.get("expert_feed_forward_length", 0), hp.get("expert_shared_feed_forward_length", 0)
    n_experts = hp.get("expert_count", 0)
    shapes: dict[str, Shape] = {
        "layer_output_scale": (1,),
        "ffn_gate": (n_ff, n_embd), "ffn_up": (n_ff, n_embd), "ffn_down": (n_embd, n_ff),
        "ffn_gate_inp": (n_experts, n_embd), "ffn_gate_inp_shexp": (n_embd,),
        "attn_sinks": (hp["attention.head_count"],),
        "per_layer_model_proj": (n_own, n_embd), "inp_gate": (n_own, n_embd), "proj": (n_embd, n_own), "post_norm": (n_embd,),
        "ffn_gate_shexp": (shared_ff, n_embd), "ffn_up_shexp": (shared_ff, n_embd), "ffn_down_shexp": (n_embd, shared_ff),
    }  # fmt: skip
    for expert in range(n_experts):
        shapes |= {
            f"ffn_gate.{expert}": (expert_ff, n_embd),
            f"ffn_up.{expert}": (expert_ff, n_embd),
            f"ffn_down.{expert}": (n_embd, expert_ff),
        }
    if architecture.delta_net:
        keys, heads, values = hp["ssm.group_count"] * hp["ssm.state_size"], hp["ssm.time_step_rank"], hp["ssm.inner_size"]
        shapes |= {
            "attn_qkv": (2 * keys + values, n_embd), "ssm_alpha": (heads, n_embd), "ssm_beta": (heads, n_embd), "ssm_a": (heads,),
            "ssm_conv1d": (2 * keys + values, hp["ssm.conv_kernel"]), "ssm_norm": (values // heads,), "ssm_out": (n_embd, values),
        }  # fmt: skip
    norms = (*PRE_NORMS, *POST_NORMS, "post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm_2")
    return shapes | {name: (n_embd,) for name in norms}


def _mixer_names(architecture: Architecture, hp: Hyperparameters, layer: int) -> tuple[str, ...]:
    if shares_keys(layer, hp):
        return ("attn_q", "attn_output")
    if not architecture.delta_net:
        return ATTENTION
    return DELTA_NET if is_recurrent(layer, hp) else GATED_ATTENTION


def _layer_names(architecture: Architecture, hp: Hyperparameters, layer: int) -> list[str]:
    names: list[str] = []
    for name in (*_mixer_names(architecture, hp, layer), *architecture.layer_tensors(hp)):
        if name == "attn_k_norm" and shares_keys(layer, hp):
            continue
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
    if own := hp.get("embedding_length_per_layer_input"):
        required |= {PER_LAYER_TABLE: (n_vocab, hp["block_count"] * own), "per_layer_proj_norm.weight": (own,)}
    for layer in range(hp["block_count"]):
        shapes = _layer_shapes(architecture, hp, layer) | _attention_shapes(architecture, hp, layer)
        recurrent = architecture.delta_net and is_recurrent(layer, hp)
        shapes["attn_gate"] = (hp["ssm.inner_size"] if recurrent else shapes["attn_q"][0], n_embd)
        for name in _layer_names(architecture, hp, layer):
            (optional if name in architecture.optional else required)[f"blk.{layer}.{name}.weight"] = shapes[name]
        if recurrent:
            required |= {f"blk.{layer}.{name}": (hp["ssm.time_step_rank"],) for name in DELTA_NET_VECTORS}
            continue
        if architecture.delta_net:
            optional[f"blk.{layer}.attn_gate.bias"] = shapes["attn_gate"][:1]
        if architecture.expert_biases:
            n_experts, n_ff = hp["expert_count"], hp["expert_feed_forward_length"]
            required |= {f"blk.{layer}.ffn_{name}_exps.bias": (n_experts, n_ff) for name in ("gate", "up")}
            required |= {f"blk.{layer}.ffn_down_exps.bias": (n_experts, n_embd), f"blk.{layer}.ffn_gate_inp.bias": (n_experts,)}
        if architecture.has_experts(hp) and not architecture.is_moe:
            required |= {f"blk.{layer}.{ROUTER_SCALE}": (n_embd,), f"blk.{layer}.{EXPERT_SCALES}": (hp["expert_count"],)}
        for name in ("attn_q", "attn_output") if shares_keys(layer, hp) else ATTENTION:
            chosen = required if name in architecture.biases else optional
            chosen[f"blk.{layer}.{name}.bias"] = shapes[name][:1]
    return required, optional
