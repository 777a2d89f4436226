"""Every architecture against transformers: tiny random models (architecture_cases.py), from Hugging Face folders and from GGUF files.

The engine's float path is float32 throughout, as the reference is.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from architecture_cases import (
    ALL,
    BASE,
    CASES,
    N_GREEDY,
    N_PROMPT,
    N_TOKENS,
    ONE_EACH,
    Case,
    Reference,
    References,
    assert_close,
    assert_three_sequences,
    context,
    convert,
)
from tiny_models import write_gguf
from turboquant_native import _core
from turboquant_native.convert.architectures import ARCHITECTURES
from turboquant_native.convert.sources import open_source
from turboquant_native.engine.head import read_head

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reference]:
    """Saved models by case name, made on demand."""
    return References(tmp_path_factory)


@ALL
def test_logits_equal_transformers(case: Case, references: Any, tmp_path: Path) -> None:
    """A prompt at once, then token by token, past any window."""
    reference = references.of(case)
    ctx = context(convert(reference.folder, tmp_path / "out.gguf", outtype="f32"))
    assert_close(ctx.eval(reference.tokens[:N_PROMPT], 0, logits="all"), reference.logits[:N_PROMPT])
    for position in range(N_PROMPT, N_TOKENS):
        assert_close(ctx.eval(reference.tokens[position : position + 1], position), reference.logits[position])


@ONE_EACH
def test_greedy_tokens_equal_transformers(case: Case, references: Any, tmp_path: Path) -> None:
    reference = references.of(case)
    prompt = reference.tokens[:5]
    with torch.no_grad():
        ids = torch.from_numpy(prompt[None].astype(np.int64))
        theirs = reference.model.generate(ids, max_new_tokens=N_GREEDY, do_sample=False, pad_token_id=0)[0, len(prompt) :].tolist()
    ctx = context(convert(reference.folder, tmp_path / "out.gguf", outtype="f32"))
    ours, logits = [], ctx.eval(prompt, 0)
    for i in range(N_GREEDY):
        ours.append(int(logits.argmax()))
        logits = ctx.eval(np.array(ours[-1:], np.int32), len(prompt) + i)
    assert ours == theirs


@ONE_EACH
def test_8_bits_are_close(case: Case, references: Any, tmp_path: Path) -> None:
    """With inputs rounded to int8 and with float inputs."""
    reference = references.of(case)
    path = str(convert(reference.folder, tmp_path / "out.gguf", bits=8))
    p = torch.log_softmax(torch.from_numpy(reference.logits), -1)
    for precision in ("int8", "f32"):
        logits = _core.Context(_core.Model(path, threads=1, precision=precision)).eval(reference.tokens, 0, logits="all")
        q = torch.log_softmax(torch.from_numpy(logits), -1)
        assert float((p.exp() * (p - q)).sum(-1).mean()) < 0.01


def test_8_bits_layer_by_layer(references: Any, tmp_path: Path) -> None:
    """Four layers of random mixtures and delta nets together lose more than 0.01 (docs/models.md says why). Each layer for itself, given
    what the exact layers before it gave, adds what it should but for a few hundredths, save for rows that go to another expert."""
    reference = references.of(next(case for case in CASES if case.name == "qwen3_5_moe"))
    files = [convert(reference.folder, tmp_path / "f32.gguf", outtype="f32"), convert(reference.folder, tmp_path / "8.gguf", bits=8)]
    runners = [_core.LayerRunner(_core.Model(str(path), threads=1, precision="f32"), N_TOKENS) for path in files]
    hidden = runners[0].embed(reference.tokens[None])
    for layer in range(4):
        exact, rounded = (runner.enter(layer, hidden) for runner in runners)
        for part in (exact, rounded):
            part.run(lambda site, x: None)
        off = np.linalg.norm(rounded.hidden - exact.hidden, axis=-1) / np.linalg.norm(exact.hidden - hidden, axis=-1)
        assert np.median(off) < 0.02 and (off < 0.05).mean() >= 0.9
        hidden = exact.hidden


@ONE_EACH
def test_batches_of_several_sequences_equal_transformers(case: Case, references: Any, tmp_path: Path) -> None:
    reference = references.of(case)
    model = _core.Model(str(convert(reference.folder, tmp_path / "out.gguf", outtype="f32")), threads=1, precision="f32")
    assert_three_sequences(_core.Context(model, n_ctx=128, n_slots=3), reference)


@ONE_EACH
def test_calibration_sees_the_same_model(case: Case, references: Any, tmp_path: Path) -> None:
    """Layer by layer with a tap that looks on, which takes mixtures of experts apart."""
    reference = references.of(case)
    model = _core.Model(str(convert(reference.folder, tmp_path / "out.gguf", outtype="f32")), threads=1, precision="f32")
    runner, seen = _core.LayerRunner(model, N_TOKENS), set()
    hidden = runner.embed(reference.tokens[None])
    for layer in range(case.config.get("num_hidden_layers", BASE["num_hidden_layers"])):
        part = runner.enter(layer, hidden)
        part.run(lambda site, x: seen.add(site))
        hidden = part.hidden
    assert_close(runner.head(hidden.reshape(N_TOKENS, -1)), reference.logits)
    assert {site.name for layer in range(2) for site in runner.input_sites(layer)} & seen


@pytest.mark.parametrize("name", ["gpt_oss", "ministral3", "smollm3"])
def test_caches_in_codes_keep_what_layers_add(name: str, references: Any, tmp_path: Path) -> None:
    """Sinks, growing queries and layers without positions, with keys and values in 8-bit codes: a prompt, and token by token."""
    reference = references.of(next(case for case in CASES if case.name == name))
    model = _core.Model(str(convert(reference.folder, tmp_path / "out.gguf", outtype="f32")), threads=1)
    ctx = _core.Context(model, n_ctx=128, cache="k8v8")
    logits = [ctx.eval(reference.tokens[:N_PROMPT], 0, logits="all")]
    logits += [ctx.eval(reference.tokens[i : i + 1], i)[None] for i in range(N_PROMPT, N_TOKENS)]
    difference = np.abs(np.concatenate(logits) - reference.logits)
    assert difference.max() < 0.03 * np.abs(reference.logits).max()


@ONE_EACH
def test_saved_states_go_on(case: Case, references: Any, tmp_path: Path) -> None:
    reference = references.of(case)
    path = convert(reference.folder, tmp_path / "out.gguf", outtype="f32")
    first, second = context(path), context(path)
    first.eval(reference.tokens[:N_PROMPT], 0)
    second.load(0, first.save(0, N_PROMPT))
    assert_close(second.eval(reference.tokens[N_PROMPT:], N_PROMPT, logits="all"), reference.logits[N_PROMPT:])


@ONE_EACH
def test_scores_equal_transformers(case: Case, references: Any, tmp_path: Path) -> None:
    """A head for each token on what the output norm gives, as `...ForTokenClassification` has it."""
    reference, folder = references.of(case), tmp_path / "source"
    shutil.copytree(reference.folder, folder)
    score = 0.12 * torch.randn(3, case.config.get("hidden_size", BASE["hidden_size"]))
    save_file({**load_file(folder / "model.safetensors"), "score.weight": score.numpy()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["ModelForTokenClassification"]}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key not in ("id2label", "label2id")}))
    path = convert(folder, tmp_path / "out.gguf", outtype="f32")
    head = read_head(_core.GgufFile(path), score.shape[1])
    assert head is not None and head.kind == "token"
    with torch.no_grad():
        ids = torch.from_numpy(reference.tokens[None].astype(np.int64))
        theirs = (reference.model.model(ids).last_hidden_state[0] @ score.T).numpy()
    rows = np.arange(N_TOKENS, dtype=np.int32)
    ours = head(context(path).embed(reference.tokens, rows, np.zeros_like(rows), rows))
    assert ours.shape == theirs.shape == (N_TOKENS, 3)
    assert_close(ours, theirs)


@ALL
def test_gguf_source_gives_the_same_file(case: Case, references: Any, tmp_path: Path) -> None:
    """llama.cpp's file of the model (fused and permuted as it does) has the same tensors and hyperparameters as the folder."""
    reference = references.of(case)
    config = reference.model.config.to_dict()
    tensors = load_file(reference.folder / "model.safetensors")
    folder = open_source(str(reference.folder), needs_tokenizer=False)
    extra = {name: folder.read(name) for name in folder.shapes if name.startswith("rope_f")}
    path = write_gguf(tmp_path / "source.gguf", case.gguf, config, tensors, case.keys, extra)
    file = open_source(str(path), needs_tokenizer=False)
    assert file.hyperparameters == folder.hyperparameters
    assert list(file.shapes.items()) == list(folder.shapes.items())
    for name in folder.shapes:
        np.testing.assert_array_equal(file.read(name), folder.read(name), err_msg=name)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
@pytest.mark.parametrize(
    ("model_type", "part_name"), [("gemma3", "gemma3"), ("gemma4", "gemma4"), ("mistral3", "ministral3"), ("mistral3", "mistral-full")]
)
def test_text_part_of_a_multimodal_model(references: Any, tmp_path: Path, prefix: str, model_type: str, part_name: str) -> None:
    """Both layouts that checkpoints have; what belongs to the images is left out."""
    folder = references.of(next(case for case in CASES if case.name == part_name)).folder
    heads = {"lm_head.weight": (prefix.removesuffix("model.") if prefix.startswith("language_model.") else "") + "lm_head.weight"}
    tensors = {heads.get(name, name.replace("model.", prefix, 1)): w for name, w in load_file(folder / "model.safetensors").items()}
    tensors["model.vision_tower.embeddings.weight"] = tensors["multi_modal_projector.mm_soft_emb_norm.weight"] = np.zeros(3, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    text = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "text_config": text, "vision_config": {"hidden_size": 3}}))
    whole, part = (open_source(str(path), needs_tokenizer=False) for path in (tmp_path, folder))
    assert whole.hyperparameters == part.hyperparameters and whole.shapes == part.shapes
    for name in part.shapes:
        np.testing.assert_array_equal(whole.read(name), part.read(name))


def test_every_architecture_has_cases() -> None:
    assert {case.model_type for case in CASES} == set(ARCHITECTURES)
    assert {case.gguf for case in CASES} | {"mistral"} == set(_core.architectures())  # the engine's alias of llama
