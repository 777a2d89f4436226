"""Tiny random models of every architecture, several configurations each, as transformers makes them, and what it computes with them."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turboquant_native import _core
from turboquant_native.convert.architectures import ARCHITECTURES
from turboquant_native.convert.conversion import Options, make_plan, write_model
from turboquant_native.convert.sources import open_source

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4  # of logits of order 1
N_PROMPT, N_TOKENS, N_GREEDY = 24, 40, 64

BASE = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip


def _longrope(original: int, dims: int = 12, partial: float = 1.0) -> dict[str, Any]:
    rope = {"rope_type": "longrope", "rope_theta": 1000.0, "partial_rotary_factor": partial, "original_max_position_embeddings": original}
    factors = {"short_factor": [1.0 + 0.02 * i for i in range(dims // 2)], "long_factor": [1.0 + 0.5 * i for i in range(dims // 2)]}
    return {"rope_parameters": rope | factors, "original_max_position_embeddings": original}


def _yarn(factor: float = 4.0, original: int = 16, **more: Any) -> dict[str, Any]:
    rope = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": factor, "original_max_position_embeddings": original}
    return rope | more


def _yarn_keys(factor: float = 4.0, original: int = 16, **more: Any) -> dict[str, Any]:
    """llama.cpp's."""
    return {
        "rope.scaling.type": "yarn", "rope.scaling.factor": factor, "rope.scaling.original_context_length": original,
        **{f"rope.scaling.{key}": value for key, value in more.items()},
    }  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A configuration: what it changes of BASE, and the keys that llama.cpp's GGUF files of it have beyond the common ones."""

    name: str
    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    apart: bool = False  # goes through every test, though it is not the first of its architecture

    @property
    def gguf(self) -> str:
        return ARCHITECTURES[self.model_type].gguf


_SCALE = {"attention.scale": 10**-0.5}
_HEAD = {"attention.key_length": 16, "attention.value_length": 16, "rope.dimension_count": 16}
_MOE_KEYS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 10, "sliding_window": 8, "num_hidden_layers": 4}
_DELTA = {
    "head_dim": 16, "num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 12, "linear_num_value_heads": 4,
    "linear_value_head_dim": 20, "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5},
}  # fmt: skip
_DELTA_KEYS = _HEAD | {
    "rope.dimension_count": 8, "ssm.group_count": 2, "ssm.state_size": 12, "ssm.time_step_rank": 4, "ssm.inner_size": 80,
    "ssm.conv_kernel": 4, "full_attention_interval": 4,
}  # fmt: skip
_DELTA_MOE = MOE | {"shared_expert_intermediate_size": 40, "norm_topk_prob": True, "num_hidden_layers": 4}
_DELTA_MOE_KEYS = _MOE_KEYS | {"expert_shared_feed_forward_length": 40}
_SLIDING, _FULL = "sliding_attention", "full_attention"
_GEMMA4 = {"head_dim": 16, "global_head_dim": 24, "sliding_window": 8, "vocab_size_per_layer_input": BASE["vocab_size"]}
_GEMMA4_KEYS = {
    "attention.key_length": 24, "attention.value_length": 24, "attention.key_length_swa": 16, "attention.value_length_swa": 16,
    "rope.dimension_count": 24, "rope.dimension_count_swa": 16, "attention.sliding_window": 8, "rope.freq_base_swa": 10000.0,
}  # fmt: skip
CASES = [
    Case("llama-gqa", "llama"),
    Case("llama-odd", "llama", {"hidden_size": 54, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 70}),
    Case("llama-tied-bias", "llama", {"tie_word_embeddings": True, "attention_bias": True}),
    Case("llama-heads", "llama", {"head_dim": 16, "num_key_value_heads": 1}, _HEAD),
    Case(
        "llama-linear",
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000.0}},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
    ),
    Case("llama-llama3", "llama", {"rope_parameters": LLAMA3}),
    Case("llama-yarn", "llama", {"rope_parameters": _yarn()}, _yarn_keys()),
    Case(
        "llama-yarn-options",
        "llama",
        {"head_dim": 64, "rope_parameters": _yarn(8.0, 64, beta_fast=6.0, beta_slow=2.0, truncate=False, attention_factor=1.3)},
        {"attention.key_length": 64, "attention.value_length": 64, "rope.dimension_count": 64}
        | _yarn_keys(8.0, 64, yarn_beta_fast=6.0, yarn_beta_slow=2.0, yarn_truncate=False, attn_factor=1.3 / (1 + 0.1 * math.log(8))),
    ),
    Case(
        "llama-dynamic-long",  # 40 tokens: twice what the model was trained for
        "llama",
        {"max_position_embeddings": 20, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 2.0}},
        {"rope.scaling.original_context_length": 20, "rope.scaling.attn_factor": 1.0},
    ),
    Case(
        "llama-dynamic-short",
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 4.0}},
        {"rope.scaling.original_context_length": 128, "rope.scaling.attn_factor": 1.0},
    ),
    Case("mistral-full", "mistral", {"sliding_window": None}),
    Case("mistral-window", "mistral", {"sliding_window": 8}, {"attention.sliding_window": 8}),
    Case("qwen2", "qwen2"),
    Case("qwen2-tied-odd", "qwen2", {"tie_word_embeddings": True, "hidden_size": 60, "num_attention_heads": 6, "intermediate_size": 50}),
    Case(
        "qwen2-window",
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
        {"attention.sliding_window": 8},
    ),
    Case(
        "qwen2-mixed-windows",
        "qwen2",
        {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
        {"attention.sliding_window": 8, "attention.sliding_window_pattern": [False, False, False, True]},
    ),
    Case("qwen3", "qwen3", {"head_dim": 16}, _HEAD),
    Case("qwen3-yarn", "qwen3", {"head_dim": 16, "rope_parameters": _yarn(2.0, 32)}, _HEAD | _yarn_keys(2.0, 32)),
    Case("qwen3-tied-bias", "qwen3", {"head_dim": 16, "tie_word_embeddings": True, "attention_bias": True}, _HEAD),
    Case("gemma", "gemma", {"head_dim": 16}, _HEAD),
    Case(
        "gemma2",
        "gemma2",
        _GEMMA | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
        _HEAD | _SCALE | {"attention.sliding_window": 8, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    ),
    Case(
        "gemma3",
        "gemma3_text",
        _GEMMA | {"num_hidden_layers": 7, "sliding_window_pattern": 6},
        _HEAD | _SCALE | {"attention.sliding_window": 8, "rope.freq_base_swa": 10000.0},
    ),
    Case(
        "gemma3-linear",
        "gemma3_text",
        _GEMMA
        | {
            "num_hidden_layers": 6,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
        _HEAD
        | _SCALE
        | {"attention.sliding_window": 8, "rope.freq_base_swa": 100.0}
        | {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    ),
    Case(
        "gemma4",
        "gemma4_text",
        {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "global_head_dim": 24,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "hidden_size_per_layer_input": 0,
            "sliding_window": 8,
            "final_logit_softcapping": 3.0,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "full_attention"],
        },
        {
            "attention.key_length": 24,
            "attention.value_length": 24,
            "attention.key_length_swa": 16,
            "attention.value_length_swa": 16,
            "rope.dimension_count": 24,
            "rope.dimension_count_swa": 16,
            "attention.sliding_window": 8,
            "attention.head_count_kv": [2, 2, 1, 1],
            "attention.sliding_window_pattern": [True, True, False, False],
            "final_logit_softcapping": 3.0,
            "rope.freq_base_swa": 10000.0,
        },
    ),
    Case(
        "gemma4-values-odd",
        "gemma4_text",
        {
            "num_hidden_layers": 7,
            "hidden_size": 54,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "intermediate_size": 70,
            "head_dim": 12,
            "global_head_dim": 20,
            "hidden_size_per_layer_input": 0,
            "sliding_window": 5,
            "use_bidirectional_attention": "vision",
            "rope_parameters": {
                "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 5000.0, "factor": 2.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
        {
            "attention.key_length": 20,
            "attention.value_length": 20,
            "attention.key_length_swa": 12,
            "attention.value_length_swa": 12,
            "rope.dimension_count": 20,
            "rope.dimension_count_swa": 12,
            "attention.sliding_window": 5,
            "rope.freq_base_swa": 100.0,
            "attention.sliding_window_pattern": [True, True, True, True, True, False, False],
        },
    ),
    Case("phi3", "phi3", {"intermediate_size": 72}),
    Case("phi3-window", "phi3", {"sliding_window": 8}, {"attention.sliding_window": 8}),
    Case(
        "phi3-partial",
        "phi3",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}, "tie_word_embeddings": True},
        {"rope.dimension_count": 6},
    ),
    Case(
        "phi3-longrope-short",
        "phi3",
        _longrope(128) | {"max_position_embeddings": 128},
        {"rope.scaling.original_context_length": 128, "rope.scaling.attn_factor": 1.0},
    ),
    Case(
        "phi3-longrope-long",
        "phi3",
        _longrope(16),
        {"rope.scaling.original_context_length": 16, "rope.scaling.attn_factor": math.sqrt(1 + math.log(8) / math.log(16))},
    ),
    Case(
        "phi3-longrope-partial",
        "phi3",
        _longrope(32, dims=8, partial=2 / 3) | {"num_attention_heads": 4, "head_dim": 12},
        {
            "rope.dimension_count": 8,
            "rope.scaling.original_context_length": 32,
            "rope.scaling.attn_factor": math.sqrt(1 + math.log(4) / math.log(32)),
        },
    ),
    Case("olmo2", "olmo2"),
    Case("olmo2-odd", "olmo2", {"hidden_size": 54, "num_attention_heads": 3, "num_key_value_heads": 1, "intermediate_size": 70}),
    Case(
        "olmo3",
        "olmo3",
        {
            "num_hidden_layers": 5,
            "sliding_window": 8,
            "rope_parameters": {"full_attention": _yarn(), "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0}},
        },
        {"attention.sliding_window": 8, "attention.sliding_window_pattern": [True, True, True, False, True]} | _yarn_keys(),
    ),
    Case(
        "olmo3-tied-irregular",
        "olmo3",
        {
            "hidden_size": 54,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "intermediate_size": 70,
            "num_hidden_layers": 3,
            "sliding_window": 8,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "tie_word_embeddings": True,
            "attention_bias": True,
        },
        {"attention.sliding_window": 8, "attention.sliding_window_pattern": [False, True, False]},
    ),
    Case("olmo3-full", "olmo3", {"sliding_window": 8, "layer_types": ["full_attention"] * 2}),
    Case("smollm3", "smollm3", {"num_hidden_layers": 5, "tie_word_embeddings": True}),
    Case(
        "smollm3-odd-bias",
        "smollm3",
        {
            "hidden_size": 54,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "intermediate_size": 70,
            "num_hidden_layers": 4,
            "no_rope_layers": [0, 1, 1, 0],
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
        {"rope.layer_pattern": [False, True, True, False]},
    ),
    Case(
        "smollm3-window-yarn",
        "smollm3",
        {
            "num_hidden_layers": 4,
            "no_rope_layer_interval": 2,
            "use_sliding_window": True,
            "sliding_window": 8,
            "rope_parameters": _yarn(),
        },
        {"attention.sliding_window": 8, "attention.sliding_window_pattern": [False, True, False, True], "rope.layer_pattern": 2}
        | _yarn_keys(),
    ),
    Case("ministral", "ministral", {"num_hidden_layers": 3, "head_dim": 12, "sliding_window": 8}, {"attention.sliding_window": 8}),
    Case(
        "ministral-mixed",
        "ministral",
        {
            "num_hidden_layers": 3,
            "head_dim": 16,
            "sliding_window": 8,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        },
        _HEAD | {"attention.sliding_window": 8, "attention.sliding_window_pattern": [False, True, True]},
    ),
    Case(
        "ministral3",  # 40 tokens: the queries have grown twice
        "ministral3",
        {"head_dim": 16, "rope_parameters": _yarn(mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.5)},
        _HEAD | {"attention.temperature_scale": 0.5} | _yarn_keys(yarn_log_multiplier=1.0),
    ),
    Case(
        "ministral3-tied-window",
        "ministral3",
        {
            "head_dim": 18,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
            "sliding_window": 10,
            "rope_parameters": _yarn(2.0, 12, beta_fast=4.0, mscale=1.0, mscale_all_dim=0.5, llama_4_scaling_beta=0.1),
        },
        {
            "attention.key_length": 18,
            "attention.value_length": 18,
            "rope.dimension_count": 18,
            "attention.sliding_window": 10,
            "attention.temperature_scale": 0.1,
        }
        | _yarn_keys(2.0, 12, yarn_beta_fast=4.0, yarn_log_multiplier=0.5),
    ),
    Case(
        "granite",
        "granite",
        {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2},
        {"embedding_scale": 3.0, "logit_scale": 2.0, "residual_scale": 0.5, "attention.scale": 0.2},
    ),
    Case("granite-tied-bias", "granite", {"tie_word_embeddings": True, "attention_bias": True}, {"attention.scale": 1.0}),
    Case("mixtral", "mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, {"expert_count": 4, "expert_used_count": 2}),
    Case(
        "mixtral-window",
        "mixtral",
        {"num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 8},
        {"expert_count": 3, "expert_used_count": 1, "attention.sliding_window": 8},
    ),
    Case(
        "qwen2_moe",
        "qwen2_moe",
        MOE | {"shared_expert_intermediate_size": 40},
        _MOE_KEYS | {"expert_shared_feed_forward_length": 40},
    ),
    Case(
        "qwen2_moe-norm",
        "qwen2_moe",
        MOE | {"shared_expert_intermediate_size": 40, "norm_topk_prob": True},
        _MOE_KEYS | {"expert_shared_feed_forward_length": 40, "expert_weights_norm": True},
    ),
    Case("qwen3_moe", "qwen3_moe", MOE | {"head_dim": 16, "norm_topk_prob": True}, _HEAD | _MOE_KEYS),
    Case(
        "qwen3_moe-raw",
        "qwen3_moe",
        MOE | {"head_dim": 16, "norm_topk_prob": False, "tie_word_embeddings": True},
        _HEAD | _MOE_KEYS | {"expert_weights_norm": False},
    ),
    Case(
        "gpt_oss",
        "gpt_oss",
        {
            "num_hidden_layers": 3,
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "rope_parameters": _yarn(truncate=False),
        },
        _HEAD | {"attention.sliding_window": 8, "expert_count": 4, "expert_used_count": 2} | _yarn_keys(),
    ),
    Case(
        "gpt_oss-odd",
        "gpt_oss",
        {
            "hidden_size": 60,
            "intermediate_size": 52,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 6,
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "sliding_window": 5,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "layer_types": ["full_attention", "sliding_attention"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
        {
            "attention.key_length": 6,
            "attention.value_length": 6,
            "rope.dimension_count": 6,
            "attention.sliding_window": 5,
            "attention.sliding_window_pattern": [False, True],
            "expert_count": 5,
            "expert_used_count": 3,
        },
    ),
]
CASES += [
    Case("qwen3_5", "qwen3_5_text", _DELTA, _DELTA_KEYS),
    Case(
        "qwen3_5-tied-odd",
        "qwen3_5_text",
        _DELTA
        | {"tie_word_embeddings": True, "hidden_size": 44, "intermediate_size": 60, "linear_num_key_heads": 3, "linear_key_head_dim": 10}
        | {"linear_num_value_heads": 3, "linear_value_head_dim": 21, "linear_conv_kernel_dim": 3, "full_attention_interval": 2},
        _DELTA_KEYS
        | {"ssm.group_count": 3, "ssm.state_size": 10, "ssm.time_step_rank": 3, "ssm.inner_size": 63, "ssm.conv_kernel": 3}
        | {"full_attention_interval": 2},
    ),
    Case(
        "qwen3_5-wide",
        "qwen3_5_text",
        _DELTA
        | {"linear_num_value_heads": 6, "linear_value_head_dim": 48, "linear_key_head_dim": 32, "num_key_value_heads": 4}
        | {"num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"], "attention_bias": True},
        _DELTA_KEYS
        | {"ssm.state_size": 32, "ssm.time_step_rank": 6, "ssm.inner_size": 288, "attention.recurrent_layers": [True, False, True]},
    ),
    # the one compared at 8 bits as a whole: see test_8_bits_layer_by_layer
    Case(
        "qwen3_5_moe-two",
        "qwen3_5_moe_text",
        _DELTA | _DELTA_MOE | {"num_hidden_layers": 2, "full_attention_interval": 2, "tie_word_embeddings": True},
        _DELTA_KEYS | _DELTA_MOE_KEYS | {"full_attention_interval": 2},
    ),
    Case("qwen3_5_moe", "qwen3_5_moe_text", _DELTA | _DELTA_MOE, _DELTA_KEYS | _DELTA_MOE_KEYS),
    Case("qwen3_next", "qwen3_next", _DELTA | _DELTA_MOE, _DELTA_KEYS | _DELTA_MOE_KEYS),
]
CASES += [
    Case(
        "gemma4-e",  # per-layer embeddings; four of seven layers see the keys of layers 1 and 2
        "gemma4_text",
        _GEMMA4
        | {"num_hidden_layers": 7, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 4, "use_double_wide_mlp": True}
        | {"layer_types": [_SLIDING, _SLIDING, _FULL, _SLIDING, _SLIDING, _FULL, _FULL]},
        _GEMMA4_KEYS
        | {"embedding_length_per_layer_input": 8, "attention.shared_kv_layers": 4, "feed_forward_length": [80] * 3 + [160] * 4}
        | {"attention.sliding_window_pattern": [True, True, False, True, True, False, False]},
        apart=True,
    ),
    Case(
        "gemma4-e-odd",  # the full donor is not the last of those with keys; the last full layer alone shares
        "gemma4_text",
        _GEMMA4
        | {"hidden_size": 54, "num_attention_heads": 6, "num_key_value_heads": 3, "num_global_key_value_heads": 2, "attention_k_eq_v": True}
        | {"num_hidden_layers": 4, "hidden_size_per_layer_input": 10, "num_kv_shared_layers": 2}
        | {"layer_types": [_FULL, _SLIDING, _SLIDING, _FULL]},
        _GEMMA4_KEYS
        | {"embedding_length_per_layer_input": 10, "attention.shared_kv_layers": 2, "attention.head_count_kv": [2, 3, 3, 2]}
        | {"attention.sliding_window_pattern": [False, True, True, False]},
    ),
    Case(
        "gemma4-moe",
        "gemma4_text",
        _GEMMA4
        | {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32, "hidden_size_per_layer_input": 0}
        | {"num_hidden_layers": 3, "attention_k_eq_v": True, "layer_types": [_SLIDING, _SLIDING, _FULL]},
        _GEMMA4_KEYS | _MOE_KEYS | {"attention.sliding_window_pattern": [True, True, False]},
        apart=True,
    ),
    Case(
        "gemma4-moe-e-wide",  # all at once, with heads of 256 and 512
        "gemma4_text",
        _GEMMA4
        | {"enable_moe_block": True, "num_experts": 3, "top_k_experts": 1, "moe_intermediate_size": 20, "hidden_size_per_layer_input": 6}
        | {"head_dim": 256, "global_head_dim": 512, "num_attention_heads": 2, "num_key_value_heads": 1, "num_kv_shared_layers": 1}
        | {"num_hidden_layers": 3, "layer_types": [_SLIDING, _FULL, _FULL]},
        _GEMMA4_KEYS
        | {"attention.key_length": 512, "attention.value_length": 512, "rope.dimension_count": 512, "attention.key_length_swa": 256}
        | {"attention.value_length_swa": 256, "rope.dimension_count_swa": 256, "attention.shared_kv_layers": 1}
        | {"expert_count": 3, "expert_used_count": 1, "expert_feed_forward_length": 20, "embedding_length_per_layer_input": 6}
        | {"attention.sliding_window_pattern": [True, False, False]},
    ),
]
ALL = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
CHOSEN = list({case.name if case.apart else case.model_type: case for case in reversed(CASES)}.values())
ONE_EACH = pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.name)


@dataclass
class Reference:
    folder: Path
    model: Any
    tokens: np.ndarray
    logits: np.ndarray


class References(dict[str, Reference]):
    def __init__(self, factory: pytest.TempPathFactory) -> None:
        super().__init__()
        self._factory = factory

    def of(self, case: Case) -> Reference:
        if case.name not in self:
            self[case.name] = self._make(case)
        return self[case.name]

    def _make(self, case: Case) -> Reference:
        torch.manual_seed(len(case.name))
        config = transformers.AutoConfig.for_model(
            case.model_type, **{**BASE, "tie_word_embeddings": case.gguf.startswith("gemma"), **case.config}
        )
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("A_log", "dt_bias")):
                    continue
                centre = (
                    0.0
                    if parameter.dim() > 1 or "bias" in name
                    else (0.2 if case.gguf in ("gemma", "gemma2", "gemma3", "qwen35", "qwen35moe", "qwen3next") else 1.0)
                )
                parameter.copy_(centre + torch.randn_like(parameter) * (0.12 if parameter.dim() > 1 else 0.2))
            for name, buffer in model.named_buffers():
                if name.endswith("layer_scalar"):
                    buffer.fill_(0.6 + 0.05 * len(name))
        folder = self._factory.mktemp(case.name)
        model.save_pretrained(folder)
        tokens = np.random.default_rng(3).integers(2, BASE["vocab_size"], N_TOKENS).astype(np.int32)
        ids = torch.from_numpy(tokens[None].astype(np.int64))
        with torch.no_grad():
            logits = model(ids).logits[0].numpy()
        assert np.abs(logits).max() > 0.5
        return Reference(folder, model, tokens, logits)


def convert(source: Path, target: Path, **options: Any) -> Path:
    opened = open_source(str(source), needs_tokenizer=False)
    write_model(opened, make_plan(opened, Options(**options)), target)
    return target


def context(path: Path, n_ctx: int = 128) -> Any:
    return _core.Context(_core.Model(str(path), threads=1, precision="f32"), n_ctx=n_ctx)


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert np.isfinite(ours).all() and np.abs(ours - theirs).max() <= TOLERANCE


def assert_three_sequences(ctx: _core.Context, reference: Reference) -> None:
    """Rows of three sequences in one pass: a prompt that begins, one that goes on, a single token. ctx: of three slots, empty."""
    ctx.eval(reference.tokens[:13], 0, 1)
    ctx.eval(reference.tokens[:30], 0, 2)
    rows = [(0, p) for p in range(9)] + [(1, p) for p in range(13, 20)] + [(2, 30)]
    slots, positions = (np.array(column, np.int32) for column in zip(*rows, strict=True))
    logits = ctx.forward(reference.tokens[positions], positions, slots, np.arange(len(rows), dtype=np.int32))
    assert_close(logits, reference.logits[positions])
