"""Weighting calibration tokens by gradients of the model's loss: the weights themselves, and conversions that use them."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiny_models import LLAMA, save_llama
from turboquant_native import _core
from turboquant_native.calibrate import end_loss
from turboquant_native.calibrate import request as requests
from turboquant_native.calibrate.end_loss import GradientMeter, check_available, input_sites, token_weights
from turboquant_native.calibrate.quantizer import Quantizer, _logits
from turboquant_native.calibrate.request import Effort, Request
from turboquant_native.calibrate.rounding import Settings, SiteStatistics
from turboquant_native.calibrate.text import draw
from turboquant_native.common.errors import ConvertError
from turboquant_native.common.journal import Journal
from turboquant_native.convert.architectures import by_model_type
from turboquant_native.convert.conversion import Options, make_plan, write_model
from turboquant_native.convert.sources import Source, open_source

READERS = {
    "attn_q": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn_output": ("self_attn.o_proj",),
    "ffn_gate": ("mlp.gate_proj", "mlp.up_proj"),
    "ffn_down": ("mlp.down_proj",),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("model") / "tied")


@pytest.fixture(autouse=True)
def little_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "EFFORTS", {"fast": Effort(6, 3)})


def convert(model: Path, out: Path, **request: Any) -> Quantizer:
    run = Quantizer(
        open_source(str(model), None, None), out, Options(bits=2, embed_bits=8), Request(effort="fast", seq_len=32, **request), threads=1
    )
    run.run(overwrite=True)
    return run


def windows(count: int, seq_len: int = 16) -> np.ndarray:
    return np.random.default_rng(5).integers(0, LLAMA["vocab_size"], (count, seq_len)).astype(np.int32)


# --- without PyTorch


def test_weighted_statistics_are_those_of_repeated_rows_and_leave_the_corrections_alone() -> None:
    rng = np.random.default_rng(0)
    x, reference, lacking = (rng.standard_normal((50, n)).astype(np.float32) for n in (12, 12, 7))
    counts = rng.integers(0, 4, 50)
    weighted, repeated, plain = SiteStatistics(), SiteStatistics(), SiteStatistics()
    weighted.add(x, reference, lacking, counts.astype(np.float32) * np.float32(50 / counts.sum()))
    repeated.add(np.repeat(x, counts, axis=0))
    plain.add(x, reference, lacking)
    np.testing.assert_allclose(weighted.weighted_hessian, repeated.hessian, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(plain.weighted_hessian, plain.hessian)
    w = rng.standard_normal((7, 12)).astype(np.float32)
    np.testing.assert_array_equal(weighted.target(w, Settings()), plain.target(w, Settings()))


SITES = [f"blk.{layer}.{site}" for layer in range(2) for site in ("attn_q", "attn_output", "ffn_gate", "ffn_down")]


def sites_of(source: Source, path: Path) -> list[_core.InputSite]:
    """Of the model, written to `path` for that."""
    write_model(source, make_plan(source, Options(outtype="f32")), path)
    return input_sites(_core.Model(str(path), precision="f32", threads=1))


def test_weights_have_mean_one_and_are_tempered() -> None:
    squares = np.random.default_rng(1).pareto(1, (3, 8, 8)).astype(np.float32)
    squares[:, 6] = 0  # a dead site
    for power in (0.0, 0.5, 1.0):
        weights = token_weights(squares, power, SITES)
        assert list(weights) == SITES
        assert all(values.shape == (24,) and values.mean() == pytest.approx(1, rel=1e-5) for values in weights.values())
    raw, root = (token_weights(squares, power, SITES)["blk.0.attn_output"] for power in (1.0, 0.5))
    np.testing.assert_allclose(root / root[0], np.sqrt(raw / raw[0]), rtol=1e-4)
    np.testing.assert_array_equal(token_weights(squares, 1.0, SITES)["blk.1.ffn_gate"], 1)


def test_a_journal_drops_what_a_kill_cut_short(tmp_path: Path) -> None:
    path, records = tmp_path / "kept", np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    Journal(path, (2, 3), np.float32).put(0, records[:2])
    Journal(path, (2, 3), np.float32).put(2, records[2:3])
    with open(path, "r+b") as stream:
        stream.truncate(2 * 24 + 5)
    journal = Journal(path, (2, 3), np.float32)
    assert len(journal) == 2
    journal.put(1, records[1:])
    np.testing.assert_array_equal(journal.read(), records)


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_missing_package_is_named_before_any_work(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    def absent(name: str) -> Any:
        if name == package:
            raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ConvertError, match=rf"--hessian end-loss needs {package}: pip install 'turboquant-native\[train\]'"):
        convert(folder, tmp_path / "m.gguf", hessian="end-loss")
    assert not list(tmp_path.iterdir())


def test_unknown_hessians_are_named() -> None:
    with pytest.raises(ConvertError, match="--hessian magic: choose among activations, end-loss"):
        Request(effort="fast", hessian="magic")


def test_experts_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(folder), None, None)
    source.architecture = by_model_type("mixtral")
    monkeypatch.setattr(end_loss, "_import", lambda package: None)
    with pytest.raises(ConvertError, match="mixtures of experts"):
        check_available(source)


# --- with it


def brute_force(folder: Path, window: np.ndarray, seed: int, index: int) -> np.ndarray:
    """(sites, seq_len): what is added to each matrix's output is differentiated by."""
    torch = pytest.importorskip("torch")
    network = pytest.importorskip("transformers").AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    added: dict[str, Any] = {}

    def hook(name: str) -> Any:
        def add(module: Any, inputs: Any, output: Any) -> Any:
            added[name] = torch.zeros_like(output, requires_grad=True)
            return output + added[name]

        return add

    modules = dict(network.named_modules())
    names = [f"model.layers.{layer}.{part}" for layer in range(2) for parts in READERS.values() for part in parts]
    for name in names:
        modules[name].register_forward_hook(hook(name))
    logits = network(input_ids=torch.tensor(window[None].astype(np.int64))).logits[0]
    labels = draw(logits.detach().numpy(), np.random.default_rng([seed, index]))
    logprobs = torch.log_softmax(logits, dim=-1)
    loss = -sum(logprobs[position, int(label)] for position, label in enumerate(labels))
    gradients = dict(zip(added, torch.autograd.grad(loss, list(added.values())), strict=True))
    found = []
    for layer in range(2):
        for readers in READERS.values():
            parts = [gradients[f"model.layers.{layer}.{part}"][0].numpy() for part in readers]
            found.append(np.mean([np.square(part).mean(axis=1) for part in parts], axis=0))
    return np.stack(found)


def test_squared_gradients_equal_brute_force(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    tokens = windows(2)
    source = open_source(str(folder), None, None)
    squares = GradientMeter(source, 3, sites_of(source, tmp_path / "m.gguf")).measure(tokens, tmp_path / "kept")
    expected = [brute_force(folder, window, 3, index) for index, window in enumerate(tokens)]
    np.testing.assert_allclose(squares, expected, rtol=1e-3, atol=1e-9)  # float32 through two layers
    assert squares.min() >= 0 and (squares > 0).mean() > 0.9


def test_a_gguf_file_gives_the_folder_s_gradients(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    path = tmp_path / "m.gguf"
    sites = sites_of(open_source(str(folder), None, None), path)
    squares = [
        GradientMeter(open_source(str(model), None, None), 0, sites).measure(windows(1), tmp_path / f"kept{i}")
        for i, model in enumerate((folder, path))
    ]
    np.testing.assert_allclose(squares[0], squares[1], rtol=1e-3, atol=1e-9)


def test_a_model_that_transformers_computes_otherwise_is_refused(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    source = open_source(str(folder), None, None)
    meter = GradientMeter(source, 0, sites_of(source, tmp_path / "m.gguf"))
    logits = np.random.default_rng(0).standard_normal((16, LLAMA["vocab_size"])).astype(np.float32)
    with pytest.raises(ConvertError, match=r"disagree on this model by .* nats"):
        meter.check_agrees(3 * logits, windows(1)[0])


def test_conversions_with_gradients_go_on_to_the_identical_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    run = convert(folder, tmp_path / "whole.gguf", hessian="end-loss")
    assert "gradients" in run.report.seconds and run.report.settings["hessian"] == "end-loss"
    convert(folder, tmp_path / "plain.gguf")
    put, calls = Journal.put, 0

    def fails_in_the_fourth(self: Journal, index: int, records: np.ndarray) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:  # after the text's
            raise ZeroDivisionError
        put(self, index, records)

    monkeypatch.setattr(Journal, "put", fails_in_the_fourth)
    with pytest.raises(ZeroDivisionError):
        convert(folder, tmp_path / "parts.gguf", hessian="end-loss")
    convert(folder, tmp_path / "parts.gguf", hessian="end-loss")
    assert calls == 5 + 3  # the text and three windows were kept
    whole, parts, plain = ((tmp_path / f"{name}.gguf").read_bytes() for name in ("whole", "parts", "plain"))
    assert whole == parts != plain
    assert _core.GgufFile(tmp_path / "whole.gguf").quantized()


DENSE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2", "granite")


@pytest.mark.parametrize("model_type", DENSE)
def test_every_dense_architecture_has_gradients(tmp_path: Path, model_type: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"vocab_size": 320, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}
    config = transformers.AutoConfig.for_model(model_type, **sizes, **ids, head_dim=12, max_position_embeddings=64)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).float().save_pretrained(tmp_path)
    source = open_source(str(tmp_path), needs_tokenizer=False)
    meter, window = GradientMeter(source, 0, sites_of(source, tmp_path / "m.gguf")), windows(1)
    meter.check_agrees(_logits(_core.Model(str(tmp_path / "m.gguf"), precision="f32", threads=1), window[0]), window[0])
    assert (meter.measure(window, tmp_path / "kept") > 0).all()
