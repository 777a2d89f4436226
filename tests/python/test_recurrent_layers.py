"""Models with recurrent layers: results do not depend on how a prompt is cut, states can be saved, kept and returned to."""

from pathlib import Path

import numpy as np
import pytest

from turboquant_native import Llama, _core
from turboquant_native.convert.conversion import Options, make_plan, write_model
from turboquant_native.convert.sources import open_source
from turboquant_native.engine.scheduler import Scheduler
from turboquant_native.engine.work import Evaluation
from turboquant_native.speculative import LlamaPromptLookupDecoding

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

N = 40
DEVICES = ["cpu", *(["cuda"] if _core.backends()["cuda"].startswith("available") else [])]


def save_model(folder: Path, **config: object) -> Path:
    """A tiny random Qwen 3.5."""
    torch.manual_seed(1)
    whole = transformers.AutoConfig.for_model(
        "qwen3_5_text", vocab_size=320, hidden_size=48, intermediate_size=80, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=128, linear_num_key_heads=2, linear_key_head_dim=12,
        linear_num_value_heads=4, linear_value_head_dim=20, **config,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(whole, dtype=torch.float32).save_pretrained(folder)
    return folder


def convert(folder: Path, out: Path) -> str:
    source = open_source(str(folder), needs_tokenizer=False)
    write_model(source, make_plan(source, Options(bits=4)), out)
    return str(out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("recurrent"))


@pytest.fixture(scope="module", params=[(device, precision) for device in DEVICES for precision in ("f32", "int8")], ids="-".join)
def setting(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Device and type of activations."""
    return tuple(request.param)


@pytest.fixture(scope="module")
def model(setting: tuple[str, str], folder: Path, tmp_path_factory: pytest.TempPathFactory) -> _core.Model:
    return _core.Model(convert(folder, tmp_path_factory.mktemp("model") / "out.gguf"), device=setting[0], threads=2, precision=setting[1])


@pytest.fixture
def tolerance(setting: tuple[str, str]) -> float:
    """Of logits, up to 2 in size, of passes of other lengths. On CUDA prompts and single tokens attend by other kernels, one of which
    rounds queries and weights to half precision, and activations that lie between two int8 values then fall on either side."""
    return 0.05 if setting == ("cuda", "int8") else 1e-4


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(5).integers(2, 96, N).astype(np.int32)


def test_cuts_of_a_prompt_do_not_show(model: _core.Model, tokens: np.ndarray, tolerance: float) -> None:
    """The recurrence is the same to the bit; attention, and matrices in the float path, round sums by the number of rows."""
    results = []
    for cuts in ([N], [1] * N, [3, 20, 1, 16]):
        ctx, at = _core.Context(model, n_ctx=64), 0
        for n in cuts:
            logits = ctx.eval(tokens[at : at + n], at)
            at += n
        results.append(logits)
    for logits in results[1:]:
        assert np.isfinite(logits).all()
        np.testing.assert_allclose(logits, results[0], atol=tolerance, rtol=0)


# Rows of slots that stand in one pass: prompts that begin, prompts that go on and single tokens; a slot that begins again beside others.
PASSES: list[dict[int, range]] = [
    {0: range(20)},
    {2: range(7), 1: range(1)},
    {0: range(20, 21), 1: range(1, 14), 2: range(7, 12)},
    {3: range(30), 2: range(12, 13), 0: range(21, 22), 1: range(14, 15)},
    {0: range(9), 1: range(15, 16), 2: range(13, 20), 3: range(30, 31)},
    {slot: range(first, first + 1) for slot, first in ((0, 9), (1, 16), (2, 20), (3, 31))},
]


def difference_of_slots(model: _core.Model, tokens: np.ndarray) -> float:
    """The largest difference of logits of PASSES from those of each slot's text alone; infinite where one is not finite."""
    texts = [np.roll(tokens, 7 * slot) for slot in range(4)]
    alone = [_core.Context(model, n_ctx=64).eval(text, 0, logits="all") for text in texts]
    ctx, worst = _core.Context(model, n_ctx=64, n_slots=4), 0.0
    for rows in PASSES:
        slots = np.array([slot for slot, span in rows.items() for _ in span], np.int32)
        positions = np.array([position for span in rows.values() for position in span], np.int32)
        given = np.array([texts[slot][position] for slot, position in zip(slots, positions, strict=True)], np.int32)
        logits = ctx.forward(given, positions, slots, np.arange(len(slots), dtype=np.int32))
        expected = np.stack([alone[slot][position] for slot, position in zip(slots, positions, strict=True)])
        worst = max(worst, float(np.abs(logits - expected).max())) if np.isfinite(logits).all() else np.inf
    return worst


def test_slots_in_one_pass_equal_single_runs(model: _core.Model, tokens: np.ndarray, tolerance: float) -> None:
    assert difference_of_slots(model, tokens) <= tolerance


def test_recurrent_layers_alone_are_equal_to_the_bit(tokens: np.ndarray, tmp_path: Path) -> None:
    """Without attention, which sums few rows in another order, and with int8 activations nothing shows how rows were put together."""
    model = _core.Model(convert(save_model(tmp_path, layer_types=["linear_attention"] * 4), tmp_path / "out.gguf"), threads=2)
    assert difference_of_slots(model, tokens) == 0


def test_rows_of_slots_may_alternate(tokens: np.ndarray, tmp_path: Path) -> None:
    """Few rows, which a thread follows head by head, and many, whose convolution is cut by rows: the latest inputs of a slot stand before
    rows of others, some in the batch and some in its state."""
    folder = save_model(tmp_path / "folder", layer_types=["linear_attention"] * 4)
    model = _core.Model(convert(folder, tmp_path / "out.gguf"), threads=2)
    ctx = _core.Context(model, n_ctx=64, n_slots=2)
    found: list[list[np.ndarray]] = [[], []]
    at = 0
    for count in (1, 2, 7, 1, 5, 2):  # positions of both slots in a pass, the second slot's tokens in reverse order
        rows = [(slot, p) for p in range(at, at + count) for slot in (0, 1)]
        slots, positions = (np.array(column, np.int32) for column in zip(*rows, strict=True))
        batch = np.where(slots == 0, tokens[positions], tokens[::-1][positions])
        for (slot, _), logits in zip(rows, ctx.forward(batch, positions, slots, np.arange(len(rows), dtype=np.int32)), strict=True):
            found[slot].append(logits)
        at += count
    for slot, own in enumerate((tokens, np.ascontiguousarray(tokens[::-1]))):
        np.testing.assert_array_equal(np.stack(found[slot]), _core.Context(model, n_ctx=64).eval(own[:at], 0, logits="all"))


def test_a_slot_starts_anew_returns_and_moves(model: _core.Model, tokens: np.ndarray) -> None:
    ctx = _core.Context(model, n_ctx=64, n_slots=2)
    ctx.eval(tokens[:20], 0)
    kept, saved = ctx.snapshot(0), ctx.save(0, 20)
    expected = ctx.eval(tokens[20:], 20)
    assert np.isfinite(expected).all()
    with pytest.raises(_core.UnsupportedError, match="recurrent"):
        ctx.rewind(0, 10)
    ctx.restore(0, kept)
    np.testing.assert_array_equal(ctx.eval(tokens[20:], 20), expected)
    ctx.restore(0, kept)
    ctx.eval(tokens[:7], 20)  # another text, then back
    ctx.restore(0, kept)
    np.testing.assert_array_equal(ctx.eval(tokens[20:], 20), expected)
    other = _core.Context(model, n_ctx=64)
    other.load(0, saved)
    np.testing.assert_array_equal(other.eval(tokens[20:], 20), expected)
    ctx.eval(tokens[:20], 0)  # from the beginning again: nothing is left of before
    np.testing.assert_array_equal(ctx.eval(tokens[20:], 20), expected)


def scheduler_of(model: _core.Model, **slots: int) -> Scheduler:
    return Scheduler(lambda n: _core.Context(model, n_ctx=64, n_slots=n, n_batch=16), **slots)


def evaluate(scheduler: Scheduler, tokens: np.ndarray) -> tuple[np.ndarray, int]:
    """Logits behind the last token, and how many tokens were not evaluated again."""
    work = Evaluation(tokens)
    handle = scheduler.submit(work)
    handle.wait()
    return work.rows[0].copy(), handle.cached_tokens


@pytest.mark.parametrize("n_slots", [1, 2])
def test_prompts_begin_at_snapshots(model: _core.Model, tokens: np.ndarray, n_slots: int, tolerance: float) -> None:
    """With the logits that they have without: the same prompt again, and the third conversation that begins as two others did."""
    scheduler = scheduler_of(model, n_slots=n_slots)
    conversations = [np.concatenate([tokens[:20], np.full(n, 3 + n, np.int32)]) for n in (12, 9, 14)]
    found = []
    for text in [conversations[0], conversations[0], *conversations[1:], conversations[2][:25]]:
        logits, cached = evaluate(scheduler, text)
        np.testing.assert_allclose(logits, _core.Context(model, n_ctx=64).eval(text, 0), atol=tolerance, rtol=0)
        assert np.isfinite(logits).all()
        found.append(cached)
    assert found == [0, 31, 0, 20, 20]
    assert 0 < scheduler.snapshots.memory_bytes <= 4 * n_slots * scheduler.context.snapshot(0).memory_bytes
    scheduler.close()


def test_snapshots_are_bounded_and_end_with_their_context(model: _core.Model, tokens: np.ndarray, tolerance: float) -> None:
    scheduler = scheduler_of(model, n_slots=1, max_slots=2)
    for n in range(2, 20):
        evaluate(scheduler, np.concatenate([tokens[:n], np.full(3, 3 + n, np.int32)]))
    assert scheduler.snapshots.count(scheduler.slots[0]) <= 4
    scheduler.reserve(2)
    assert scheduler.snapshots.memory_bytes == 0
    logits, cached = evaluate(scheduler, tokens)
    assert cached == 0
    np.testing.assert_allclose(logits, _core.Context(model, n_ctx=64).eval(tokens, 0), atol=tolerance, rtol=0)
    scheduler.close()


def test_without_memory_for_snapshots_slots_start_anew(
    model: _core.Model, tokens: np.ndarray, tolerance: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = scheduler_of(model, n_slots=1)

    def refuse(slot: int) -> _core.Snapshot:
        raise MemoryError("none")

    class Poor:
        """The context, which has no memory left."""

        def __getattr__(self, name: str) -> object:
            return refuse if name == "snapshot" else getattr(context, name)

    context = scheduler.context
    monkeypatch.setattr(scheduler.snapshots, "_context", Poor())
    for text in (tokens, tokens[:30]):
        logits, cached = evaluate(scheduler, text)
        assert cached == 0
        np.testing.assert_allclose(logits, _core.Context(model, n_ctx=64).eval(text, 0), atol=tolerance, rtol=0)
    assert "no memory for a snapshot of slot 0" in caplog.text
    scheduler.close()


def test_drafts_are_taken_back(folder: Path, tiny_llama_dir: Path, tmp_path: Path) -> None:
    """Speculation gives the text that there is without it, and reuse that of a new model."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_llama_dir / name).read_bytes())
    source, out = open_source(str(folder)), tmp_path / "out.gguf"
    write_model(source, make_plan(source, Options(bits=8)), out)
    plain = Llama(str(out), n_ctx=96, verbose=False)
    drafting = Llama(str(out), n_ctx=96, verbose=False, draft_model=LlamaPromptLookupDecoding(num_pred_tokens=4, max_ngram_size=1))
    for prompt in ("abcabcabcabc", "abcabcabcabd", "abcabcabcabc"):
        texts = [llm(prompt, max_tokens=40, temperature=0, logprobs=1)["choices"][0]["logprobs"]["tokens"] for llm in (plain, drafting)]
        assert texts[0] == texts[1] and len(texts[0]) > 4
    assert drafting.engine.scheduler.snapshots.memory_bytes > plain.engine.scheduler.snapshots.memory_bytes
    plain.close()
    drafting.close()


def test_a_budget_keeps_whole_states(model: _core.Model, tokens: np.ndarray) -> None:
    """What was set aside goes on only where the whole of it is a request's beginning."""
    open_context = lambda slots: _core.Context(model, n_ctx=64, n_slots=slots)  # noqa: E731
    alone = open_context(1)
    scheduler = Scheduler(open_context, cache_budget=3 * alone.state_bytes(64))

    def cached(sequence: np.ndarray) -> int:
        handle = scheduler.submit(Evaluation(sequence, 1))
        handle.wait()
        return handle.cached_tokens

    try:
        assert cached(tokens) == 0 and cached(tokens[::-1].copy()) == 0
        assert cached(np.concatenate([tokens, tokens[:5]])) == N, "the whole of it came back"
        assert cached(tokens[::-1].copy()[:30]) == 0, "not a part"
        state = scheduler.run(lambda: scheduler.context.save(0, scheduler.slots[0].n_tokens))
        with pytest.raises(_core.UnsupportedError, match="recurrent"):
            alone.convert(state, 10, "k8v8")
    finally:
        scheduler.close()


def test_a_budget_counts_snapshots_and_they_go_first(model: _core.Model, tokens: np.ndarray) -> None:
    open_context = lambda slots: _core.Context(model, n_ctx=64, n_slots=slots, n_batch=16)  # noqa: E731
    alone = open_context(1)
    each = alone.snapshot(0).memory_bytes
    conversations = [np.concatenate([tokens[:20], np.full(n, 3 + n, np.int32)]) for n in (12, 9, 14)]
    scheduler = Scheduler(open_context, n_slots=2, cache_budget=alone.state_bytes(32) + alone.state_bytes(29) + 2 * each)
    budget, slots = scheduler.budget, scheduler.slots
    assert budget is not None

    def stats_after(text: np.ndarray, expected: int) -> dict:
        assert evaluate(scheduler, text)[1] == expected
        stats = scheduler.cache_stats()
        kept = sum(entry["bytes"] for entry in stats["kept"].values())
        assert stats["slots"]["bytes"] + stats["snapshots"]["bytes"] + kept == stats["bytes"] <= stats["budget"]
        assert stats["snapshots"]["bytes"] == each * stats["snapshots"]["count"]
        return stats

    try:
        assert stats_after(conversations[0], 0)["snapshots"]["count"] == 1
        stats = stats_after(conversations[1], 0)  # two more, after 20 and 28 tokens: that of the first conversation goes
        assert (stats["snapshots"]["count"], stats["dropped_snapshots"], stats["requantized"]) == (2, 1, 0)
        assert [scheduler.snapshots.count(slot) for slot in slots] == [0, 2]
        # The older of the two stays until this one has begun there; then it makes room for that of the last token.
        stats = stats_after(conversations[2], 20)
        assert (stats["snapshots"]["count"], stats["dropped_snapshots"], stats["requantized"]) == (1, 3, 0)
        room = budget.budget - budget.held(slots)
        assert budget.fit(slots, room + each) and len(scheduler.snapshots) == 0 == budget.changes.requantized
        assert budget.fit(slots, room + each + 1) and budget.changes.requantized == 1, "with no snapshot left, prefixes lose bits"
        scheduler.forget()
        assert scheduler.cache_stats()["bytes"] == 0
    finally:
        scheduler.close()


def test_a_budget_makes_room_for_the_moment_before_a_draft(model: _core.Model, tokens: np.ndarray) -> None:
    open_context = lambda slots: _core.Context(model, n_ctx=64, n_slots=slots, n_batch=16)  # noqa: E731
    alone = open_context(1)
    each = alone.snapshot(0).memory_bytes
    scheduler = Scheduler(open_context, cache_budget=alone.state_bytes(64) + each)
    snapshots, slot = scheduler.snapshots, scheduler.slots[0]
    try:
        evaluate(scheduler, np.concatenate([tokens, tokens[:20]]))
        assert snapshots.count(slot) == len(snapshots) == 1
        slot.busy = True
        snapshots.take_before_draft(slot)
        assert snapshots.count(slot) == 0 and len(snapshots) == 1, "an older one made room"
        snapshots.take_before_draft(slot)
        assert not snapshots.drop_oldest([slot]), "what runs may need it"
        slot.busy = False
        assert snapshots.drop_oldest([slot]) and len(snapshots) == 0
    finally:
        scheduler.close()
