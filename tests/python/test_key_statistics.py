"""Means and balances of keys for quantized caches: what calibration measures, what a file holds, what the engine makes of it."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiny_models import LLAMA, llama_tensors, save_llama
from turboquant_native import _core
from turboquant_native._core import FormatError
from turboquant_native.calibrate import key_statistics
from turboquant_native.calibrate.quantizer import Quantizer
from turboquant_native.calibrate.request import CACHE_STATISTICS, Request
from turboquant_native.commands import cli
from turboquant_native.common.errors import ConvertError
from turboquant_native.convert.conversion import Options, make_plan, write_model
from turboquant_native.convert.sources import open_source

CODED = ("k8v8", "k8v4", "k4v8", "k4v4")
N_KV, DIM, LAYERS, N = 2, 12, 2, 150
Vectors = Mapping[str, np.ndarray]
Write = Callable[..., str]


def name_of(layer: int, kind: str) -> str:
    return f"blk.{layer}.attn_k_cache_{kind}.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose keys are far from zero where pairs hardly turn, by biases, as those of Qwen 2.5 are."""
    config = {**LLAMA, "max_position_embeddings": 256, "rope_theta": 1e6, "attention_bias": True}
    rng, tensors = np.random.default_rng(5), llama_tensors(config)
    for layer in range(LAYERS):
        attention = f"model.layers.{layer}.self_attn."
        for name, width in (("q", 48), ("k", N_KV * DIM), ("v", N_KV * DIM), ("o", 48)):
            tensors[f"{attention}{name}_proj.bias"] = np.zeros(width, np.float32)
        tensors[f"{attention}k_proj.bias"] = (8 * rng.standard_normal(N_KV * DIM)).astype(np.float32)
    return save_llama(tmp_path_factory.mktemp("keys") / "hf", config, tensors)


@pytest.fixture(scope="module")
def write(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Writes the model with further tensors, unquantized or at 6 bits; the file's path."""
    source, place = open_source(str(folder), None, None), tmp_path_factory.mktemp("files")

    def written(further: Vectors, packed: bool = False) -> str:
        path = place / f"{len(list(place.iterdir()))}.gguf"
        write_model(source, make_plan(source, Options(bits=6) if packed else Options(outtype="f32")), path, further=dict(further))
        return str(path)

    return written


def opened(path: str, precision: str = "f32", threads: int = 1) -> Any:
    return _core.Model(path, precision=precision, threads=threads)


@pytest.fixture(scope="module")
def plain(write: Write) -> Any:
    return opened(write({}))


@pytest.fixture(scope="module")
def measured(plain: Any) -> Vectors:
    windows = np.random.default_rng(7).integers(2, 300, (6, 64)).astype(np.int32)
    return key_statistics.statistics(plain, windows, "both")


@pytest.fixture(scope="module")
def balanced(write: Write, measured: Vectors) -> Any:
    return opened(write(measured))


def logits(model: Any, cache: str, step: int = 64, tokens: np.ndarray | None = None) -> np.ndarray:
    tokens = tokens_of(0) if tokens is None else tokens
    context = _core.Context(model, n_ctx=len(tokens), n_batch=64, cache=cache)
    return np.concatenate([context.eval(tokens[i : i + step], i, logits="all") for i in range(0, len(tokens), step)])


def tokens_of(seed: int, n: int = N) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, 300, n).astype(np.int32)


def keys_of(model: Any, tokens: np.ndarray) -> np.ndarray:
    """(layers, n_kv_heads, positions, head_dim) behind the rotary embedding, as a float32 cache holds them."""
    context = _core.Context(model, n_ctx=len(tokens), cache="f32")
    context.eval(tokens, 0, 0, "none")
    state = context.save(0, len(tokens))
    floats = np.frombuffer(state[32 + 64 * LAYERS :], np.float32)
    return floats.reshape(LAYERS, 2, N_KV, len(tokens), DIM)[:, 0]


# --- what is measured


def test_means_are_those_of_the_cache(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every position of a window counted alike, a model whose keys do not depend on the token has exactly its keys' mean."""
    windows = np.repeat(tokens_of(1, 8)[:, None], 64, axis=1)  # each of one token: its keys before the turn are alike
    positions = np.arange(1, 64)

    def alike(frequencies: np.ndarray, magnitude: float, _: int) -> np.ndarray:
        return magnitude * np.exp(1j * positions[:, None] * frequencies.astype(np.float64)).mean(0)

    monkeypatch.setattr(key_statistics, "mean_turns", alike)
    found = key_statistics.statistics(plain, windows, "means")
    assert sorted(found) == [name_of(layer, "mean") for layer in range(LAYERS)]
    expected = np.mean([keys_of(plain, window)[:, :, 1:].mean(2) for window in windows], axis=0)
    # of the first layer alone: behind it keys know the positions
    np.testing.assert_allclose(found[name_of(0, "mean")], expected[0], atol=1e-4)


def test_mean_turns_of_pairs_that_hardly_turn_and_of_those_that_turn_often() -> None:
    turns = key_statistics.mean_turns(np.array([0.0, 1.0]), 1.0, 4096)
    assert turns[0] == pytest.approx(1) and abs(turns[1]) < 0.01
    assert key_statistics.mean_turns(np.array([0.0]), 1.5, 64)[0] == pytest.approx(1.5)


@pytest.mark.parametrize("interleaved", [False, True])
def test_balances_give_the_smallest_product_one_number_a_pair(interleaved: bool) -> None:
    rng = np.random.default_rng(2)
    keys, queries = np.exp(rng.normal(size=(2, 12))), np.exp(rng.normal(size=(2, 12)))
    found = key_statistics.balance(keys, queries, 8, interleaved)
    first, second = key_statistics._pairs(8, interleaved)
    assert np.array_equal(found[:, first], found[:, second])
    np.testing.assert_allclose(np.log(found).mean(1), 0, atol=1e-12)

    def product(s: np.ndarray) -> np.ndarray:
        return (keys / s**2).sum(1) * (queries * s**2).sum(1)

    for _ in range(50):
        other = np.exp(0.1 * rng.normal(size=found.shape))
        other[:, first] = other[:, second]
        assert (product(found * other) > product(found)).all()
    assert (product(np.ones_like(found)) > product(found)).all()
    far = key_statistics.balance(np.array([1e9, 1e9, 1.0, 1.0]), np.ones(4), 0, interleaved)
    assert far.max() <= 8 and far.min() >= 1 / 8


# --- what it is good for


def test_large_means_cost_nothing_where_the_file_has_them(plain: Any, balanced: Any) -> None:
    exact = logits(plain, "f32")
    assert np.array_equal(logits(balanced, "f32"), exact) and np.array_equal(logits(balanced, "f16"), logits(plain, "f16"))
    for cache, most in (("k8v8", 0.01), ("k8v4", 0.06), ("k4v8", 0.06), ("k4v4", 0.06)):
        for step in (64, 1):
            with_them, without = (np.sqrt(np.mean((logits(m, cache, step) - exact) ** 2)) / exact.std() for m in (balanced, plain))
            assert with_them < most, (cache, step)
            if cache != "k8v4":  # there values of 4 bits cost more than keys
                assert with_them < 0.7 * without, (cache, step)


@pytest.mark.parametrize("cache", CODED)
def test_means_of_zero_and_balances_of_one_change_no_bit(plain: Any, write: Write, cache: str) -> None:
    neutral = {name_of(i, kind): np.full((N_KV, DIM), kind == "balance", np.float32) for i in range(LAYERS) for kind in ("mean", "balance")}
    assert np.array_equal(logits(opened(write(neutral)), cache), logits(plain, cache))


@pytest.mark.parametrize("cache", CODED)
def test_the_same_bits_for_any_batches_rollbacks_copies_and_states(write: Write, measured: Vectors, cache: str) -> None:
    model, text, other = opened(write(measured, packed=True), "int8", 2), tokens_of(3), tokens_of(4)

    def new(n_batch: int = 256, slots: int = 1) -> Any:
        return _core.Context(model, n_ctx=160, n_batch=n_batch, n_slots=slots, cache=cache)

    expected = new().eval(text, 0, logits="all")
    for n_batch in (1, 7, 100):
        assert np.array_equal(new(n_batch).eval(text, 0, logits="all"), expected), n_batch
    context = new(256, 3)
    found = [context.eval(text[:40], 0, 1, "all")]
    context.eval(other[:90], 0, 0, "none")
    for at in range(40, 60):
        rows = np.array([(other[at + 50], at + 50, 0), (text[at], at, 1)], np.int32).T
        found.append(context.forward(*(np.ascontiguousarray(row) for row in rows), np.arange(2, dtype=np.int32))[1:])
    context.eval(other[:30], 60, 1, "none")
    context.rewind(1, 60)
    found.append(context.eval(text[60:100], 60, 1, "all"))
    context.copy_slot(1, 2, 100)
    found.append(context.eval(text[100:120], 100, 2, "all"))
    loaded = new(33)
    loaded.load(0, context.save(2, 120))
    found.append(loaded.eval(text[120:], 120, 0, "all"))
    assert np.array_equal(np.concatenate(found), expected)


# --- states


@pytest.mark.parametrize("cache", CODED)
def test_numbers_become_the_codes_that_a_context_stores_and_numbers_again(balanced: Any, cache: str) -> None:
    tokens = tokens_of(5, 100)
    exact, coded = (_core.Context(balanced, n_ctx=128, cache=name) for name in ("f32", cache))
    for context in (exact, coded):
        context.eval(tokens, 0, 0, "none")
    state = exact.save(0, 100)
    converted, native = exact.convert(state, 100, cache), coded.save(0, 100)
    first = 32 + 64 * LAYERS + N_KV * 2 * 64 * (_core.cached_bytes(cache, DIM) if cache in ("k8v8", "k4v4") else 0)
    assert converted[:first] == native[:first], "the first layer's keys have seen no cache"
    back = np.frombuffer(exact.convert(converted, 100, "f32"), np.float32, offset=32 + 64 * LAYERS)
    want = np.frombuffer(state, np.float32, offset=32 + 64 * LAYERS)
    assert np.sqrt(np.mean((back - want) ** 2)) < (0.01 if cache == "k8v8" else 0.1) * want.std()


def test_states_of_other_statistics_are_refused(plain: Any, balanced: Any, measured: Vectors, write: Write) -> None:
    nudged = dict(measured)
    nudged[name_of(1, "mean")] = np.nextafter(measured[name_of(1, "mean")], np.float32(np.inf))
    half = {name: values for name, values in measured.items() if "balance" in name}
    tokens = tokens_of(6, 70)

    def state_of(model: Any, cache: str) -> bytes:
        context = _core.Context(model, n_ctx=128, cache=cache)
        context.eval(tokens, 0, 0, "none")
        return context.save(0, 70)

    for cache in ("k8v8", "k4v4"):
        state, context = state_of(balanced, cache), _core.Context(balanced, n_ctx=128, cache=cache)
        context.load(0, state)
        for layer, model in ((0, plain), (1, opened(write(nudged))), (0, opened(write(half)))):
            other = _core.Context(model, n_ctx=128, cache=cache)
            for refused in (
                lambda other=other, state=state: other.load(0, state),
                lambda other=other, state=state: other.convert(state, 70, "f16"),
                lambda context=context, model=model, cache=cache: context.load(0, state_of(model, cache)),
            ):
                with pytest.raises(FormatError, match=f"layer {layer} made codes of its keys with") as error:
                    refused()
                prints = re.findall("of the fingerprint ([0-9a-f]{16})", str(error.value))
                assert len(set(prints)) == 2 or (model is plain and len(prints) == 1 and "without means or balances" in str(error.value))
                assert "keeps keys" not in str(error.value), "the types are the same"
        another = _core.Context(plain, n_ctx=128, cache="k8v4")
        types = f"it keeps keys and values as {cache[1]}-bit codes and {cache[3]}-bit codes, here as 8-bit codes and 4-bit codes"
        with pytest.raises(FormatError, match=f"layer 0 made codes of its keys with means .* here without means or balances; {types}"):
            another.load(0, state)
    _core.Context(plain, n_ctx=128, cache="f16").load(0, state_of(balanced, "f16"))  # numbers are the same in all of them


# --- what a file may hold


def test_damaged_statistics_are_refused_by_name(measured: Vectors, write: Write) -> None:
    def changed(kind: str, value: float) -> np.ndarray:
        values = measured[name_of(1, kind)].copy()
        values[1, 3] = value
        return values

    wrong = {
        "not finite at 15: nan": ("mean", changed("mean", np.nan)),
        "is not finite at 15: -inf": ("balance", changed("balance", -np.inf)),
        r"is 1e\+30 at 15, expected -65504 to 65504": ("mean", changed("mean", 1e30)),
        "is 0 at 15, expected 0.0009765625 to 1024": ("balance", changed("balance", 0)),
        "is -1 at 15": ("balance", changed("balance", -1)),
        "is 1024.0001 at 15": ("balance", changed("balance", np.nextafter(np.float32(1024), np.float32(2000)))),
        "has the type F16, expected F32": ("mean", measured[name_of(1, "mean")].astype(np.float16)),
        "has the type I32, expected F32": ("balance", np.ones((N_KV, DIM), np.int32)),
        r"has the shape \(2, 6\), expected \(2, 12\)": ("mean", np.zeros((2, 6), np.float32)),
        r"has the shape \(24\), expected \(2, 12\)": ("balance", np.ones(24, np.float32)),
    }
    for message, (kind, values) in wrong.items():
        path = write({**measured, name_of(1, kind): values})
        with pytest.raises(FormatError, match=f"{Path(path).name}: tensor {name_of(1, kind)} .*{message}"):
            opened(path)


def test_means_are_bounded_as_keys_lose_them(write: Write) -> None:
    """Divided by the balance: the largest that is let in leaves finite codes, what is beyond is refused by name."""
    mean, balance = np.zeros((N_KV, DIM), np.float32), np.full((N_KV, DIM), 1 / 1024, np.float32)
    mean[1] = 65504 / 1024
    largest = write({name_of(0, "mean"): mean, name_of(0, "balance"): balance})
    assert np.isfinite(logits(opened(largest), "k8v8")).all() and np.isfinite(logits(opened(largest), "k4v4")).all()
    mean[1, 3] = 64
    beyond = write({name_of(0, "mean"): mean, name_of(0, "balance"): balance})
    told = "is 64 at 15, divided by the balance there, 0.0009765625, 65536, expected -65504 to 65504"
    with pytest.raises(FormatError, match=f"{Path(beyond).name}: tensor {name_of(0, 'mean')} {told}"):
        opened(beyond)


def test_statistics_of_no_layer_are_refused(measured: Vectors, write: Write) -> None:
    ones = np.ones((N_KV, DIM), np.float32)
    for stray in (name_of(LAYERS, "mean"), name_of(0, "median"), "blk.01.attn_k_cache_mean.weight"):
        with pytest.raises(FormatError, match=f"tensor {stray}: the model has no layer whose keys"):
            opened(write({**measured, stray: ones}))
    opened(write({name_of(1, "balance"): measured[name_of(1, "balance")]})).close()  # layers may differ


def test_info_names_them_and_counts_no_weights(measured: Vectors, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    with_them, without = write(measured, packed=True), write({}, packed=True)
    shown = []
    for path in (with_them, without):
        assert cli.main(["info", path, "--json"]) == 0
        shown.append(json.loads(capsys.readouterr().out))
    for key in ("parameters", "bits_per_weight", "bits_per_weight_without_embeddings", "ratio_to_f16"):
        assert shown[0][key] == shown[1][key]
    assert (shown[0]["key_statistics_bytes"], shown[1]["key_statistics_bytes"]) == (LAYERS * 2 * N_KV * DIM * 4, 0)
    assert cli.main(["info", with_them]) == 0 and "means of 2 layers, balances of 2 layers: 384 bytes" in capsys.readouterr().out
    assert cli.main(["info", without]) == 0 and "statistics of keys" not in capsys.readouterr().out


@pytest.mark.parametrize(("name", "what"), [("gemma2", "a soft cap"), ("gpt_oss", "sinks")])
def test_soft_caps_and_sinks_take_no_means(tmp_path_factory: pytest.TempPathFactory, name: str, what: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from architecture_cases import CASES, References

    reference = References(tmp_path_factory).of(next(case for case in CASES if case.name == name))
    source, place = open_source(str(reference.folder), needs_tokenizer=False), tmp_path_factory.mktemp(name)

    def model(file: str, further: dict[str, np.ndarray]) -> Any:
        write_model(source, make_plan(source, Options(outtype="f32")), place / file, further=further)
        return opened(str(place / file))

    plain = model("plain.gguf", {})
    keeping = [i for i, layer in enumerate(plain.config["layers"]) if layer["keeps_codes"]]
    assert 0 < len(keeping) < len(plain.config["layers"]) and plain.file.layers_with_codes() == keeping
    found = key_statistics.statistics(plain, tokens_of(8, 128).reshape(4, 32) % 96, "both")
    assert sorted(found) == [name_of(layer, "balance") for layer in keeping], "layers with a window keep numbers"
    exact, coded = (
        logits(opened_one, cache, tokens=reference.tokens) for opened_one, cache in ((plain, "f32"), (model("b.gguf", found), "k8v8"))
    )
    assert 0 < np.sqrt(np.mean((coded - exact) ** 2)) < 0.02 * exact.std()
    mean = name_of(keeping[0], "mean")
    with pytest.raises(FormatError, match=f"{mean}: a layer with {what}"):
        model("means.gguf", {mean: np.ones_like(found[name_of(keeping[0], "balance")])})


# --- the converter


@pytest.mark.parametrize("kind", CACHE_STATISTICS)
def test_calibrated_files_hold_what_was_asked_for(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    from turboquant_native.calibrate import request as requests

    monkeypatch.setattr(requests, "EFFORTS", {"fast": requests.Effort(4, 2, probes=2, sensitivity_probes=2)})
    request = Request(effort="fast", seq_len=32, cache_statistics=kind)
    out = tmp_path / "model.gguf"
    Quantizer(open_source(str(folder), None, None), out, Options(bits=6, embed_bits=6), request, threads=1).run()
    file = _core.GgufFile(str(out))
    names = [name for name, _, _ in file.tensors() if "cache" in name]
    kinds = {"none": [], "means": ["mean"], "balances": ["balance"], "both": ["mean", "balance"]}[kind]
    assert names == [name_of(layer, each) for layer in range(LAYERS) for each in kinds]
    model = opened(str(out))
    for name in names:
        assert file.data(name).shape == (N_KV, DIM) and np.isfinite(file.data(name)).all()
    error = np.sqrt(np.mean((logits(model, "k8v8") - logits(model, "f32")) ** 2)) / logits(model, "f32").std()
    assert error < 0.01 or kind in ("none", "balances")


def test_the_command_line_and_requests_know_the_kinds(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "m.gguf")
    assert cli.main(["convert", str(folder), out, "--effort", "none", "--bits", "6", "--cache-statistics", "means"]) == 1
    assert "--cache-statistics means: --effort none measures nothing" in capsys.readouterr().err
    assert cli.main(["convert", str(folder), out, "--effort", "none", "--bits", "6", "--cache-statistics", "none"]) == 0
    with pytest.raises(ConvertError, match="--cache-statistics all"):
        Request(cache_statistics="all")
    assert Request().cache_statistics == "both"
