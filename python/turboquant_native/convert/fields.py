"""Every field that a conversion reads from a source: its type, its range, and what was expected, in one table for each kind of source.

The ranges of `GGUF_FIELDS` are those of the reader (cpp/model/architectures.cpp): what passes here can be opened later. `CONFIG_FIELDS`
maps the fields of a config.json to the same ranges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..common.errors import ConvertError

_MAX_DIM, _MAX_LAYERS, _MAX_CONTEXT, _MAX_EXPERTS, _MAX_SCALE = 1 << 20, 4096, 1 << 30, 4096, 1e6
MAX_TEXT_BYTES = 65535  # of a short text: a name, a type, a key of GGUF metadata


@dataclass(frozen=True)
class Rule:
    """What a value must be.

    Attributes:
        expected: in words, for the message.
        accept: the value in its proper type; raises ValueError where it is none.
        optional: null is as good as absent.
    """

    expected: str
    accept: Callable[[Any], Any]
    optional: bool = False

    def or_null(self) -> Rule:
        return Rule(self.expected, self.accept, optional=True)


def shown(value: Any, limit: int = 60) -> str:
    """A value for a message: JSON may hold megabytes."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**limit:
        return "a number of more than 60 digits"
    text = repr(value) if isinstance(value, str | int | float | bool | None) else type(value).__name__
    return text if len(text) <= limit else text[:limit] + "..."


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def integer(low: int, high: int) -> Rule:
    def accept(value: Any) -> int:
        if not _is_number(value) or not low <= value <= high or value != int(value):
            raise ValueError
        return int(value)

    return Rule(f"a whole number from {low} to {high}", accept)


def number(low: float, high: float, above: bool = False) -> Rule:
    """above: `low` itself is refused."""

    def accept(value: Any) -> float:
        if not _is_number(value) or not low <= value <= high or (above and value == low):
            raise ValueError
        return float(value)

    return Rule(f"a number {'above' if above else 'from'} {low:g} {'and at most' if above else 'to'} {high:g}", accept)


def _accept_pattern(value: Any) -> int | list[bool]:
    if isinstance(value, list):
        return [_accept_flag(use) for use in value]
    return int(integer(0, _MAX_LAYERS).accept(value))


def _accept_token_ids(value: Any) -> Any:
    """Ids beyond the vocabulary, -1 among them, are left out later: configs in use have them."""
    if any(type(one) is not int for one in (value if isinstance(value, list) else [value])):
        raise ValueError
    return value


def _one_or_each(low: int) -> Rule:
    number = integer(low, _MAX_DIM)

    def accept(value: Any) -> int | list[int]:
        return [number.accept(one) for one in value] if isinstance(value, list) else int(number.accept(value))

    return Rule(f"a whole number from {low} to {_MAX_DIM}, or one for each layer", accept)


def _accept_attention(value: Any) -> Any:
    """Whether some positions see later ones: a kind of input ("vision": images alone), or true or false."""
    return value if isinstance(value, str) and len(value) < MAX_TEXT_BYTES else _accept_flag(value)


def _accept_flag(value: Any) -> bool:
    if value not in (0, 1) or not isinstance(value, bool | int):
        raise ValueError
    return bool(value)


def accept_text(value: Any) -> str:
    """Text that a file can hold; lone surrogates, which JSON can write, it cannot."""
    if not isinstance(value, str) or len(value.encode("utf-8", "surrogateescape")) > MAX_TEXT_BYTES:
        raise ValueError
    return value


def _accept_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError
    return value


def many(rule: Rule, what: str) -> Rule:
    """A list of values that each pass `rule`."""

    def accept(value: Any) -> list[Any]:
        if not isinstance(value, list | tuple):
            raise ValueError
        return [rule.accept(item) for item in value]

    return Rule(f"a list of {what}", accept)


FLAG, TEXT, OBJECT = Rule("true or false", _accept_flag), Rule("a text", accept_text), Rule("an object", _accept_object)
_PATTERN = Rule(f"a whole number from 0 to {_MAX_LAYERS}, or true or false for each layer", _accept_pattern)
_SCALE, _FACTOR, _BASE = number(0, _MAX_SCALE), number(1e-3, _MAX_SCALE), number(1, 1e12)

# Of a config.json and a generation_config.json.
_TOKEN_IDS = Rule("a token's number, or a list of them", _accept_token_ids, optional=True)
TOKEN_ID_FIELDS: dict[str, Rule] = {f"{kind}_token_id": _TOKEN_IDS for kind in ("bos", "eos", "unk", "pad")}

# Keys under the architecture's name, in the source and in the file that is written.
GGUF_FIELDS: dict[str, Rule] = {
    "context_length": integer(1, _MAX_CONTEXT),
    "embedding_length": integer(1, _MAX_DIM),
    "block_count": integer(1, _MAX_LAYERS),
    "feed_forward_length": _one_or_each(0),
    "embedding_length_per_layer_input": integer(0, _MAX_DIM),
    "attention.shared_kv_layers": integer(0, _MAX_LAYERS),
    "vocab_size": integer(1, 2**31 - 1),
    "attention.head_count": integer(1, _MAX_DIM),
    "attention.head_count_kv": _one_or_each(1),
    "attention.key_length": integer(2, _MAX_DIM),
    "attention.value_length": integer(2, _MAX_DIM),
    "attention.key_length_swa": integer(2, _MAX_DIM),
    "attention.value_length_swa": integer(2, _MAX_DIM),
    "rope.dimension_count_swa": integer(2, _MAX_DIM),
    "attention.sliding_window": integer(0, _MAX_CONTEXT),
    "attention.sliding_window_pattern": _PATTERN,
    "attention.layer_norm_rms_epsilon": number(0, 1),
    "attention.scale": number(0, _MAX_SCALE, above=True),
    "attention.temperature_scale": number(0, 1e3),
    "attention.temperature_length": integer(1, _MAX_CONTEXT),
    "rope.layer_pattern": _PATTERN,
    "attention.recurrent_layers": _PATTERN,
    "full_attention_interval": integer(0, _MAX_LAYERS),
    "ssm.conv_kernel": integer(2, 16),
    "ssm.state_size": integer(1, 4096),
    "ssm.group_count": integer(1, _MAX_DIM),
    "ssm.time_step_rank": integer(1, _MAX_DIM),
    "ssm.inner_size": integer(1, _MAX_DIM),
    "rope.dimension_count": integer(2, _MAX_DIM),
    "rope.freq_base": _BASE,
    "rope.freq_base_swa": _BASE,
    "rope.scaling.type": TEXT,
    "rope.scaling.factor": _FACTOR,
    "rope.scaling.attn_factor": number(1e-3, 1e3),
    "rope.scaling.original_context_length": integer(1, _MAX_CONTEXT),
    "rope.scaling.yarn_beta_fast": number(1e-3, _MAX_SCALE),
    "rope.scaling.yarn_beta_slow": number(1e-3, _MAX_SCALE),
    "rope.scaling.yarn_truncate": FLAG,
    "rope.scaling.yarn_log_multiplier": number(0, 1e3),
    "attn_logit_softcapping": _SCALE,
    "final_logit_softcapping": _SCALE,
    "embedding_scale": _SCALE,
    "residual_scale": _SCALE,
    "logit_scale": number(1e-6, _MAX_SCALE),
    "expert_count": integer(0, _MAX_EXPERTS),
    "expert_used_count": integer(0, _MAX_EXPERTS),
    "expert_feed_forward_length": integer(1, _MAX_DIM),
    "expert_shared_feed_forward_length": integer(0, _MAX_DIM),
    "expert_weights_norm": FLAG,
    "pooling_type": integer(0, 4),
}

_POSITIVE = number(0, _MAX_SCALE, above=True)
CONFIG_FIELDS: dict[str, Rule] = {
    **TOKEN_ID_FIELDS,
    "model_type": TEXT,
    "id2label": OBJECT.or_null(),
    "architectures": many(TEXT, "texts").or_null(),
    "text_config": OBJECT.or_null(),
    "quantization_config": OBJECT.or_null(),
    "_model_name_or_path": TEXT.or_null(),
    "hidden_act": TEXT.or_null(),
    "hidden_activation": TEXT.or_null(),
    "use_bidirectional_attention": Rule("true, false or a kind of input", _accept_attention, optional=True),
    "tie_word_embeddings": FLAG.or_null(),
    "max_position_embeddings": GGUF_FIELDS["context_length"],
    "original_max_position_embeddings": integer(2, _MAX_CONTEXT).or_null(),
    "hidden_size": GGUF_FIELDS["embedding_length"],
    "num_hidden_layers": GGUF_FIELDS["block_count"],
    "intermediate_size": integer(0, _MAX_DIM),
    "vocab_size": GGUF_FIELDS["vocab_size"],
    "num_attention_heads": GGUF_FIELDS["attention.head_count"],
    "num_key_value_heads": integer(1, _MAX_DIM).or_null(),
    "num_global_key_value_heads": integer(1, _MAX_DIM).or_null(),
    "global_head_dim": integer(2, _MAX_DIM).or_null(),
    "per_layer_config": OBJECT.or_null(),
    "attention_k_eq_v": FLAG.or_null(),
    "hidden_size_per_layer_input": integer(0, _MAX_DIM).or_null(),
    "num_kv_shared_layers": integer(0, _MAX_LAYERS).or_null(),
    "enable_moe_block": FLAG.or_null(),
    "use_double_wide_mlp": FLAG.or_null(),
    "top_k_experts": integer(0, _MAX_EXPERTS).or_null(),
    "head_dim": GGUF_FIELDS["attention.key_length"].or_null(),
    "rms_norm_eps": GGUF_FIELDS["attention.layer_norm_rms_epsilon"],
    "sliding_window": GGUF_FIELDS["attention.sliding_window"].or_null(),
    "use_sliding_window": FLAG.or_null(),
    "layer_types": many(TEXT, "texts").or_null(),
    "max_window_layers": integer(0, 2**31 - 1).or_null(),
    "sliding_window_pattern": integer(0, _MAX_LAYERS).or_null(),
    "_sliding_window_pattern": integer(0, _MAX_LAYERS).or_null(),
    "no_rope_layers": many(FLAG, "true or false").or_null(),
    "no_rope_layer_interval": integer(1, _MAX_LAYERS),
    "query_pre_attn_scalar": number(1e-12, 1e12),
    "attn_logit_softcapping": GGUF_FIELDS["attn_logit_softcapping"].or_null(),
    "final_logit_softcapping": GGUF_FIELDS["final_logit_softcapping"].or_null(),
    "attention_multiplier": GGUF_FIELDS["attention.scale"],
    "embedding_multiplier": GGUF_FIELDS["embedding_scale"],
    "residual_multiplier": GGUF_FIELDS["residual_scale"],
    "logits_scaling": GGUF_FIELDS["logit_scale"],
    "num_experts": GGUF_FIELDS["expert_count"].or_null(),
    "num_local_experts": GGUF_FIELDS["expert_count"].or_null(),
    "num_experts_per_tok": integer(0, _MAX_EXPERTS).or_null(),
    "moe_intermediate_size": integer(0, _MAX_DIM).or_null(),
    "shared_expert_intermediate_size": GGUF_FIELDS["expert_shared_feed_forward_length"].or_null(),
    "norm_topk_prob": FLAG.or_null(),
    "swiglu_alpha": number(0, _MAX_SCALE),
    "swiglu_limit": number(0, _MAX_SCALE),
    "mlp_only_layers": many(integer(0, _MAX_LAYERS), "layer numbers").or_null(),
    "decoder_sparse_step": integer(0, _MAX_LAYERS).or_null(),
    "full_attention_interval": GGUF_FIELDS["full_attention_interval"].or_null(),
    "linear_conv_kernel_dim": GGUF_FIELDS["ssm.conv_kernel"],
    "linear_key_head_dim": GGUF_FIELDS["ssm.state_size"],
    "linear_value_head_dim": integer(1, 4096),
    "linear_num_key_heads": GGUF_FIELDS["ssm.group_count"],
    "linear_num_value_heads": GGUF_FIELDS["ssm.time_step_rank"],
    "rope_theta": _BASE.or_null(),
    "rope_local_base_freq": _BASE.or_null(),
    "partial_rotary_factor": number(0, 1, above=True).or_null(),
    "rope_scaling": OBJECT.or_null(),
    "rope_parameters": OBJECT.or_null(),
}
PER_LAYER_FIELDS: dict[str, Rule] = {"head_dim": integer(2, _MAX_DIM), "num_key_value_heads": integer(1, _MAX_DIM)}
ROPE_FIELDS: dict[str, Rule] = {
    "rope_type": TEXT.or_null(),
    "type": TEXT.or_null(),
    "rope_theta": _BASE.or_null(),
    "factor": _FACTOR.or_null(),
    "low_freq_factor": _POSITIVE,
    "high_freq_factor": _POSITIVE,
    "original_max_position_embeddings": integer(2, _MAX_CONTEXT).or_null(),
    "attention_factor": GGUF_FIELDS["rope.scaling.attn_factor"].or_null(),
    "partial_rotary_factor": CONFIG_FIELDS["partial_rotary_factor"],
    "beta_fast": GGUF_FIELDS["rope.scaling.yarn_beta_fast"].or_null(),
    "beta_slow": GGUF_FIELDS["rope.scaling.yarn_beta_slow"].or_null(),
    "truncate": FLAG.or_null(),
    "mscale": number(0, 1e3).or_null(),
    "mscale_all_dim": GGUF_FIELDS["rope.scaling.yarn_log_multiplier"].or_null(),
    "llama_4_scaling_beta": GGUF_FIELDS["attention.temperature_scale"].or_null(),
    "long_factor": many(_POSITIVE, "numbers above 0"),
    "short_factor": many(_POSITIVE, "numbers above 0"),
    "full_attention": OBJECT.or_null(),
    "sliding_attention": OBJECT.or_null(),
}


def checked(origin: str, table: Mapping[str, Rule], values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values, those of the table in their proper types; ConvertError names file, field, value and what was expected.

    Args:
        origin: the file. prefix: of the field's name in the message.
    """
    out = dict(values)
    for name in table.keys() & values.keys():
        rule, value = table[name], values[name]
        if value is None and rule.optional:
            continue
        try:
            out[name] = rule.accept(value)
        except (ValueError, OverflowError):
            raise refused(origin, prefix + name, value, rule.expected) from None
    return out


def refused(origin: str, name: str, value: Any, expected: str) -> ConvertError:
    return ConvertError(f"{origin}: {name} is {shown(value)}, expected {expected}")


def required(origin: str, values: Mapping[str, Any], names: Iterable[str]) -> None:
    """ConvertError for the first that is absent or null."""
    for name in names:
        if values.get(name) is None:
            raise ConvertError(f"{origin}: has no entry {name!r}")
