"""Precision that follows the load: states in fewer bits, a budget of bytes for slots and prefixes, drafts that get shorter."""

import argparse
from typing import Any

import numpy as np
import pytest

from test_scheduler import generated, work
from turboquant_native import Llama, _core
from turboquant_native._core import FormatError
from turboquant_native.engine.cache_budget import draft_depth
from turboquant_native.engine.cache_types import budget_levels, four_bit_keys
from turboquant_native.engine.engine import Engine
from turboquant_native.engine.work import Evaluation

LEVELS = budget_levels("f16", True)
HEADER, RECORD = 32, 64  # bytes of a saved state's header, and for each layer (cpp/model/saved_state.cpp)


@pytest.fixture(scope="module")
def core(tiny_tqn):
    return _core.Model(str(tiny_tqn), precision="f32", threads=1)


def tokens_of(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, n).astype(np.int32)


# --- states in fewer bits


@pytest.mark.parametrize("cache", LEVELS[1:])
def test_converted_states_hold_the_codes_that_a_context_would_have_stored(core, cache):
    tokens = tokens_of(0, 100)
    plain = _core.Context(core, n_ctx=128, cache="f32")
    coded = _core.Context(core, n_ctx=128, cache=cache)
    for context in (plain, coded):
        context.eval(tokens, 0, 0, "none")
    converted = plain.convert(plain.save(0, 100), 100, cache)
    native = coded.save(0, 100)
    assert len(converted) == len(native) == coded.state_bytes(100)
    layer = core.config["layers"][0]
    # the first layer's keys and values have seen no cache: they are equal to the bit
    first = HEADER + RECORD * core.config["n_layers"]
    size = 2 * layer["n_kv_heads"] * -(-100 // 64) * 64 * _core.cached_bytes(cache, layer["head_dim"]) // 2
    assert converted[: first + size] == native[: first + size]
    assert plain.convert(plain.save(0, 100), 70, cache) == plain.convert(plain.save(0, 70), 70, cache), "cut within a tile"
    coded.load(0, converted)
    assert np.isfinite(coded.eval(tokens[:1], 100, 0)).all()


def test_conversion_loses_what_the_bits_say_and_own_bits_nothing(core):
    tokens = tokens_of(1, 90)
    context = _core.Context(core, n_ctx=128, cache="f16")
    context.eval(tokens, 0, 0, "none")
    exact = context.eval(tokens[:1], 90, 0)
    state = context.save(0, 90)
    assert context.convert(state, 90, "auto") == context.convert(state, 90, "f16") == state
    errors = []
    for cache in LEVELS[1:]:
        smaller = context.convert(state, 90, cache)
        assert context.convert(smaller, 90, cache) == smaller
        context.load(0, context.convert(smaller, 90, "auto"))
        errors.append(np.sqrt(np.mean((context.eval(tokens[:1], 90, 0) - exact) ** 2)) / exact.std())
    assert 0 < errors[0] < 0.01 < errors[1] < 0.1 and errors[0] < errors[2] < 0.2
    eight = context.convert(state, 90, "k8v8")
    assert context.convert(eight, 90, "k8v4") != context.convert(state, 90, "k8v4"), "codes of codes are not those of the numbers"


def test_states_are_refused_by_name(core):
    context = _core.Context(core, n_ctx=128, cache="f16")
    context.eval(tokens_of(2, 70), 0, 0, "none")
    state = context.save(0, 70)
    changed = {
        7: (b"3", "version 3, this release reads version 4"),
        8: (b"\x20", "tiles of 32 positions"),
        12: (b"\x09", "codes of version 9"),
        HEADER + 16: (b"\x07", "type 7 of cached numbers"),
        HEADER: (b"\x01", "another model"),
    }
    for at, (byte, message) in changed.items():
        wrong = state[:at] + byte + state[at + 1 :]
        for refuse in (lambda wrong=wrong: context.load(0, wrong), lambda wrong=wrong: context.convert(wrong, 70, "k8v8")):
            with pytest.raises(FormatError, match=message):
                refuse()
    with pytest.raises(FormatError, match="layer 0 keeps keys and values as f16 and f16, here as 8-bit codes and 4-bit codes"):
        _core.Context(core, n_ctx=128, cache="k8v4").load(0, state)
    for n in (71, -1):
        with pytest.raises(ValueError, match="70 positions"):
            context.convert(state, n, "f16")
    with pytest.raises(FormatError):
        context.convert(state[:-1], 70, "f16")
    assert context.positions(0) == 70


def test_released_slots_begin_anew(core):
    context = _core.Context(core, n_ctx=4096, n_slots=2, cache="f16")
    tokens = tokens_of(3, 300)
    context.eval(tokens, 0, 1, "none")
    first = context.eval(tokens, 0, 0, "none"), context.save(0, 300)
    context.release(0)
    assert context.positions(0) == 0 and context.positions(1) == 300
    context.eval(tokens, 0, 0, "none")
    assert context.save(0, 300) == first[1] == context.save(1, 300)


# --- the budget


def opened(path: str, budget: int, **options: Any) -> Engine:
    return Engine(path, n_ctx=128, n_slots=2, max_slots=2, n_threads=1, cache_budget=budget, **options)


def ask(engine: Engine, *seeds: int, n: int = 100) -> list[int]:
    """Evaluates prompts one after the other; returns how many tokens of each were cached."""
    found = []
    for seed in seeds:
        handle = engine.scheduler.submit(Evaluation(tokens_of(seed, n), 1))
        handle.wait()
        found.append(handle.cached_tokens)
    return found


@pytest.fixture
def per_prefix(tiny_tqn):
    with Llama(str(tiny_tqn), n_ctx=128, verbose=False) as llm:
        return llm.engine.context.state_bytes(100)


def test_prefixes_beyond_the_slots_are_kept_as_they_are_while_they_fit(tiny_tqn, per_prefix):
    engine = opened(str(tiny_tqn), 6 * per_prefix)
    exact = [[engine.evaluate(tokens_of(seed, 100)) for _ in range(2)][1] for seed in range(4)]  # of a last token alone
    assert ask(engine, *range(4)) == [99] * 4
    assert all(np.array_equal(engine.evaluate(tokens_of(seed, 100)), rows) for seed, rows in enumerate(exact))
    stats = engine.scheduler.budget.stats(engine.scheduler.slots)
    assert stats["requantized"] == stats["evicted"] == 0 and stats["taken_up"] == {"f16": 8} and stats["bytes"] <= stats["budget"]
    engine.close()


def test_least_recently_used_idle_prefixes_lose_bits_before_any_is_forgotten(tiny_tqn, per_prefix):
    engine = opened(str(tiny_tqn), 3 * per_prefix)
    budget = engine.scheduler.budget
    seen = []
    for seed in range(12):
        ask(engine, seed)
        stats = budget.stats(engine.scheduler.slots)
        assert stats["bytes"] <= stats["budget"]
        seen.append((stats["requantized"], stats["evicted"]))
        if stats["evicted"] == 1 and seen[-2][1] == 0:  # all others stood at the last level before the first went
            assert [kept.level for kept in budget.kept] == sorted((kept.level for kept in budget.kept), reverse=True)
    assert seen[2] == (0, 0) and seen[3][0] > 0 and seen[3][1] == 0 and seen[-1][1] > 0
    assert [kept.used for kept in budget.kept] == sorted(kept.used for kept in budget.kept)
    newest = engine.scheduler.counters.cached_tokens
    assert ask(engine, 11) == [99] and engine.scheduler.counters.cached_tokens == newest + 99
    assert ask(engine, 0) == [0], "the oldest was forgotten"
    engine.close()


def test_a_history_gives_the_same_prefixes_and_logits(tiny_tqn, per_prefix):
    def history() -> tuple[list[Any], list[np.ndarray]]:
        engine = opened(str(tiny_tqn), 2 * per_prefix + 1000)
        rows, order = [], np.random.default_rng(5).integers(0, 6, 25)
        for seed in order:
            rows.append(engine.evaluate(tokens_of(int(seed), 100)))
        stats = engine.scheduler.budget.stats(engine.scheduler.slots)
        engine.close()
        return [stats, engine.scheduler.counters.cached_tokens], rows

    (first, rows), (second, again) = history(), history()
    assert first == second and all(np.array_equal(a, b) for a, b in zip(rows, again, strict=True))
    assert sum(first[0]["taken_up"].get(level, 0) for level in LEVELS[1:]) > 0, "some prefixes came back from codes"


def test_tokens_behind_a_prefix_from_codes_are_stored_at_full_precision(tiny_tqn, per_prefix):
    engine = opened(str(tiny_tqn), 3 * per_prefix)
    scheduler = engine.scheduler
    ask(engine, 0, n=64)
    for seed in range(1, 4):
        ask(engine, seed)
    assert any(kept.level > 0 and len(kept.tokens) == 64 for kept in scheduler.budget.kept)
    longer = np.concatenate([tokens_of(0, 64), tokens_of(9, 30)])
    handle = scheduler.submit(Evaluation(longer, 1))
    handle.wait()
    assert 16 <= handle.cached_tokens <= 64
    slot = max(scheduler.slots, key=lambda slot: slot.shared(longer))
    from_codes = scheduler.context.save(slot.index, slot.n_tokens)
    # in the first layer keys and values depend on the token alone: those of the new tokens are what a fresh cache has
    fresh = Engine(str(tiny_tqn), n_ctx=128, n_threads=1)
    fresh.evaluate(longer)
    width = engine.core.config["layers"][0]["head_dim"] * 2
    first = HEADER + RECORD * engine.core.config["n_layers"]
    rows = [np.frombuffer(state, np.uint8, 94 * width, first).reshape(94, width) for state in (from_codes, fresh.context.save(0, 94))]
    assert np.array_equal(rows[0][handle.cached_tokens :], rows[1][handle.cached_tokens :])
    assert not np.array_equal(rows[0][: handle.cached_tokens], rows[1][: handle.cached_tokens])
    engine.close()
    fresh.close()


def test_requests_wait_where_those_that_run_leave_no_room(tiny_tqn, per_prefix):
    with Llama(str(tiny_tqn), n_ctx=128, verbose=False) as llm:
        least = llm.engine.context.state_bytes(128)
    engine = opened(str(tiny_tqn), least + 1000)
    handles = [engine.scheduler.submit(work(engine, tokens_of(seed, 100), 12)) for seed in (0, 1)]
    together = []
    handles[0]._listener = lambda _: together.append(engine.scheduler.active)
    texts = [generated(handle) for handle in handles]
    assert all(len(text) == 12 for text in texts) and set(together) <= {0, 1}
    engine.close()
    with pytest.raises(ValueError, match=f"cache_budget={least - 1}: one sequence of 128 positions .* takes {least} bytes"):
        opened(str(tiny_tqn), least - 1)


def test_caches_of_codes_lose_further_bits(tiny_tqn):
    levels = {"f32": ("f32", *LEVELS), "k8v8": ("k8v8", "k8v4", "k4v4"), "k4v8": ("k4v8", "k4v4"), "k4v4": ("k4v4",)}
    for cache, expected in levels.items():
        engine = opened(str(tiny_tqn), 1 << 30, cache=cache)
        assert engine.scheduler.budget.levels == expected
        engine.scheduler.budget.budget = 1  # nothing idle may stay
        ask(engine, 0, 1, 2)
        assert len(engine.scheduler.budget.kept) == 0
        engine.close()


def test_keys_get_four_bits_only_where_that_was_measured_to_be_bearable():
    assert LEVELS == ("f16", "k8v8", "k8v4", "k4v4")
    assert budget_levels("f16", False) == ("f16", "k8v8", "k8v4")
    assert budget_levels("k4v8", False) == ("k4v8", "k4v4"), "whoever asked for such keys has them already"
    assert four_bit_keys("llama", False) and four_bit_keys("gemma2", True) is None
    assert four_bit_keys("qwen2", True) is True and four_bit_keys("qwen2", False) is False


def test_drafts_get_shorter_the_more_sequences_generate(tiny_tqn):
    assert [draft_depth(n) for n in (0, 1, 2, 8, 16, 17)] == [None, None, 8, 2, 1, 0]

    def draft(_tokens: Any) -> np.ndarray:
        return np.zeros(10, np.intc)

    texts, rows = [], []
    for budget in (None, 1 << 30):
        engine = Engine(str(tiny_tqn), n_ctx=128, n_slots=4, max_slots=4, n_threads=1, cache_budget=budget)
        widest, batch = 0, engine.scheduler._batch

        def watched(shares: Any, batch: Any = batch) -> Any:
            nonlocal widest
            generating = [count for handle, count in shares if handle.evaluated >= handle.n_prompt]
            if len(generating) == 4:
                widest = max(widest, *generating)
            return batch(shares)

        engine.scheduler._batch = watched
        works = [work(engine, tokens_of(seed, 8), 24, draft=draft) for seed in range(4)]
        handles = engine.scheduler.run(lambda engine=engine, works=works: [engine.scheduler.submit(each) for each in works])
        texts.append([generated(handle) for handle in handles])
        rows.append(widest)
        engine.close()
    assert texts[0] == texts[1] and rows == [11, 5]


def test_saved_and_forgotten_sequences(tiny_tqn, per_prefix):
    with Llama(str(tiny_tqn), n_ctx=128, n_slots=2, cache_budget=3 * per_prefix, verbose=False) as llm:
        llm("The quick brown fox jumps over the lazy dog.", max_tokens=8, temperature=0)
        state = llm.save_state()
        ask(llm.engine, *range(6))
        llm.load_state(state)
        stats = llm.cache_stats()
        assert stats["bytes"] <= stats["budget"] == 3 * per_prefix and sum(each["prefixes"] for each in stats["kept"].values()) > 1
        llm.reset()
        llm.engine.scheduler.forget()
        assert llm.cache_stats()["bytes"] == 0 == llm.cache_stats()["slots"]["tokens"]
    with Llama(str(tiny_tqn), n_ctx=64, verbose=False) as llm:
        assert llm.cache_stats()["budget"] is None and llm.cache_stats()["kept"] == {}


def test_server_shows_what_is_kept(tiny_tqn, per_prefix):
    pytest.importorskip("fastapi")
    from starlette.testclient import TestClient

    from server_tools import until
    from turboquant_native.server.app import create_app
    from turboquant_native.server.command import add_arguments, settings_of

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    budget = 3 * per_prefix
    settings = settings_of(parser.parse_args([str(tiny_tqn), "--cache-budget", f"{budget}B", "--ctx", "128", "--slots", "2"]))
    with TestClient(create_app(settings)) as client:
        assert until(lambda: client.get("/health").status_code == 200)  # the model is loaded
        for seed in range(6):
            answer = client.post("/v1/completions", json={"prompt": tokens_of(seed, 90).tolist(), "max_tokens": 4, "temperature": 0})
            assert answer.status_code == 200, answer.text
        metrics = client.get("/metrics").text
    assert f'tqn_cache_budget_bytes{{model="{tiny_tqn.stem}"}} {float(budget)}' in metrics
    figures = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in metrics.splitlines() if line.startswith("tqn_")}
    kept = [value for name, value in figures.items() if name.startswith("tqn_kept_prefixes{")]
    assert len(kept) == len(LEVELS) and sum(kept) >= 2
    assert 0 < figures[f'tqn_cache_bytes{{model="{tiny_tqn.stem}"}}'] <= budget
    assert figures[f'tqn_requantized_prefixes_total{{model="{tiny_tqn.stem}"}}'] > 0
    with pytest.raises(SystemExit):
        parser.parse_args([str(tiny_tqn), "--cache-budget", "many"])
