"""The converter: sources, plan, files, and every error a user can make."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import local_hub
from tiny_models import LLAMA, gguf_tokenizer_keys, llama_tensors, save_llama, train_bpe, write_gguf
from turboquant_native._core import GgufFile
from turboquant_native.commands import convert as convert_hf_to_tq
from turboquant_native.common.errors import ConvertError
from turboquant_native.convert import conversion
from turboquant_native.convert.architectures import ARCHITECTURES, TEXT_MODELS, by_model_type
from turboquant_native.convert.conversion import Options, make_plan, write_model
from turboquant_native.convert.sources import open_source


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_llama(tmp_path / "model")


def convert(*arguments: Any) -> int:
    return convert_hf_to_tq.main([str(argument) for argument in arguments])


def fails(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """Run the converter, which must fail with one line; returns it."""
    assert convert(*arguments) != 0
    text = capsys.readouterr().err.strip()
    assert text.startswith("error: ") and "\n" not in text and "Traceback" not in text
    return text


def leftovers(folder: Path, *known: str) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in known)


# --- what a conversion makes


def test_unquantized_file_holds_the_weights(model: Path, tmp_path: Path) -> None:
    assert convert(model, tmp_path / "out.gguf", "--outtype", "f32", "--quiet") == 0
    file, tensors = GgufFile(str(tmp_path / "out.gguf")), load_file(model / "model.safetensors")
    np.testing.assert_array_equal(file.data("token_embd.weight"), tensors["model.embed_tokens.weight"])
    np.testing.assert_array_equal(file.data("blk.1.ffn_down.weight"), tensors["model.layers.1.mlp.down_proj.weight"])
    q, heads = tensors["model.layers.0.self_attn.q_proj.weight"], LLAMA["num_attention_heads"]
    first_head = q[: q.shape[0] // heads]
    np.testing.assert_array_equal(file.data("blk.0.attn_q.weight")[:2], first_head[[0, len(first_head) // 2]])
    assert {name for name, kind, _ in file.tensors()} == set(open_source(str(model)).shapes)


@pytest.mark.parametrize(("outtype", "bound"), [("f16", 2.0**-11), ("bf16", 2.0**-8)])
def test_half_types_round_to_nearest(model: Path, tmp_path: Path, outtype: str, bound: float) -> None:
    assert convert(model, tmp_path / "out.gguf", "--outtype", outtype, "--quiet") == 0
    file = GgufFile(str(tmp_path / "out.gguf"))
    w = load_file(model / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    error = np.abs(file.dequantize("blk.0.ffn_up.weight") - w)
    assert error.max() > 0 and (error <= bound * np.abs(w) + 2.0**-25).all()  # 2^-25: half of float16's smallest step
    assert file.data("blk.0.ffn_norm.weight").dtype == np.float32


def test_bf16_source_without_torch(tmp_path: Path) -> None:
    """BF16 is written by hand, since NumPy has no such type: the upper halves of the float32 weights."""
    folder = save_llama(tmp_path / "model")
    tensors = {name: w.view(np.uint32) >> 16 for name, w in llama_tensors().items()}
    header, data = {}, b""
    for name, bits in tensors.items():
        raw = bits.astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": list(bits.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    source = open_source(str(folder))
    expected = (tensors["model.layers.0.mlp.gate_proj.weight"] << 16).astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(source.read("blk.0.ffn_gate.weight"), expected)


def test_shards_and_one_file_are_the_same(model: Path, tmp_path: Path) -> None:
    sharded = save_llama(tmp_path / "sharded" / "model", shards=3)
    for folder, out in ((model, "one"), (sharded, "three")):
        assert convert(folder, tmp_path / out, "--outtype", "f16", "--quiet") == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "three").read_bytes()


def test_gguf_and_hugging_face_sources_are_the_same(model: Path, tmp_path: Path) -> None:
    keys = gguf_tokenizer_keys(train_bpe(), "smollm")
    keys |= {"tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.eot_token_id": 2}
    keys |= {"tokenizer.ggml.add_bos_token": False, "rope.dimension_count": 12, "vocab_size": 320}
    path = write_gguf(tmp_path / "tiny.gguf", "llama", LLAMA, load_file(model / "model.safetensors"), keys)
    folder, file = open_source(str(model)), open_source(str(path))
    assert folder.hyperparameters == file.hyperparameters
    assert folder.shapes == file.shapes and list(folder.shapes) == list(file.shapes)
    for name in folder.shapes:
        np.testing.assert_array_equal(folder.read(name), file.read(name), err_msg=name)
    assert folder.tokenizer is not None and file.tokenizer is not None
    ours, theirs = folder.tokenizer.keys, file.tokenizer.keys
    for key in ("tokens", "token_type", "bos_token_id", "eos_token_id", "eos_token_ids", "add_bos_token", "model"):
        assert ours[f"tokenizer.ggml.{key}"] == theirs[f"tokenizer.ggml.{key}"], key


def split_gguf(path: Path, folder: Path, count: int) -> list[Path]:
    """The file in parts, as llama.cpp splits it: all metadata in the first one."""
    reader = gguf.GGUFReader(path)
    parts = [folder / f"tiny-{i + 1:05}-of-{count:05}.gguf" for i in range(count)]
    for i, part in enumerate(parts):
        writer = gguf.GGUFWriter(part, "llama")
        for field in reader.fields.values():
            if i == 0 and field.name.startswith(("llama.", "tokenizer.")):
                writer.add_key_value(field.name, field.contents(), field.types[0])
        writer.add_uint16("split.count", count)
        for tensor in reader.tensors[i::count]:
            writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return parts


def test_parts_of_a_gguf_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", "llama", LLAMA, llama_tensors(), gguf_tokenizer_keys(train_bpe(), "smollm"))
    parts = split_gguf(path, tmp_path, 3)
    whole, split = open_source(str(path)), open_source(str(parts[1]))
    assert whole.hyperparameters == split.hyperparameters and whole.shapes == split.shapes
    for name in whole.shapes:
        np.testing.assert_array_equal(whole.read(name), split.read(name))
    assert "is the source itself" in fails(capsys, parts[0], parts[2], "--overwrite")
    parts[2].unlink()
    assert "not there: tiny-00003-of-00003.gguf" in fails(capsys, parts[0], tmp_path / "out.gguf")


@pytest.mark.parametrize("name", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_gguf_types_are_dequantized(tmp_path: Path, name: str) -> None:
    config = {**LLAMA, "hidden_size": 64, "intermediate_size": 96}
    tensors, kind = llama_tensors(config), gguf.GGMLQuantizationType[name]
    source = open_source(str(write_gguf(tmp_path / "tiny.gguf", "llama", config, tensors, qtype=kind)), needs_tokenizer=False)
    w = tensors["model.layers.1.mlp.down_proj.weight"]
    np.testing.assert_array_equal(source.read("blk.1.ffn_down.weight"), gguf.dequantize(gguf.quantize(w, kind), kind))


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_gguf_k_types_are_dequantized(tmp_path: Path, name: str) -> None:
    """gguf cannot make K types, so random blocks (with small scales) stand in."""
    config = {**LLAMA, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    kind = gguf.GGMLQuantizationType[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    path = write_gguf(tmp_path / "tiny.gguf", "llama", config, llama_tensors(config), qtype=gguf.GGMLQuantizationType.Q8_0)
    raw = np.random.default_rng(0).integers(0, 0x30, (256, size), np.uint8)
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
    for field in reader.fields.values():
        if field.name.startswith("llama."):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        k_typed = tensor.name == "blk.0.ffn_up.weight"
        writer.add_tensor(tensor.name, raw if k_typed else tensor.data, raw_dtype=kind if k_typed else tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert block == 256
    source = open_source(str(tmp_path / "k.gguf"), needs_tokenizer=False)
    np.testing.assert_array_equal(source.read("blk.0.ffn_up.weight"), gguf.dequantize(raw, kind))


def test_metadata_and_tokenizer_of_a_folder(model: Path, tmp_path: Path) -> None:
    assert convert(model, tmp_path / "out.gguf", "--outtype", "f16", "--quiet") == 0
    metadata = GgufFile(str(tmp_path / "out.gguf")).metadata
    assert metadata["general.architecture"] == "llama" and metadata["general.name"] == "model"
    assert metadata["llama.attention.head_count_kv"] == 2 and metadata["llama.vocab_size"] == 320
    assert list(metadata["tokenizer.ggml.eos_token_ids"]) == [1, 2]
    assert metadata["tokenizer.ggml.bos_token_id"] == 0 and metadata["tokenizer.ggml.add_bos_token"] is False
    assert metadata["tokenizer.chat_template"] == (model / "chat_template.jinja").read_text()
    assert json.loads(metadata["tokenizer.huggingface.json"]) == json.loads((model / "tokenizer.json").read_text())


def test_llama3_rope_factors(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    source = open_source(str(save_llama(tmp_path / "model", {**LLAMA, "rope_scaling": scaling})))
    factors = source.read("rope_freqs.weight")
    assert factors.shape == (6,) and factors[0] == 1 and factors[-1] == 8 and (np.diff(factors) >= 0).all()


# --- the plan


def test_widths_of_a_plan(model: Path) -> None:
    options = Options(bits=3, tensor_bits=(("ffn_down", 4), (r"blk\.1\.ffn_down", 6), ("attn_v", 16)), embed_bits=8)
    labels = {tensor.name: tensor.label for tensor in make_plan(open_source(str(model)), options)}
    assert labels["token_embd.weight"] == "TQN8" and labels["output_norm.weight"] == "F32"
    assert labels["blk.0.ffn_down.weight"] == "TQN4" and labels["blk.1.ffn_down.weight"] == "TQN6"
    assert labels["blk.0.attn_v.weight"] == "F16" and labels["blk.0.attn_q.weight"] == "TQN3"


def test_output_bits(tmp_path: Path) -> None:
    tied = open_source(str(save_llama(tmp_path / "tied")))
    untied = open_source(str(save_llama(tmp_path / "untied", {**LLAMA, "tie_word_embeddings": False})))
    options = Options(bits=2, embed_bits=4, output_bits=6)
    assert {t.name: t.label for t in make_plan(tied, options)}["token_embd.weight"] == "TQN6"
    labels = {t.name: t.label for t in make_plan(untied, options)}
    assert (labels["token_embd.weight"], labels["output.weight"]) == ("TQN4", "TQN6")


def test_dry_run_prints_the_table_and_writes_nothing(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(model, tmp_path / "out.gguf", "--bits", 2, "--dry-run") == 0
    text = capsys.readouterr().out
    assert "blk.1.ffn_down.weight" in text and "TQN2" in text and "x smaller than FP16" in text
    assert "estimate" in text and text.splitlines()[-1].startswith("in all")
    assert leftovers(tmp_path) == ["model"]


def test_odd_width_stays_f16_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_llama(tmp_path / "model", {**LLAMA, "intermediate_size": 42})
    assert convert(folder, "--dry-run", "--bits", 4) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "F16" in lines["blk.0.ffn_down.weight"] and "width 42 is no multiple of 4" in lines["blk.0.ffn_down.weight"]
    assert "TQN4" in lines["blk.0.ffn_up.weight"]


# --- the hub


@pytest.fixture
def hub(model: Path) -> Any:
    (model / "pytorch_model.bin").write_bytes(b"must not be downloaded")
    with local_hub.serve(model) as endpoint:
        yield endpoint


def convert_from_hub(endpoint: str, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "turboquant_native.commands.convert", *arguments]
    environment = local_hub.environment(endpoint, tmp_path / "hf")
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_hub_id(hub: str, model: Path, tmp_path: Path) -> None:
    done = convert_from_hub(hub, tmp_path, "tiny/model", str(tmp_path / "hub.gguf"), "--outtype", "f16")
    assert done.returncode == 0, done.stderr
    assert convert(model, tmp_path / "local.gguf", "--outtype", "f16", "--quiet") == 0
    assert (tmp_path / "hub.gguf").read_bytes() == (tmp_path / "local.gguf").read_bytes()
    assert not list((tmp_path / "hf").rglob("pytorch_model.bin"))


def test_hub_id_that_does_not_exist(hub: str, tmp_path: Path) -> None:
    done = convert_from_hub(hub, tmp_path, "tiny/other", str(tmp_path / "hub.gguf"))
    assert done.returncode == 1 and "error: tiny/other" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "hub.gguf").exists()


# --- errors


def set_config(model: Path, **entries: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def set_tensors(model: Path, **changes: np.ndarray | None) -> None:
    """Replace, add or (None) remove stored tensors; `.` is written `__`."""
    tensors = load_file(model / "model.safetensors")
    for name, w in changes.items():
        name = name.replace("__", ".")
        if w is None:
            del tensors[name]
        else:
            tensors[name] = w
    save_file(tensors, model / "model.safetensors")


def test_unsupported_architecture_names_the_closest(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_config(model, model_type="qwen4")
    text = fails(capsys, model, tmp_path / "out.gguf")
    assert "'qwen4' is not supported" in text and "closest: qwen" in text
    assert leftovers(tmp_path) == ["model"]


def test_list_supported(capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("--list-supported") == 0
    listed = capsys.readouterr().out.split()
    assert listed == sorted({*ARCHITECTURES, *TEXT_MODELS}) and {"llama", "gemma4", "qwen3_5", "mistral3"} <= set(listed)
    for name in listed:
        by_model_type(name)


def test_all_tensor_problems_at_once(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_tensors(
        model,
        model__layers__0__self_attn__v_proj__weight=None,
        model__layers__1__input_layernorm__weight=None,
        model__layers__1__mlp__up_proj__weight=np.zeros((80, 47), np.float32),
        model__layers__0__surprise__weight=np.zeros(3, np.float32),
    )
    text = fails(capsys, model, tmp_path / "out.gguf")
    assert "missing tensors: blk.0.attn_v.weight, blk.1.attn_norm.weight" in text
    assert "model.layers.0.surprise.weight" in text
    assert "blk.1.ffn_up.weight is 80 x 47, expected 80 x 48" in text
    assert leftovers(tmp_path) == ["model"]


def test_bias_of_some_layers_only(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_tensors(model, model__layers__0__self_attn__o_proj__bias=np.zeros(48, np.float32))
    assert "missing tensors: blk.1.attn_output.bias" in fails(capsys, model, tmp_path / "out.gguf")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_damaged_weight_is_named(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float) -> None:
    w = llama_tensors()["model.layers.1.mlp.down_proj.weight"]
    w[7, 5] = value
    set_tensors(model, model__layers__1__mlp__down_proj__weight=w)
    assert f"blk.1.ffn_down.weight[7, 5] is {value}" in fails(capsys, model, tmp_path / "out.gguf", "--outtype", "f32")
    assert leftovers(tmp_path) == ["model"]


def test_f16_overflow_is_named(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    w = llama_tensors()["model.layers.1.mlp.down_proj.weight"]
    w[0, 0] = 1e5
    set_tensors(model, model__layers__1__mlp__down_proj__weight=w)
    assert "blk.1.ffn_down.weight has a weight of magnitude 100000" in fails(capsys, model, tmp_path / "out.gguf", "--outtype", "f16")


def test_already_quantized_checkpoint(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_config(model, quantization_config={"quant_method": "gptq"})
    assert "already quantized (quantization_config: gptq)" in fails(capsys, model, tmp_path / "out.gguf")


def test_missing_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_llama(tmp_path / "model", shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in fails(capsys, folder, tmp_path / "out.gguf")


@pytest.mark.parametrize("cut", [4, 100, 5000])
def test_truncated_safetensors(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cut: int) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    assert "not a readable safetensors file" in fails(capsys, model, tmp_path / "out.gguf")


def test_file_that_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.gguf").write_bytes(b"something else entirely")
    assert "x.gguf" in fails(capsys, tmp_path / "x.gguf", tmp_path / "out.gguf")
    assert "no such file" in fails(capsys, tmp_path / "absent.gguf", tmp_path / "out.gguf")
    assert "no config.json" in fails(capsys, tmp_path, tmp_path / "out.gguf")


def test_damaged_config_and_tokenizer(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "tokenizer.json").write_text('{"model": 1}')
    assert "tokenizer.json: not a readable tokenizer" in fails(capsys, model, tmp_path / "out.gguf")
    (model / "config.json").write_text('{"model_type": ')
    assert "config.json: cannot be read" in fails(capsys, model, tmp_path / "out.gguf")


def test_config_without_an_entry(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {key: value for key, value in LLAMA.items() if key != "intermediate_size"}
    (model / "config.json").write_text(json.dumps(config))
    assert "no entry 'intermediate_size'" in fails(capsys, model, tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"num_attention_heads": 0}, "config.json: num_attention_heads is 0, expected a whole number from 1 to 1048576"),
        ({"num_attention_heads": "four"}, "config.json"),
        ({"hidden_size": None}, "config.json"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, expected a whole number from 1 to 4096"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"vocab_size": 1.5}, "vocab_size is 1.5"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"rope_scaling": "yes"}, "config.json"),
        ({"model_type": 7}, "model_type is 7"),
    ],
)
def test_damaged_config_values(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], entries: dict[str, Any], message: str
) -> None:
    set_config(model, **entries)
    assert message in fails(capsys, model, tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"block_count": 4_000_000_000}, "block_count is 4000000000"),
        ({"attention.head_count": 0}, "llama.attention.head_count is 0"),
        ({"attention.head_count": [4, 2]}, "attention.head_count differs between layers"),
        ({"embedding_length": "48"}, "llama.embedding_length is '48', expected a whole number"),
        ({"rope.scaling.type": "ntk"}, "rope scaling 'ntk' is not supported"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "tokenizer.ggml.tokens is not an array of str"),
        ({"split.count": 2}, "split.count is 2, but the name says 1"),
    ],
)
def test_damaged_gguf_metadata(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], keys: dict[str, Any], message: str) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", "llama", LLAMA, load_file(model / "model.safetensors"), keys)
    assert message in fails(capsys, path, tmp_path / "out.gguf")


def test_untied_model_without_its_output_matrix(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_config(model, tie_word_embeddings=False)
    assert "missing tensors: output.weight" in fails(capsys, model, tmp_path / "out.gguf")


def test_index_that_leaves_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_llama(tmp_path / "model", shards=2)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../elsewhere.safetensors"}}))
    assert "files outside its folder" in fails(capsys, folder, tmp_path / "out.gguf")


_GEMMA4 = {"model_type": "gemma4_text", "head_dim": 12, "hidden_size_per_layer_input": 0}
_SCALED_WINDOWS = {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "yarn", "factor": 2.0}}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"hidden_act": "relu"}, "activation 'relu' is not supported for llama"),
        ({"use_bidirectional_attention": True}, "only causal attention"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4, "layer_types": ["full_attention"] * 2},
            "missing tensors",
        ),
        ({"model_type": "qwen3", "sliding_window": 4, "layer_types": ["full_attention"]}, "layer_types has 1 entries, expected num_hidden"),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, "no_rope_layers has 1 entries, expected num_hidden_layers, 2"),
        (
            {"model_type": "olmo3", "rope_parameters": _SCALED_WINDOWS},
            "sliding_attention: rope scaling 'yarn' is not supported in windowed",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "rope_theta": 1.0}, "rope scaling 'yarn': rope_theta is 1.0, expected"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 0.5}}, "rope scaling 'dynamic': factor is 0.5, expected 1 or more"),
        (
            {"rope_scaling": {"rope_type": "proportional"}},
            "rope scaling 'proportional' is not supported (supported: linear, llama3, longrope, ",
        ),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [1]}, "layers without experts"),
        ({**_GEMMA4, "enable_moe_block": True}, "num_experts is None, expected 1 or more where enable_moe_block is true"),
        ({**_GEMMA4, "num_kv_shared_layers": 1}, "num_kv_shared_layers is 1: the 1 layers before have no keys for each of layer_types"),
        ({**_GEMMA4, "num_kv_shared_layers": 2}, "num_kv_shared_layers is 2: the 0 layers before have no keys for each of layer_types"),
        (
            {**_GEMMA4, "layer_types": ["full_attention"] * 2, "per_layer_config": {"0": {"head_dim": 16}}},
            "per_layer_config: heads of the sizes [12, 16], expected one size for each of layer_types",
        ),
        ({**_GEMMA4, "per_layer_config": {"1": {"head_dim": "a"}}}, "per_layer_config: 1.head_dim is 'a', expected a whole number from 2"),
        ({"model_type": "gpt_oss", "swiglu_limit": 5.0}, "swiglu_limit is 5.0, expected 7.0"),
        ({"model_type": "gemma3_text", "final_logit_softcapping": 3.0}, "final_logit_softcapping = 3.0"),
    ],
)
def test_unsupported_options(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], entries: dict[str, Any], message: str
) -> None:
    set_config(model, **entries)
    assert message in fails(capsys, model, tmp_path / "out.gguf")


def test_target_errors(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").write_bytes(b"precious")
    assert "exists already" in fails(capsys, model, tmp_path / "there", "--outtype", "f16")
    assert (tmp_path / "there").read_bytes() == b"precious"
    assert "is a folder" in fails(capsys, model, tmp_path, "--outtype", "f16")
    assert "does not exist" in fails(capsys, model, tmp_path / "absent" / "out.gguf", "--outtype", "f16")
    assert convert(model, tmp_path / "there", "--outtype", "f16", "--overwrite", "--quiet") == 0


def test_target_is_the_source(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", "llama", LLAMA, llama_tensors(), gguf_tokenizer_keys(train_bpe(), "smollm"))
    before = path.read_bytes()
    assert "is the source itself" in fails(capsys, path, path, "--overwrite", "--outtype", "f16")
    (tmp_path / "link.gguf").symlink_to(path)
    assert "is the source itself" in fails(capsys, path, tmp_path / "link.gguf", "--overwrite", "--outtype", "f16")
    assert path.read_bytes() == before


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc").is_dir(), reason="root writes everywhere, and there is no /proc to refuse")
def test_unwritable_target(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("/proc") if os.geteuid() == 0 else tmp_path / "closed"
    if os.geteuid() != 0:
        folder.mkdir(mode=0o500)
    fails(capsys, model, folder / "out.gguf", "--outtype", "f16")


def test_no_disk_space(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = conversion.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert "not enough disk space" in fails(capsys, model, tmp_path / "out.gguf", "--outtype", "f16")
    assert leftovers(tmp_path) == ["model"]


def test_disk_fills_while_writing(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit on the file's size stands in for a full disk: the write fails in the middle."""
    import resource
    import signal

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        assert "out.gguf" in fails(capsys, model, tmp_path / "out.gguf", "--outtype", "f32", "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert leftovers(tmp_path) == ["model"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--tensor-bits", "nothing=3"], "no tensor has such a name"),
        (["--tensor-bits", "(=3"], "not a regular expression"),
        (["--tensor-bits", "ffn=5"], "--tensor-bits ffn=5: choose"),
        (["--embed-bits", "7"], "--embed-bits 7: choose"),
        (["--outliers", "0.9"], "outliers 0.9"),
        (["--threads", "-1"], "--threads -1"),
    ],
)
def test_bad_options(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    assert text in fails(capsys, model, tmp_path / "out.gguf", *arguments)
    assert leftovers(tmp_path) == ["model"]


def test_tensor_bits_without_a_number(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        convert(model, "out", "--tensor-bits", "ffn_down")
    assert "REGEX=BITS" in capsys.readouterr().err


def test_api_raises_what_the_command_prints(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="no such file or folder"):
        open_source(str(tmp_path / "absent"))
    source = open_source(str(save_llama(tmp_path / "model")))
    summary = write_model(source, make_plan(source, Options(outtype="f16")), tmp_path / "out.gguf")
    assert summary.file_bytes == (tmp_path / "out.gguf").stat().st_size and summary.parameters == source.parameters
