"""Layers that predict further tokens (MTP) in sources: left out, with a line that says so."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import gguf
from safetensors.numpy import load_file, save_file

from architecture_cases import CASES, Case, Reference, References, assert_close, context
from tiny_models import write_gguf
from turboquant_native.common.errors import ConvertError
from turboquant_native.convert.conversion import Options, make_plan, write_model
from turboquant_native.convert.sources import open_source

CASE = {case.name: case for case in CASES}
NEXTN = ("eh_proj.weight", "enorm.weight", "hnorm.weight", "shared_head_norm.weight", "embed_tokens.weight", "shared_head_head.weight")


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> References:
    return References(tmp_path_factory)


def gguf_of(reference: Reference, case: Case, path: Path, layers: int, with_tensors: bool, **keys: Any) -> Path:
    """llama.cpp's file of a model, `layers` more behind its own: copies of the last one, and the projections of MTP."""
    config, tensors = reference.model.config.to_dict(), load_file(reference.folder / "model.safetensors")
    write_gguf(path, case.gguf, config, tensors, case.keys)
    stored = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}
    n_layers, more = config["num_hidden_layers"], {}
    for layer in range(n_layers, n_layers + layers if with_tensors else n_layers):
        last = f"blk.{n_layers - 1}."
        more |= {f"blk.{layer}.{name.removeprefix(last)}": w for name, w in stored.items() if name.startswith(last)}
        more |= {f"blk.{layer}.nextn.{name}": np.ones((4, 8), np.float32) for name in NEXTN}
    own = {"block_count": n_layers + layers, "nextn_predict_layers": layers, **keys}
    return write_gguf(path, case.gguf, config, tensors, case.keys | own, more)


@pytest.mark.parametrize("with_tensors", [True, False])
@pytest.mark.parametrize(("name", "layers"), [("qwen3_5", 1), ("qwen3_next", 2), ("qwen3", 1)])
def test_gguf(references: References, tmp_path: Path, name: str, layers: int, with_tensors: bool) -> None:
    """The rest is the model, with the same logits; a key may name layers that a file no longer has."""
    case, reference = CASE[name], references.of(CASE[name])
    source = open_source(str(gguf_of(reference, case, tmp_path / "mtp.gguf", layers, with_tensors)), needs_tokenizer=False)
    plain = open_source(str(reference.folder), needs_tokenizer=False)
    assert source.hyperparameters == plain.hyperparameters and source.shapes == plain.shapes
    out = tmp_path / "out.gguf"
    notes = write_model(source, make_plan(source, Options(outtype="f32")), out).notes
    assert any("(MTP): blk." in note and ".nextn." not in note.split("MTP")[0] for note in notes) == with_tensors
    assert_close(context(out).eval(reference.tokens, 0, logits="all"), reference.logits)


def test_what_is_said_of_each_layer_is_said_of_the_models_own(references: References, tmp_path: Path) -> None:
    case, reference = CASE["qwen3_5"], references.of(CASE["qwen3_5"])
    recurrent = {"attention.recurrent_layers": [True, True, True, False, False], "attention.head_count_kv": [2, 2, 2, 2, 2]}
    source = open_source(str(gguf_of(reference, case, tmp_path / "mtp.gguf", 1, True, **recurrent)), needs_tokenizer=False)
    assert source.hyperparameters == open_source(str(reference.folder), needs_tokenizer=False).hyperparameters


@pytest.mark.parametrize("keys", [{"nextn_predict_layers": 9}, {"nextn_predict_layers": "one"}, {"block_count": "four"}])
def test_keys_that_make_no_sense(references: References, tmp_path: Path, keys: dict[str, Any]) -> None:
    """Are as if they were not there: layers are then missing, or a number is."""
    case, reference = CASE["qwen3"], references.of(CASE["qwen3"])
    path = gguf_of(reference, case, tmp_path / "mtp.gguf", 1, False, **keys)
    with pytest.raises(ConvertError, match=r"missing tensors: blk\.2\.|block_count is 'four', expected a whole number"):
        open_source(str(path), needs_tokenizer=False)


def test_folders(references: References, tmp_path: Path) -> None:
    reference = references.of(CASE["qwen3_next"])
    tensors = load_file(reference.folder / "model.safetensors")
    tensors |= {"mtp.fc.weight": np.zeros((4, 8), np.float32), "mtp.layers.0.mlp.gate.weight": np.zeros((4, 8), np.float32)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((reference.folder / "config.json").read_text())
    source = open_source(str(tmp_path), needs_tokenizer=False)
    assert source.notes == ["left out, since further tokens are not predicted at once (MTP): mtp.fc.weight, mtp.layers.0.mlp.gate.weight"]
    assert source.shapes == open_source(str(reference.folder), needs_tokenizer=False).shapes
