"""Checkpoints that are stored in FP8 or MXFP4: read as the numbers that torch and transformers make of them; hostile ones are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiny_models import LLAMA, llama_tensors, save_llama
from turboquant_native.common.errors import ConvertError
from turboquant_native.convert.conversion import Options, make_plan, notes_of
from turboquant_native.convert.sources import open_source
from turboquant_native.convert.sources.safetensors_file import SafetensorsFile
from turboquant_native.convert.sources.stored_tensors import StoredTensors

torch = pytest.importorskip("torch")
load_file, save_file = (getattr(pytest.importorskip("safetensors.torch"), name) for name in ("load_file", "save_file"))

NAME = "model.layers.0.mlp.up_proj.weight"  # (80, 48)


def fp8(w: np.ndarray, block: tuple[int, int] | None, kind: Any) -> tuple[Any, Any, np.ndarray]:
    """(codes, scales, the numbers that the two stand for)."""
    rows, columns = block or w.shape
    values = torch.from_numpy(w.copy())
    n, m = -(-w.shape[0] // rows), -(-w.shape[1] // columns)
    scale = torch.ones(n, m)
    for i in range(n):
        for j in range(m):
            part = values[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            scale[i, j] = 2.0 ** torch.ceil(torch.log2(part.abs().max() / 200)) * (1 if kind is torch.float8_e8m0fnu else 1.25)
    wide = scale.repeat_interleave(rows, 0)[: w.shape[0]].repeat_interleave(columns, 1)[:, : w.shape[1]]
    codes = (values / wide).to(torch.float8_e4m3fn)
    scale = scale.to(kind) if block else scale.reshape(())
    return codes, scale, (codes.to(torch.float32) * wide).numpy()


def save_fp8(folder: Path, block: tuple[int, int] | None, kind: Any = torch.float32, **entries: Any) -> dict[str, np.ndarray]:
    """A folder whose projections are FP8; the numbers by name."""
    tensors = llama_tensors()
    save_llama(folder, LLAMA)
    stored, numbers = {}, {}
    for name, w in tensors.items():
        if "_proj." in name:
            stored[name], stored[name + "_scale_inv"], numbers[name] = fp8(w, block, kind)
            stored[name.replace(".weight", ".activation_scale")] = torch.ones(())
        else:
            stored[name], numbers[name] = torch.from_numpy(w), w
    save_file(stored, folder / "model.safetensors")
    quantization = {"quant_method": "fp8", "weight_block_size": list(block) if block else None, **entries}
    (folder / "config.json").write_text(json.dumps({**LLAMA, "quantization_config": quantization}))
    return numbers


@pytest.mark.parametrize("block", [(32, 16), (64, 64), None])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu], ids=str)
def test_fp8_with_scales(block: Any, kind: Any, tmp_path: Path) -> None:
    numbers = save_fp8(tmp_path, block, kind)
    source = open_source(str(tmp_path))
    np.testing.assert_array_equal(source.read("blk.0.ffn_up.weight"), numbers[NAME])
    np.testing.assert_array_equal(source.read("blk.1.attn_output.weight"), numbers["model.layers.1.self_attn.o_proj.weight"])
    assert source.quantized_as == "FP8" and "already quantized (FP8)" in notes_of(source, make_plan(source, Options()))[0]
    assert len(source.shapes) == len(numbers)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2), ("F8_E8M0", torch.float8_e8m0fnu)]
)
def test_every_code_of_the_eight_bit_types(kind: str, dtype: Any, tmp_path: Path) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(dtype)
    save_file({"x": codes}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert file.dtype("x") == kind
    expected = codes.to(torch.float32).numpy()
    np.testing.assert_array_equal(file.read("x"), np.where(np.isinf(expected), np.nan, expected))


@pytest.mark.parametrize(
    ("change", "entries", "message"),
    [
        (lambda t: t.pop(NAME + "_scale_inv"), {}, "up_proj.weight is FP8, but there is no .*up_proj.weight_scale_inv"),
        (
            lambda t: t.update({NAME + "_scale_inv": torch.ones(2, 3)}),
            {},
            r"weight_scale_inv is \(2, 3\) for .* of \(80, 48\) with weight_block",
        ),
        (lambda t: None, {"weight_block_size": None}, "with no weight_block_size"),
        (lambda t: None, {"weight_block_size": [0, 16]}, r"weight_block_size is '\[0, 16\]', expected two numbers from 1"),
        (lambda t: None, {"weight_block_size": "128"}, "weight_block_size is '128'"),
        (
            lambda t: None,
            {"quant_method": "awq"},
            "already quantized .quantization_config: awq.; convert the original one .of quantized ones fp8 and",
        ),
    ],
)
def test_damaged_fp8_is_refused(change: Any, entries: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_fp8(tmp_path, (32, 16), **entries)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ConvertError, match=message):
        open_source(str(tmp_path))


# --- MXFP4


def packed(seed: int = 0, experts: int = 3, rows: int = 6, blocks: int = 2) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 256, (experts, rows, blocks, 16), dtype=torch.uint8, generator=generator)
    return values, torch.randint(110, 140, (experts, rows, blocks), dtype=torch.uint8, generator=generator)


def stored(folder: Path, tensors: dict[str, Any]) -> StoredTensors:
    save_file(tensors, folder / "m.safetensors")
    file = SafetensorsFile(folder / "m.safetensors")
    return StoredTensors("config.json", {"quant_method": "mxfp4"}, dict.fromkeys(file.shapes, file))


def test_mxfp4_equals_transformers(tmp_path: Path) -> None:
    convert = pytest.importorskip("transformers.integrations.mxfp4").convert_moe_packed_tensors
    blocks, scales = packed()
    tensors = stored(tmp_path, {"a.gate_up_proj_blocks": blocks, "a.gate_up_proj_scales": scales, "a.gate_up_proj_bias": torch.ones(3, 6)})
    assert tensors.shapes == {"a.gate_up_proj": (3, 64, 6), "a.gate_up_proj_bias": (3, 6)} and tensors.quantized_as == "MXFP4"
    expected = convert(blocks, scales, dtype=torch.float32).numpy()
    np.testing.assert_array_equal(tensors.read("a.gate_up_proj"), expected)
    np.testing.assert_array_equal(tensors.read("a.gate_up_proj", expert=1), expected[1])
    np.testing.assert_array_equal(tensors.read("a.gate_up_proj", expert=2, rows=(3, 7)), expected[2, 3:7])


def test_damaged_mxfp4_is_refused(tmp_path: Path) -> None:
    blocks, scales = packed()
    with pytest.raises(ConvertError, match=r"x_blocks is \(3, 6, 2, 16\) with scales \(3, 6\), expected"):
        stored(tmp_path, {"x_blocks": blocks, "x_scales": scales[..., 0].contiguous()})
    with pytest.raises(ConvertError, match="x_blocks has type F32, expected U8"):
        stored(tmp_path, {"x_blocks": blocks.float(), "x_scales": scales})
    scales[1, 2, 0] = 255
    with pytest.raises(ConvertError, match="x_scales holds 255"):
        stored(tmp_path, {"x_blocks": blocks, "x_scales": scales}).read("x")


def test_gpt_oss_in_mxfp4_is_its_numbers(tmp_path: Path) -> None:
    """The same model stored packed and unpacked gives the same tensors."""
    transformers = pytest.importorskip("transformers")
    convert = pytest.importorskip("transformers.integrations.mxfp4").convert_moe_packed_tensors
    config = transformers.GptOssConfig(
        vocab_size=96, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=128,
    )  # fmt: skip
    model = transformers.GptOssForCausalLM(config)
    plain, quantized = tmp_path / "plain", tmp_path / "packed"
    tensors = dict(model.state_dict())
    for name in [name for name in tensors if name.endswith("_proj") and "experts" in name]:
        experts, n_in, n_out = tensors.pop(name).shape
        tensors[name + "_blocks"], tensors[name + "_scales"] = packed(len(name), experts, n_out, n_in // 32)
    quantized.mkdir()
    save_file({name: w.contiguous() for name, w in tensors.items()}, quantized / "model.safetensors")
    entries = {**config.to_dict(), "quantization_config": {"quant_method": "mxfp4"}, "architectures": ["GptOssForCausalLM"]}
    (quantized / "config.json").write_text(json.dumps(entries))
    for name in [name.removesuffix("_blocks") for name in tensors if name.endswith("_blocks")]:
        tensors[name] = convert(tensors.pop(name + "_blocks"), tensors.pop(name + "_scales"), dtype=torch.float32)
    model.load_state_dict(tensors)
    model.save_pretrained(plain)
    ours, theirs = (open_source(str(folder), needs_tokenizer=False) for folder in (quantized, plain))
    assert ours.hyperparameters == theirs.hyperparameters and ours.shapes == theirs.shapes and ours.quantized_as == "MXFP4"
    for name in ours.shapes:
        np.testing.assert_array_equal(ours.read(name), theirs.read(name), err_msg=name)
