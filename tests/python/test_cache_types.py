"""Quantized key/value caches: names, loss, saved states, prefixes, and the command line."""

import json
from typing import Any

import numpy as np
import pytest

from turboquant_native import Llama, LlamaRAMCache, _core
from turboquant_native._core import FormatError
from turboquant_native.commands import cli
from turboquant_native.engine.cache_types import CHOICES, MEASURED, cache_type, is_balanced, measured_choice, types_of

CODED = [choice for choice in CHOICES if choice != "f16"]


def test_names():
    assert cache_type(None, None) == "auto" and cache_type(1, None) == "f16" and cache_type("f16", 0) == "f32"
    assert cache_type(8, 2) == "k8v4" == cache_type("q8_0", "q4_0") == cache_type(6, 20), "types between are rounded up"
    assert [cache_type(*types_of(choice)) for choice in CHOICES] == ["auto", *CODED]
    for k, v in ((8, None), ("f16", "q4_0"), (99, 8), ("q2_k", "q2_k")):
        with pytest.raises(ValueError, match="type_k"):
            cache_type(k, v)


def test_auto_is_what_was_measured():
    assert cache_type("auto", None) == cache_type(*types_of("auto")) == MEASURED
    assert measured_choice("llama", [64, 64], False) == measured_choice("llama", [64], True)
    little, lacking, unknown = (
        measured_choice(*model) for model in (("llama", [64], False), ("qwen2", [64], False), ("gemma2", [64], True))
    )
    assert little == measured_choice("qwen2", [64], True) == ("k8v8", "measured to lose little with such models")
    assert unknown == measured_choice("llama", [64, 128], True) == ("f16", "quantized caches were not measured with such models")
    assert lacking.cache == "f16" and "not every layer of the file has means and balances" in lacking.why
    names = [f"blk.{i}.attn_k_cache_{kind}.weight" for i in (0, 1) for kind in ("mean", "balance")]
    assert is_balanced(names, [0, 1]) and is_balanced(names, [1]) and not is_balanced(names, [0, 2]) and not is_balanced(names, [])
    assert not any(is_balanced([name for name in names if name != left], [0, 1]) for left in names), "each layer has both"
    with pytest.raises(ValueError, match="auto chooses both"):
        cache_type("auto", 8)


def test_auto_says_what_it_took(tiny_tqn, capsys, caplog):
    why = "quantized caches were not measured with such models"  # heads of 16
    for precision, cache in (("int8", "f16"), ("f32", "f32")):
        with caplog.at_level("INFO"), Llama(str(tiny_tqn), n_ctx=64, type_k="auto", precision=precision, verbose=False) as llm:
            assert (llm.cache_stats()["type"], llm.cache_stats()["why"]) == (cache, why)
        assert f"cache: auto is {cache}: {why}" in caplog.text
        asked = ["--cache", "auto", "--ctx", "64", "--precision", precision]
        for rest in (["Hello", "-n", "2", "--raw"], ["--fit-only"]):
            assert cli.main(["run", str(tiny_tqn), *rest, *asked]) == 0
            assert f"(cache: {cache}: {why})" in capsys.readouterr().err
    with Llama(str(tiny_tqn), n_ctx=64, type_k=8, type_v=2, verbose=False) as llm:
        assert (llm.cache_stats()["type"], llm.cache_stats()["why"]) == ("k8v4", None)
    assert cli.main(["run", str(tiny_tqn), "Hello", "-n", "2", "--raw", "--cache", "k8v4", "--ctx", "64"]) == 0
    assert "(cache" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "serve", "eval", "bench"])
def test_the_default_of_cache_is_named_as_one(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    described = " ".join(capsys.readouterr().out.split()).partition("keys and values" if command != "bench" else "of --depth:")[2]
    assert described.partition(")")[0].endswith("(default: f16")


def logits(model: Any, cache: str, tokens: np.ndarray, step: int) -> np.ndarray:
    context = _core.Context(model, n_ctx=len(tokens), n_batch=64, cache=cache)
    return np.concatenate([context.eval(tokens[i : i + step], i, logits="all") for i in range(0, len(tokens), step)])


@pytest.fixture(scope="module")
def core(tiny_tqn):
    return _core.Model(str(tiny_tqn), precision="f32", threads=1)


def test_loss_is_small_for_prompts_and_token_by_token(core):
    tokens = np.random.default_rng(0).integers(0, 200, 150).astype(np.int32)
    exact = logits(core, "f32", tokens, 150)
    spread = exact.std()
    for cache, most in (("k8v8", 0.01), ("k8v4", 0.06), ("k4v8", 0.12), ("k4v4", 0.12)):
        errors = [np.sqrt(np.mean((logits(core, cache, tokens, step) - exact) ** 2)) / spread for step in (64, 1)]
        assert 0 < max(errors) < most, (cache, errors)


@pytest.mark.parametrize("cache", CODED)
def test_state_comes_back_to_the_bit(core, cache):
    tokens = np.arange(100, dtype=np.int32)
    context = _core.Context(core, n_ctx=128, n_slots=2, cache=cache)
    context.eval(tokens, 0, 0, "none")
    after = context.eval(tokens[:1], 100, 0)
    state = context.save(0, 100)
    other = _core.Context(core, n_ctx=128, n_slots=2, cache=cache)
    other.eval(tokens[::-1].copy(), 0, 1, "none")  # what the slot held before does not matter
    other.load(1, state)
    assert np.array_equal(other.eval(tokens[:1], 100, 1), after)
    context.copy_slot(0, 1, 100)
    assert np.array_equal(context.eval(tokens[:1], 100, 1), after)
    context.rewind(0, 70)  # within a tile
    context.eval(tokens[70:], 70, 0, "none")
    assert np.allclose(context.eval(tokens[:1], 100, 0), after, atol=1e-4 * np.abs(after).max())
    for wrong in ("f16", *(name for name in CODED if name != cache)):
        with pytest.raises(FormatError, match="type"):
            _core.Context(core, n_ctx=128, cache=wrong).load(0, state)


@pytest.mark.parametrize("cache", CODED)
def test_saved_bytes_do_not_depend_on_what_was_there_before(core, cache):
    tokens = np.arange(70, dtype=np.int32)  # the second tile has room
    fresh, used = (_core.Context(core, n_ctx=128, cache=cache) for _ in range(2))
    used.eval(np.arange(200, 72, -1, dtype=np.int32), 0, 0, "none")
    for context in (fresh, used):
        context.rewind(0, 0)
        context.eval(tokens, 0, 0, "none")
    assert fresh.save(0, 70) == used.save(0, 70)
    assert fresh.save(0, 64) == used.save(0, 64) and fresh.save(0, 3) == used.save(0, 3)


@pytest.fixture(scope="module")
def integers(tiny_tqn):
    """The model as users run it: int8 activations."""
    return _core.Model(str(tiny_tqn), threads=2)


def forward(context: Any, rows: list[tuple[int, int, int]]) -> np.ndarray:
    """Logits of a pass of (token, position, slot)."""
    columns = np.array(rows, np.int32).T
    return context.forward(*(np.ascontiguousarray(column) for column in columns), np.arange(len(rows), dtype=np.int32))


@pytest.mark.parametrize("cache", CODED)
def test_results_have_the_same_bits_however_they_came_about(integers, cache):
    """Chunks, batches with others, rollbacks, copies, saved states, threads: all logits of a text are equal to the bit."""
    text = np.random.default_rng(3).integers(0, 200, 150).astype(np.int32)
    other = np.random.default_rng(4).integers(0, 200, 150).astype(np.int32)

    def opened(n_batch: int = 256, slots: int = 1) -> Any:
        return _core.Context(integers, n_ctx=160, n_batch=n_batch, n_slots=slots, cache=cache)

    expected = opened().eval(text, 0, logits="all")
    assert np.isfinite(expected).all()
    for n_batch in (1, 7, 64, 100):
        assert np.array_equal(opened(n_batch).eval(text, 0, logits="all"), expected), n_batch
    context = opened(256, 3)
    found = [context.eval(text[:40], 0, 1, "all")]
    context.eval(other[:90], 0, 0, "none")
    for at in range(40, 60):  # token by token beside another sequence, of another length
        found.append(forward(context, [(other[at + 50], at + 50, 0), (text[at], at, 1)])[1:])
    found.append(forward(context, [(text[at], at, 1) for at in range(60, 75)] + [(other[110], 110, 0)])[:15])
    context.eval(other[:30], 75, 1, "none")
    context.rewind(1, 70)  # within a tile
    found[-1] = found[-1][:10]
    found.append(context.eval(text[70:100], 70, 1, "all"))
    context.copy_slot(1, 2, 100)
    found.append(context.eval(text[100:120], 100, 2, "all"))
    loaded = opened(33)
    loaded.eval(other, 0, 0, "none")
    loaded.load(0, context.save(2, 120))
    found.append(loaded.eval(text[120:], 120, 0, "all"))
    assert np.array_equal(np.concatenate(found), expected)
    one = opened()
    one.set_threads(1, 1)
    assert np.array_equal(one.eval(text, 0, logits="all"), expected)
    one.set_threads(2, 2)


def test_memory_is_what_the_layout_says(core):
    sizes = {cache: _core.Context(core, n_ctx=192, cache=cache).memory_bytes for cache in CHOICES}
    heads = [(layer["head_dim"], layer["n_kv_heads"]) for layer in core.config["layers"]]
    per_token = {cache: sum(_core.cached_bytes(cache, dim) * count for dim, count in heads) for cache in CHOICES}
    for cache in CODED:
        assert sizes["f16"] - sizes[cache] == 192 * (per_token["f16"] - per_token[cache])
    assert _core.cached_bytes("k8v4", 128) == 128 + 64 + 4 and _core.cached_bytes("f16", 128) == 512
    with pytest.raises(ValueError, match="k9v9"):
        _core.cached_bytes("k9v9", 64)


def test_llama_shares_prefixes_and_speculates(tiny_tqn):
    from turboquant_native.speculative import LlamaPromptLookupDecoding

    options: dict[str, Any] = {"n_ctx": 256, "type_k": 8, "type_v": 2, "verbose": False, "precision": "f32"}
    prompt = "The quick brown fox jumps over the lazy dog. The quick brown"
    with Llama(str(tiny_tqn), **options) as llm:
        first = llm(prompt, max_tokens=24, temperature=0)["choices"][0]["text"]
        assert llm(prompt + first[:4], max_tokens=1, temperature=0)["choices"][0]["text"]
        assert llm(prompt, max_tokens=24, temperature=0)["choices"][0]["text"] == first
        state = llm.save_state()
        llm.reset()
        llm.load_state(state)
    with Llama(str(tiny_tqn), draft_model=LlamaPromptLookupDecoding(), **options) as llm:
        assert llm(prompt, max_tokens=24, temperature=0)["choices"][0]["text"] == first


def test_kept_states_of_another_type_are_passed_over(tiny_tqn):
    kept = LlamaRAMCache()
    texts = []
    for types in ((None, None), (8, 8), (None, None)):
        with Llama(str(tiny_tqn), n_ctx=64, type_k=types[0], type_v=types[1], verbose=False) as llm:
            llm.set_cache(kept)
            texts.append(llm("The quick brown fox", max_tokens=4, temperature=0)["choices"][0]["text"])
    assert texts[2] == texts[0]


def test_command_line(tiny_tqn, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    assert cli.main(["eval", str(tiny_tqn), "--text", str(text), "--ctx", "64", "--windows", "2", "--cache", "k8v8", "--json"]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["kld_mean"] < 0.05
    assert cli.main(["bench", str(tiny_tqn), "-p", "8", "-n", "4", "-r", "1", "--depth", "0,32", "--cache", "f16,k4v4", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["depth"]
    assert [(row["depth"], row["cache"]) for row in rows] == [(0, "f16"), (0, "k4v4"), (32, "f16"), (32, "k4v4")]
    assert rows[3]["context_bytes"] < rows[2]["context_bytes"]
    for wrong in (["--cache", "k4v4"], ["--depth", "8", "--cache", "k3"], ["--depth", "-1"]):
        assert cli.main(["bench", str(tiny_tqn), *wrong]) == 1
        assert wrong[-1] in capsys.readouterr().err
    assert cli.main(["run", str(tiny_tqn), "Hello", "-n", "4", "--raw", "--cache", "k4v4", "--ctx", "64"]) == 0
