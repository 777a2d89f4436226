"""Many sequences at once, guessed tokens, embeddings: each result is that of the plain way."""

import numpy as np
import pytest

from turboquant_native import Llama, LlamaPromptLookupDecoding
from turboquant_native.engine.speculative import LlamaModelDraft

PROMPTS = ["The quick brown fox", "lazy", "12345 times! Naïve café. " * 3, "def f(x):", "", "我想在apple工作"]
GREEDY = {"temperature": 0.0, "max_tokens": 24}


def text_of(answer):
    return answer["choices"][0]["text"]


@pytest.fixture(params=["int8", "f32"])
def engine(request, tiny_tqn):
    with Llama(str(tiny_tqn), n_ctx=256, precision=request.param) as llm:
        yield llm


@pytest.mark.parametrize("n_slots", [1, 2, 4, 8])
def test_batches_equal_single_runs(engine, n_slots):
    alone = [engine(prompt, **GREEDY) for prompt in PROMPTS]
    together = engine.generate_batch(PROMPTS, n_slots=n_slots, **GREEDY)
    assert [answer["choices"] for answer in together] == [answer["choices"] for answer in alone]
    assert [answer["usage"] for answer in together] == [answer["usage"] for answer in alone]


def test_prompts_longer_than_a_pass_join_in_parts(tiny_tqn):
    prompts = [list(range(3, 3 + length)) for length in (50, 1, 33, 17)]
    with Llama(str(tiny_tqn), n_ctx=256, n_batch=16) as llm:
        alone = [text_of(llm(prompt, **GREEDY)) for prompt in prompts]
        assert [text_of(answer) for answer in llm.generate_batch(prompts, n_slots=3, **GREEDY)] == alone


def test_batch_of_sampled_sequences_repeats_with_its_seed(llm):
    first, second = (llm.generate_batch(PROMPTS[:3], seed=3, temperature=1.3, max_tokens=12) for _ in range(2))
    assert [text_of(answer) for answer in first] == [text_of(answer) for answer in second]


def test_batch_options(llm):
    assert llm.generate_batch([]) == []
    with pytest.raises(TypeError, match="max_token"):
        llm.generate_batch(["a"], max_token=3)
    with pytest.raises(ValueError, match="n_slots"):
        llm.generate_batch(["a"], n_slots=0)
    answers = llm.generate_batch(["a", "b"], max_tokens=0)
    assert [answer["usage"]["completion_tokens"] for answer in answers] == [0, 0]


# --- guessed tokens


def test_prompt_lookup_finds_the_latest_repetition():
    draft = LlamaPromptLookupDecoding(max_ngram_size=2, num_pred_tokens=3)
    assert draft(np.array([1, 2, 3, 4, 1, 2], np.intc)).tolist() == [3, 4, 1]
    assert draft(np.array([1, 2, 9, 1, 2, 8, 1, 2], np.intc)).tolist() == [8, 1, 2]
    assert draft(np.array([5, 2, 3, 7, 2], np.intc)).tolist() == [3, 7, 2]
    assert draft(np.array([1, 2, 3], np.intc)).tolist() == []
    assert draft(np.array([1], np.intc)).tolist() == []
    with pytest.raises(ValueError, match="num_pred_tokens"):
        LlamaPromptLookupDecoding(num_pred_tokens=0)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_speculation_does_not_change_the_text(engine, prompt):
    plain = engine(prompt, temperature=0.0, max_tokens=60)
    engine.draft_model = LlamaPromptLookupDecoding()
    guessed = engine(prompt, temperature=0.0, max_tokens=60)
    assert (guessed["choices"], guessed["usage"]) == (plain["choices"], plain["usage"])
    drawn = {"temperature": 1.2, "seed": 4, "max_tokens": 40}
    with_guesses = text_of(engine(prompt, **drawn))
    engine.draft_model = None
    assert with_guesses == text_of(engine(prompt, **drawn))


def test_a_draft_model_saves_passes(llm, tiny_f32):
    plain = llm(PROMPTS[0], temperature=0.0, max_tokens=40)
    with Llama(str(tiny_f32), n_ctx=256) as small:
        llm.draft_model = LlamaModelDraft(small, num_pred_tokens=4)
        before = llm.engine.scheduler.counters.passes
        guessed = llm(PROMPTS[0], temperature=0.0, max_tokens=40)
    assert guessed["choices"] == plain["choices"]
    assert 0 < llm.engine.scheduler.counters.passes - before < plain["usage"]["completion_tokens"]


def test_a_wrong_draft_does_no_harm(llm):
    plain = llm(PROMPTS[0], **GREEDY)["choices"]
    llm.draft_model = lambda ids: np.full(50, 7, np.intc)
    assert llm(PROMPTS[0], **GREEDY)["choices"] == plain


# --- embeddings


def hidden(llm, text):
    ids = np.array(llm.tokenize(text.encode(), special=True), np.int32)
    rows = np.arange(len(ids), dtype=np.int32)
    return llm.engine.context.embed(ids, rows, np.zeros_like(ids), rows)


@pytest.mark.parametrize(
    ("pooling", "pool"), [(-1, lambda h: h.mean(0)), (1, lambda h: h.mean(0)), (2, lambda h: h[0]), (3, lambda h: h[-1]), (0, lambda h: h)]
)
def test_pooling(tiny_tqn, pooling, pool):
    with Llama(str(tiny_tqn), n_ctx=64, n_batch=4, embedding=True, pooling_type=pooling) as llm:
        text = "The quick brown fox"
        with Llama(str(tiny_tqn), n_ctx=64) as plain:
            expected = pool(hidden(plain, text))
        np.testing.assert_allclose(llm.embed(text), expected, atol=1e-5)
        normalized = np.array(llm.embed(text, normalize=True))
        np.testing.assert_allclose(np.linalg.norm(normalized, axis=-1), 1, atol=1e-6)


def test_create_embedding_has_openais_shape(llm):
    answer = llm.create_embedding(["The quick", "fox"], model="tiny")
    assert answer["object"] == "list" and answer["model"] == "tiny"
    assert [entry["index"] for entry in answer["data"]] == [0, 1]
    assert all(len(entry["embedding"]) == llm.n_embd() for entry in answer["data"])
    assert np.linalg.norm(answer["data"][0]["embedding"]) == pytest.approx(1)
    assert answer["usage"]["prompt_tokens"] == sum(len(llm.tokenize(text)) for text in (b"The quick", b"fox"))


def test_embedding_lengths(llm):
    long = "fox " * 400
    assert llm.embed(long, return_count=True)[1] == llm.n_ctx()
    with pytest.raises(ValueError, match="n_ctx"):
        llm.embed(long, truncate=False)


def test_embedding_leaves_completions_right(llm):
    plain = llm(PROMPTS[0], **GREEDY)["choices"]
    llm.embed("something else")
    assert llm(PROMPTS[0], **GREEDY)["choices"] == plain
