"""What Gemma 4's models have beyond dense layers: per-layer embeddings, layers that share keys and values, mixtures beside a dense part.

test_architectures.py compares each with transformers; here is what else holds for them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.numpy import load_file, save_file

from architecture_cases import CASES, N_PROMPT, N_TOKENS, Reference, References, assert_close, convert
from turboquant_native import _core
from turboquant_native.api.fit import ModelFile
from turboquant_native.calibrate.request import Request
from turboquant_native.calibrate.widths import WidthChooser
from turboquant_native.common.errors import ConvertError
from turboquant_native.convert.conversion import Options, make_plan, write_model
from turboquant_native.convert.sources import open_source

CASE = {case.name: case for case in CASES}
TABLE = "per_layer_token_embd.weight"


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> References:
    return References(tmp_path_factory)


def opened(reference: Reference, path: Path, **options: Any) -> Any:
    return _core.Model(str(convert(reference.folder, path, outtype="f32")), threads=1, precision="f32", **options)


def test_parts_hand_over_what_the_stream_was_at_first(references: References, tmp_path: Path) -> None:
    reference = references.of(CASE["gemma4-moe-e-wide"])
    model = opened(reference, tmp_path / "out.gguf", device="cpu*1,cpu*2")
    assert_close(_core.Context(model, n_ctx=64).eval(reference.tokens, 0, logits="all"), reference.logits)


def test_shared_keys_stay_on_one_device(references: References, tmp_path: Path) -> None:
    with pytest.raises(_core.UnsupportedError, match=r"layer 2 sees the keys of layer 1, which is on another device"):
        opened(references.of(CASE["gemma4-moe-e-wide"]), tmp_path / "out.gguf", device="cpu*2,cpu*1")


@pytest.mark.parametrize("name", ["gemma4-e", "gemma4-e-odd", "gemma4-moe-e-wide"])
def test_caches_in_codes(references: References, tmp_path: Path, name: str) -> None:
    """Layers whose keys others share keep numbers; the other full layers, of gemma4-e-odd none, keep codes."""
    reference = references.of(CASE[name])
    ctx = _core.Context(opened(reference, tmp_path / "out.gguf"), n_ctx=128, cache="k8v8")
    logits = [ctx.eval(reference.tokens[:N_PROMPT], 0, logits="all")]
    logits += [ctx.eval(reference.tokens[i : i + 1], i)[None] for i in range(N_PROMPT, N_TOKENS)]
    assert np.abs(np.concatenate(logits) - reference.logits).max() < 0.03 * np.abs(reference.logits).max()


def test_sharing_layers_have_no_cache(references: References, tmp_path: Path) -> None:
    """Of seven layers three have keys: two with heads of 16, one with heads of 24, two heads each."""
    reference = references.of(CASE["gemma4-e"])
    path = tmp_path / "out.gguf"
    opened(reference, path)
    assert ModelFile(path).layers == ((2, 16, 8), (2, 16, 8), (2, 24, 0))
    assert ModelFile(path).fit(32).cache == 32 * 2 * 2 * 2 * (16 + 16 + 24)


def test_prefixes_are_copied_and_gone_back_to(references: References, tmp_path: Path) -> None:
    reference = references.of(CASE["gemma4-e"])
    ctx = _core.Context(opened(reference, tmp_path / "out.gguf"), n_ctx=64, n_slots=2)
    ctx.eval(reference.tokens[:30], 0, 0)
    ctx.copy_slot(0, 1, 20)
    for slot in (0, 1):
        assert_close(ctx.eval(reference.tokens[20:], 20, slot, logits="all"), reference.logits[20:])


def test_a_threaded_pass_is_the_same(references: References, tmp_path: Path) -> None:
    for name in ("gemma4-e", "gemma4-moe-e-wide"):
        reference = references.of(CASE[name])
        path = convert(reference.folder, tmp_path / f"{name}.gguf", bits=4)
        logits = [_core.Context(_core.Model(str(path), threads=threads)).eval(reference.tokens, 0, logits="all") for threads in (1, 2)]
        assert np.isfinite(logits[0]).all() and np.abs(logits[0] - logits[1]).max() < 1e-4


def test_the_table_stays_in_16_bit(references: References) -> None:
    """And so do the projections unless options name them; a table cannot be packed, since each layer reads its own columns."""
    source = open_source(str(references.of(CASE["gemma4-e"]).folder), needs_tokenizer=False)
    plan = {tensor.name: tensor for tensor in make_plan(source, Options(bits=4))}
    assert plan["blk.0.attn_q.weight"].label == "TQN4"
    projections = (f"blk.3.{name}.weight" for name in ("inp_gate", "proj", "per_layer_model_proj"))
    assert {plan[name].label for name in (TABLE, *projections)} == {"F16"}
    named = {tensor.name: tensor for tensor in make_plan(source, Options(bits=4, tensor_bits=(("proj|per_layer", 8),)))}
    assert named["blk.0.per_layer_model_proj.weight"].label == "TQN8"
    assert named[TABLE].label == "F16" and named[TABLE].note == "each layer reads its own columns"
    assert make_plan(source, Options(outtype="f32"))[1].dtype == "f32"


@pytest.mark.parametrize("outtype", ["f16", "bf16", "f32"])
def test_the_table_is_read_in_blocks(references: References, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outtype: str) -> None:
    folder = references.of(CASE["gemma4-e"]).folder
    whole = convert(folder, tmp_path / "whole.gguf", outtype=outtype)
    monkeypatch.setattr("turboquant_native.convert.conversion._BLOCK_ROWS", 7)
    blocks = convert(folder, tmp_path / "blocks.gguf", outtype=outtype)
    assert whole.read_bytes() == blocks.read_bytes()
    tables = [np.asarray(_core.GgufFile(str(path)).data(TABLE)) for path in (whole, blocks)]
    assert tables[0].shape[0] == 96 and np.array_equal(*tables)
    source = open_source(str(folder), needs_tokenizer=False)
    np.testing.assert_array_equal(source.read_rows(TABLE, 90, 96), source.read(TABLE)[90:])


def test_bits_per_weight_do_not_count_the_table(references: References) -> None:
    source = open_source(str(references.of(CASE["gemma4-e"]).folder), needs_tokenizer=False)
    table = 96 * 7 * 8
    chooser = WidthChooser(source, Options(), Request(bpw=8.0))
    plan = chooser.simple_rule(0)
    assert sum(tensor.bytes for tensor in plan) - 2 * table <= 8.0 * (source.parameters - table) / 8
    with pytest.raises(ConvertError, match="at its smallest widths"):
        WidthChooser(source, Options(), Request(bpw=2.0)).check()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("attention.shared_kv_layers", 7, "no layer before layer 0 has keys that it could share"),
        ("attention.shared_kv_layers", 6, "no layer before layer 2 has keys that it could share"),
        ("attention.shared_kv_layers", 8, "expected 0 to 7"),
        ("attention.shared_kv_layers", 1, "missing tensors: blk.3.attn_k.weight"),
        ("embedding_length_per_layer_input", 9, r"per_layer_token_embd.weight has the shape \(96, 56\), expected \(96, 63\)"),
        ("embedding_length_per_layer_input", 1 << 40, "embedding_length_per_layer_input is 1099511627776"),
        ("feed_forward_length", [80] * 6, "has 6 numbers for 7 layers"),
        ("expert_count", 4, "expert_count is 4, which takes 84 tensors|missing"),
    ],
)
def test_hostile_files(references: References, tmp_path: Path, key: str, value: Any, message: str) -> None:
    source = open_source(str(references.of(CASE["gemma4-e"]).folder), needs_tokenizer=False)
    plan = make_plan(source, Options(outtype="f32"))
    source.hyperparameters[key] = value
    write_model(source, plan, tmp_path / "out.gguf")
    with pytest.raises((_core.FormatError, _core.UnsupportedError), match=message):
        _core.Model(str(tmp_path / "out.gguf"))


def test_checkpoints_hold_keys_that_nobody_reads(references: References, tmp_path: Path) -> None:
    """Of sharing layers: published checkpoints have them, and transformers ignores them."""
    reference = references.of(CASE["gemma4-e"])
    shutil.copy(reference.folder / "config.json", tmp_path / "config.json")
    tensors = load_file(reference.folder / "model.safetensors")
    for name, shape in {"k_proj": (32, 48), "v_proj": (32, 48), "k_norm": (16,)}.items():
        tensors[f"model.layers.4.self_attn.{name}.weight"] = np.full(shape, np.nan, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    more, plain = (open_source(str(folder), needs_tokenizer=False) for folder in (tmp_path, reference.folder))
    assert more.shapes == plain.shapes


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("layers.1.per_layer_input_gate.weight", "missing tensors: blk.1.inp_gate.weight"),
        ("embed_tokens_per_layer.weight", f"missing tensors: {TABLE}"),
        ("layers.0.router.per_expert_scale", "missing tensors: blk.0.ffn_down_exps.scale"),
    ],
)
def test_what_is_missing_is_named(references: References, tmp_path: Path, missing: str, message: str) -> None:
    reference = references.of(CASE["gemma4-moe-e-wide"])
    shutil.copy(reference.folder / "config.json", tmp_path / "config.json")
    tensors = load_file(reference.folder / "model.safetensors")
    del tensors["model." + missing]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ConvertError, match=message):
        open_source(str(tmp_path), needs_tokenizer=False)
