"""Every architecture: a tiny random transformers model, converted without loss, gives transformers' logits: prompts in one pass, token by
token, and past the sliding window."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turboquant_native import convert_hf_to_tq
from turboquant_native._core import Context, Model, architectures

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCAB, TOKENS, SEED = 96, 48, 7
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
EXPERTS = {"moe_intermediate_size": 40, "num_experts": 6, "num_experts_per_tok": 2}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-odd-heads": ("llama", {"hidden_size": 60, "num_attention_heads": 5, "num_key_value_heads": 1, "intermediate_size": 92}),
    "llama-wide-heads": ("llama", {"head_dim": 16, "tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True}),
    "llama-linear-rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "llama-3-rope": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "mistral-window": ("mistral", {"sliding_window": 16}),
    "mixtral": ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 12}),
    "qwen2-moe": ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 52, "norm_topk_prob": False}),
    "qwen3-moe": ("qwen3_moe", {**EXPERTS, "head_dim": 12, "norm_topk_prob": True}),
    "gemma2": ("gemma2", {"head_dim": 12, "sliding_window": 16, "query_pre_attn_scalar": 10}),
    "gemma3": ("gemma3_text", {"head_dim": 12, "sliding_window": 16, "num_hidden_layers": 6, "query_pre_attn_scalar": 10}),
    "phi3": ("phi3", {"original_max_position_embeddings": 64}),
    "phi3-partial-rope": (
        "phi3",
        {
            "num_attention_heads": 3,
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
                "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "olmo2": ("olmo2", {}),
    "granite": (
        "granite",
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2, "logits_scaling": 2.0},
    ),
}


def random_model(model_type: str, options: dict[str, Any]) -> Any:
    """Weights large enough that every part shows in the logits: norms, biases and routers are random too."""
    torch.manual_seed(SEED)
    config = transformers.AutoConfig.for_model(model_type, **{**COMMON, **options})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(
                parameter + 0.2 * noise if "norm" in name else noise * (0.3 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5)
            )
    return model


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path]:
    model = random_model(*CASES[request.param])
    model.save_pretrained(tmp_path / "hf")
    assert convert_hf_to_tq.main([str(tmp_path / "hf"), str(tmp_path / "model.gguf"), "--outtype", "f32", "--quiet"]) == 0
    return model, tmp_path / "model.gguf"


def reference_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens[None].astype(np.int64))).logits[0].numpy()


def test_logits_equal_transformers(case: tuple[Any, Path]) -> None:
    model, path = case
    tokens = np.random.default_rng(SEED).integers(0, VOCAB, TOKENS).astype(np.int32)
    expected = reference_logits(model, tokens)
    assert np.abs(expected).max() > 0.5
    context = Context(Model(str(path), precision="f32"))
    np.testing.assert_allclose(context.eval(tokens, 0, logits="all"), expected, rtol=0, atol=1e-4)
    for i in range(TOKENS):
        np.testing.assert_allclose(context.eval(tokens[i : i + 1], i), expected[i], rtol=0, atol=1e-4)


def kld(expected: np.ndarray, found: np.ndarray) -> float:
    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64) - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    p, q = log_softmax(expected), log_softmax(found)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def test_eight_bits_lose_little(case: tuple[Any, Path], tmp_path: Path) -> None:
    model, _ = case
    assert convert_hf_to_tq.main([str(tmp_path / "hf"), str(tmp_path / "packed.gguf"), "--bits", "8", "--quiet"]) == 0
    tokens = np.random.default_rng(SEED).integers(0, VOCAB, TOKENS).astype(np.int32)
    found = Context(Model(str(tmp_path / "packed.gguf"))).eval(tokens, 0, logits="all")
    assert kld(reference_logits(model, tokens), found) < 0.01


def test_every_architecture_is_covered() -> None:
    covered = {model_type.removesuffix("_text").replace("_", "") for model_type, _ in CASES.values()}
    assert covered >= set(architectures()) - {"gemma"}
