"""Tokens drawn from a position's best, as the engine gives them, are those drawn from all logits."""

import numpy as np
import pytest

from turboquant_native import Llama, _core

PROMPTS = ["The quick brown fox", "lazy", "12345 times!"]
OPTIONS = [
    {"temperature": 0.0},
    {"temperature": 1.4, "seed": 3},
    {"temperature": 1.1, "top_k": 5, "top_p": 0.9, "typical_p": 0.8, "seed": 4},
    {"temperature": 2.0, "top_k": 64, "top_p": 1.0, "min_p": 0.0, "seed": 5},
]
FULL = [{"top_k": 0}, {"top_k": 65}, {"repeat_penalty": 1.2}, {"logprobs": 2}, {"logit_bias": {5: 1.0}}]


def unchanged(ids, logits):
    """A processor, which needs all logits."""
    return logits


def texts(answers):
    return [answer["choices"][0]["text"] for answer in answers]


@pytest.fixture
def passes(monkeypatch):
    """Names of the passes that the engine runs."""
    seen = []

    class Context(_core.Context):
        def eval(self, *given):
            seen.append("all")
            return super().eval(*given)

        def eval_best(self, *given):
            seen.append("best")
            return super().eval_best(*given)

        def forward(self, *given):
            seen.append("all")
            return super().forward(*given)

        def forward_best(self, *given):
            seen.append("best")
            return super().forward_best(*given)

    monkeypatch.setattr(_core, "Context", Context)
    return seen


@pytest.mark.parametrize("options", OPTIONS)
def test_text_is_that_of_all_logits(tiny_tqn, passes, options):
    with Llama(str(tiny_tqn), n_ctx=128) as llm:
        best = [llm(prompt, max_tokens=20, **options) for prompt in PROMPTS]
        assert set(passes) == {"best"}
        logits = llm.logits
        full = [llm(prompt, max_tokens=20, logits_processor=[unchanged], **options) for prompt in PROMPTS]
        assert passes[-1] == "all"
        assert texts(best) == texts(full)
        np.testing.assert_array_equal(logits, llm.logits)


@pytest.mark.parametrize("options", OPTIONS)
def test_batches_too(tiny_tqn, passes, options):
    with Llama(str(tiny_tqn), n_ctx=128) as llm:
        best = llm.generate_batch(PROMPTS, n_slots=2, max_tokens=20, **options)
        assert set(passes) == {"best"}
        full = llm.generate_batch(PROMPTS, n_slots=2, max_tokens=20, logits_processor=[unchanged], **options)
        assert passes[-1] == "all" and texts(best) == texts(full)


@pytest.mark.parametrize("options", FULL)
def test_what_looks_at_other_logits_gets_them(tiny_tqn, passes, options):
    with Llama(str(tiny_tqn), n_ctx=128, logits_all="logprobs" in options) as llm:
        llm(PROMPTS[0], max_tokens=4, **options)
        assert set(passes) == {"all"}


def test_a_state_after_best_tokens_goes_on_from_its_logits(llm):
    llm(PROMPTS[0], max_tokens=5, temperature=0.0)
    state, logits = llm.save_state(), np.array(llm.logits)
    llm(PROMPTS[1], max_tokens=5, temperature=0.0)
    llm.load_state(state)
    np.testing.assert_array_equal(llm.logits, logits)


def test_forward_best_names_the_best(llm):
    tokens, rows = np.array([3, 9, 4], np.int32), np.arange(3, dtype=np.int32)
    slots = np.zeros(3, np.int32)
    logits = llm.engine.context.forward(tokens, rows, slots, rows)
    best = llm.engine.context.forward_best(tokens, rows, slots, rows)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :64]
    np.testing.assert_array_equal(best["token"], order)
    np.testing.assert_array_equal(best["logit"], np.take_along_axis(logits, order, axis=1))
    np.testing.assert_array_equal(llm.engine.context.read_logits(1), logits[1])
    with pytest.raises(ValueError, match="output row 3"):
        llm.engine.context.read_logits(3)
