"""Fields of a source: whatever stands in them, a conversion is refused by file, field and value, or makes what the reader opens."""

import json
import os
import random
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tiny_models import LLAMA, llama_tensors, save_llama, write_gguf
from turboquant_native import _core
from turboquant_native.common.errors import ConvertError
from turboquant_native.convert.architectures import by_gguf_name, by_model_type
from turboquant_native.convert.container import ContainerWriter
from turboquant_native.convert.fields import CONFIG_FIELDS, GGUF_FIELDS, ROPE_FIELDS
from turboquant_native.convert.hyperparameters import checked_config, hyperparameters_of_config, hyperparameters_of_gguf
from turboquant_native.convert.rope import rope_tensors
from turboquant_native.convert.sources import open_source

ORIGIN = "folder/config.json"
STRANGE: list[Any] = [
    None, True, False, 0, 1, 2, 3, 7, -1, 0.5, 1.5, 1e-300, 1e308, float("inf"), float("-inf"), float("nan"), 2**31 - 1, 2**63, 10**400,
    "", "4", "linear", "\ud800", [], [1], [None, "x"], [[[]]], {}, {"rope_type": "linear"}, {"factor": 0, "rope_type": "linear"},
]  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
_LONGROPE = {"rope_type": "longrope", "long_factor": [2.0] * 6, "short_factor": [1.0] * 6, "original_max_position_embeddings": 16}
_GEMMA4 = {
    "head_dim": 12, "global_head_dim": 16, "num_global_key_value_heads": 1, "attention_k_eq_v": True, "hidden_size_per_layer_input": 0,
    "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"], "per_layer_config": {"1": {"head_dim": 20}},
    "rope_parameters": {"full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25}, "sliding_attention": {}},
}  # fmt: skip
_YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 8.0, "mscale": 1.0, "mscale_all_dim": 0.5,
}  # fmt: skip
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 12}
_NESTED = {"full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
CONFIGS: list[dict[str, Any]] = [
    {**LLAMA, "rope_scaling": _LLAMA3},
    {**LLAMA, "model_type": "phi3", "rope_scaling": _LONGROPE, "sliding_window": 8},
    {**LLAMA, "model_type": "qwen3_moe", **_MOE},
    {**LLAMA, "model_type": "gemma3_text", "rope_parameters": _NESTED, "sliding_window": 8, "layer_types": ["sliding_attention"] * 2},
    {**LLAMA, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
    {**LLAMA, "model_type": "qwen3", "head_dim": 12, "rope_scaling": _YARN},
    {**LLAMA, "model_type": "olmo3", "rope_parameters": {"full_attention": _YARN}, "sliding_window": 8},
    {**LLAMA, "model_type": "smollm3", "no_rope_layers": [1, 0], "use_sliding_window": True, "sliding_window": 8},
    {**LLAMA, "model_type": "ministral3", "head_dim": 12, "rope_parameters": {**_YARN, "llama_4_scaling_beta": 0.1}},
    {**LLAMA, "model_type": "gemma4_text", **_GEMMA4},
    {**LLAMA, "model_type": "gpt_oss", "head_dim": 12, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    {**LLAMA, "model_type": "granite", "attention_multiplier": 0.5, "logits_scaling": 2.0},
]

# What the reader says of a header that it accepts, when the tensors are not there.
WITHOUT_TENSORS = re.compile(r"missing tensors|takes \d+ tensors or more; the file has")


def hyperparameters(config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(GGUF architecture, hyperparameters) of a config, as a conversion finds them."""
    config = checked_config(ORIGIN, config)
    architecture = by_model_type(config["model_type"])
    values = hyperparameters_of_config(ORIGIN, architecture, config)
    rope_tensors(ORIGIN, architecture, {**architecture.defaults, **config}, values)
    return architecture.gguf, values


def refusal(path: Path, architecture: str, values: dict[str, Any]) -> str:
    """What the reader says of a file with these hyperparameters and no tensors."""
    with ContainerWriter(path, architecture, overwrite=True) as out:
        for key, value in values.items():
            out.add_metadata(f"{architecture}.{key}", value)
        out.add_tensor("none", np.zeros(1, np.float32))
        out.finish()
    with pytest.raises(_core.FormatError) as caught:
        _core.Model(str(path))
    return str(caught.value)


def mutated(config: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    """One to three fields, of the config or of its rope, changed or taken away."""
    out = json.loads(json.dumps(config))
    for _ in range(dice.randint(1, 3)):
        ropes = [(out[key], ROPE_FIELDS) for key in ("rope_scaling", "rope_parameters") if isinstance(out.get(key), dict)]
        place, fields = dice.choice([(out, CONFIG_FIELDS), *ropes])
        name = dice.choice(sorted(fields.keys() & place.keys()) if dice.random() < 0.6 and fields.keys() & place.keys() else sorted(fields))
        if dice.random() < 0.1:
            place.pop(name, None)
        else:
            place[name] = dice.choice(STRANGE)
    return out


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: str(config["model_type"]))
def test_mutated_configs_are_refused_or_open(tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    hyperparameters(config)  # as it is, it converts
    dice, accepted, refused = random.Random(7), 0, 0
    for _ in range(400):
        changed = mutated(config, dice)
        try:
            architecture, values = hyperparameters(changed)
        except ConvertError as error:
            assert ORIGIN in str(error) or "is not supported" in str(error), changed
            assert len(str(error)) < 1000
            refused += 1
            continue
        accepted += 1
        assert WITHOUT_TENSORS.search(refusal(tmp_path / "m.gguf", architecture, values)), changed
    assert accepted > 20 and refused > 100


def test_mutated_gguf_metadata_is_refused_or_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    whole = {
        "context_length": 64, "embedding_length": 48, "block_count": 2, "feed_forward_length": 80, "attention.head_count": 4,
        "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 1e4,
    }  # fmt: skip
    dice, accepted = random.Random(3), 0
    for _ in range(600):
        changed = dict(whole)
        for name in dice.sample(sorted(GGUF_FIELDS), dice.randint(1, 2)):
            changed[name] = dice.choice(STRANGE)
        for name in dice.sample(sorted(changed), dice.randint(0, 1)):
            del changed[name]
        metadata = {f"llama.{key}": value for key, value in changed.items()}
        architecture = by_gguf_name("llama", has_experts=bool(changed.get("expert_count")))
        try:
            values = hyperparameters_of_gguf("m.gguf", architecture, metadata, 320)
        except ConvertError as error:
            assert "m.gguf" in str(error), changed
            continue
        accepted += 1
        assert WITHOUT_TENSORS.search(refusal(tmp_path / "m.gguf", "llama", values)), changed
    assert accepted > 50


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"max_position_embeddings": None}, "max_position_embeddings is None, expected a whole number from 1 to 1073741824"),
        ({"max_position_embeddings": 2**31 - 1}, "max_position_embeddings is 2147483647, expected"),
        ({"rope_theta": 0.5}, "rope_theta is 0.5, expected a number from 1 to"),
        ({"partial_rotary_factor": 2.0}, "partial_rotary_factor is 2.0, expected a number above 0 and at most 1"),
        ({"rms_norm_eps": 1.5}, "rms_norm_eps is 1.5, expected a number from 0 to 1"),
        ({"head_dim": 11}, "head_dim is 11, expected an even number"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3, expected a divisor of num_attention_heads, 4"),
        ({"quantization_config": "gptq"}, "quantization_config is 'gptq', expected an object"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope scaling 'linear': has no entry 'factor'"),
        ({"rope_scaling": {**_LLAMA3, "factor": -1}}, "rope_scaling.factor is -1, expected a number from 0.001"),
        ({"rope_scaling": {**_LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor is 1.0, expected more than low_freq_factor, 1.0"),
        (
            {"rope_scaling": {**_LONGROPE, "long_factor": [1.0, 0.0]}},
            "rope_scaling.long_factor is list, expected a list of numbers",
        ),
        ({"hidden_size": 10**400}, "hidden_size is a number of more than 60 digits"),
        ({"model_type": "qwen3_moe", **_MOE, "num_experts_per_tok": 5}, "num_experts_per_tok is 5, expected 1 to num_experts, 4"),
        ({"model_type": "qwen3", "sliding_window": 4, "layer_types": ["full_attention"]}, "layer_types has 1 entries"),
        ({"text_config": {"hidden_size": "x"}}, "text_config.hidden_size is 'x'"),
        ({"eos_token_id": "2"}, "eos_token_id is '2', expected a token's number, or a list of them"),
        ({"bos_token_id": [1, True]}, "bos_token_id is list, expected a token's number"),
        ({"pad_token_id": 1.0}, "pad_token_id is 1.0, expected a token's number"),
    ],
)
def test_a_refusal_names_field_value_and_what_was_expected(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ConvertError) as caught:
        hyperparameters({**LLAMA, **entries})
    assert str(caught.value).startswith(ORIGIN + ": ") and message in str(caught.value)


def test_original_context_at_top_level(tmp_path: Path) -> None:
    """transformers prefers it to the one in rope_scaling; without any, the model's own context counts."""
    scaling = {key: value for key, value in _LLAMA3.items() if key != "original_max_position_embeddings"}
    configs = {
        "inside": {**LLAMA, "rope_scaling": {**scaling, "original_max_position_embeddings": 32}},
        "top": {**LLAMA, "rope_scaling": scaling, "original_max_position_embeddings": 32},
        "both": {**LLAMA, "rope_scaling": {**scaling, "original_max_position_embeddings": 8}, "original_max_position_embeddings": 32},
    }
    factors = [open_source(str(save_llama(tmp_path / name, config))).read("rope_freqs.weight") for name, config in configs.items()]
    np.testing.assert_array_equal(factors[0], factors[1])
    np.testing.assert_array_equal(factors[0], factors[2])
    none = open_source(str(save_llama(tmp_path / "none", {**LLAMA, "rope_scaling": scaling}))).read("rope_freqs.weight")
    own = {**LLAMA, "rope_scaling": {**scaling, "original_max_position_embeddings": LLAMA["max_position_embeddings"]}}
    np.testing.assert_array_equal(none, open_source(str(save_llama(tmp_path / "own", own))).read("rope_freqs.weight"))


# --- small files that ask for much


@pytest.mark.parametrize(
    "entries",
    [
        {"num_hidden_layers": 4096},
        {"model_type": "qwen3_moe", **_MOE, "num_hidden_layers": 2, "num_experts": 4096},
        {"model_type": "qwen3_moe", **_MOE, "num_hidden_layers": 4096, "num_experts": 4096},
        {"head_dim": 2**29},
    ],
)
def test_more_than_the_files_hold_is_refused_at_once(tmp_path: Path, entries: dict[str, Any]) -> None:
    import tracemalloc

    folder = save_llama(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({**LLAMA, **entries}))
    tracemalloc.start()
    with pytest.raises(ConvertError) as caught:
        open_source(str(folder))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20 and len(str(caught.value)) < 2000


def test_a_stack_of_no_experts(tmp_path: Path) -> None:
    """10**9 experts of no bytes: safetensors allows a dimension of 0."""
    folder = save_llama(tmp_path / "model", {**LLAMA, "model_type": "qwen3_moe", **_MOE})
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "model.layers.0.mlp.experts.gate_up_proj": np.zeros((10**9, 0, 48), np.float32)}, folder / "model.safetensors")
    with pytest.raises(ConvertError):
        open_source(str(folder))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "other.safetensors", "config.json", "tokenizer.json", "model.safetensors.index.json"]
)
@pytest.mark.parametrize("kind", ["fifo", "folder", "dangling", "loop"])
def test_only_regular_files_are_read(tmp_path: Path, name: str, kind: str) -> None:
    folder = save_llama(tmp_path / "model")
    for file in {name, "model.safetensors" if "safetensors" in name else name}:
        (folder / file).unlink(missing_ok=True)
    make = {"fifo": os.mkfifo, "folder": os.mkdir, "dangling": lambda p: p.symlink_to("nothing"), "loop": lambda p: p.symlink_to(p.name)}
    make[kind](folder / name)
    with pytest.raises(ConvertError, match=name):
        open_source(str(folder))


def test_a_stale_index_beside_a_whole_file(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "model")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "model-00001-of-00002.safetensors"}}))
    assert open_source(str(folder)).shapes


@pytest.mark.parametrize("weight_map", [None, [], {"x": 1}, {"x": ["a"]}, "x"])
def test_an_index_that_is_none(tmp_path: Path, weight_map: Any) -> None:
    folder = save_llama(tmp_path / "model", shards=2)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ConvertError, match=r"index\.json: weight_map is"):
        open_source(str(folder))


def test_deep_json_is_refused(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "model")
    (folder / "config.json").write_text('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(ConvertError, match=r"config\.json: cannot be read"):
        open_source(str(folder))


def test_gguf_types_and_factors_are_checked_before_the_work(tmp_path: Path) -> None:
    extra = {"rope_freqs.weight": np.array([1, 1, 1, -2, 1, 1], np.float32)}
    path = write_gguf(tmp_path / "m.gguf", "llama", LLAMA, llama_tensors(), extra_tensors=extra)
    with pytest.raises(ConvertError, match=r"rope_freqs.weight\[3\] is -2.0, expected a finite number above 0"):
        open_source(str(path))
    writer = gguf.GGUFWriter(tmp_path / "i.gguf", "llama")
    tensors = {"token_embd.weight": np.zeros((320, 48), np.int32)}
    for name, value in (("context_length", 64), ("embedding_length", 48), ("block_count", 1)):
        writer.add_uint32(f"llama.{name}", value)
    writer.add_uint32("llama.attention.head_count", 4)
    writer.add_uint32("llama.feed_forward_length", 80)
    for name, w in tensors.items():
        writer.add_tensor(name, w)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ConvertError, match=r"i\.gguf"):
        open_source(str(tmp_path / "i.gguf"))
