"""Faults that users of the Python API met: what was silently wrong is right now, what cannot be honoured raises."""

import logging
import warnings

import numpy as np
import pytest

from turboquant_native import Llama
from turboquant_native.api.logprobs import Offsets, token_key

PROMPT = "The quick brown fox"


@pytest.fixture(scope="module")
def endless(tiny_tqn):
    """A model, and options that make it go on."""
    with Llama(str(tiny_tqn), n_ctx=256, n_threads=1, verbose=False) as llm:
        yield llm, {"temperature": 0, "logit_bias": {token: -100.0 for token in llm.vocabulary.end_tokens}}


# --- arguments take effect or raise


def completions(path, **options):
    with Llama(str(path), n_ctx=256, n_threads=1, seed=1, **options) as llm:
        bias = {token: -100.0 for token in llm.vocabulary.end_tokens}
        return [
            llm(PROMPT, max_tokens=40, temperature=0, repeat_penalty=penalty, logit_bias=bias)["choices"][0]["text"]
            for penalty in (1.0, 1.7)
        ]


def test_last_n_tokens_size_sets_the_penalties_window(tiny_tqn):
    plain, whole = completions(tiny_tqn, last_n_tokens_size=-1, strict=True)
    assert plain != whole
    assert completions(tiny_tqn, last_n_tokens_size=0, strict=True) == [plain, plain]
    assert completions(tiny_tqn, last_n_tokens_size=4, strict=True)[1] not in (plain, whole)
    assert completions(tiny_tqn, strict=True)[1] == completions(tiny_tqn, last_n_tokens_size=64)[1]
    with pytest.raises(ValueError, match="last_n_tokens_size must be at least -1"):
        completions(tiny_tqn, last_n_tokens_size=-2)


def test_batches_and_sampling_have_the_same_window(tiny_tqn):
    with Llama(str(tiny_tqn), n_ctx=256, n_threads=1, last_n_tokens_size=0) as llm:
        options = {"max_tokens": 20, "temperature": 0, "repeat_penalty": 1.7}
        assert llm.generate_batch([PROMPT], **options)[0]["choices"] == llm(PROMPT, **options)["choices"]
        llm.eval(llm.tokenize(PROMPT.encode()))
        assert llm.sample(temp=0, repeat_penalty=1.7) == llm.sample(temp=0)


@pytest.mark.parametrize(
    ("name", "value", "neutral"),
    [
        ("yarn_ext_factor", 0.5, -1.0),
        ("yarn_attn_factor", 2.0, 1.0),
        ("yarn_beta_fast", 16.0, 32.0),
        ("yarn_beta_slow", 2.0, 1.0),
        ("yarn_orig_ctx", 4096, 0),
        ("rms_norm_eps", 1e-3, None),
        ("n_gqa", 8, None),
        ("spm_infill", True, False),
        ("attention_type", 1, -1),
        ("rpc_servers", "host:1", None),
    ],
)
def test_what_would_change_results_raises(tiny_tqn, name, value, neutral):
    with pytest.raises(ValueError, match=name):
        Llama(str(tiny_tqn), n_ctx=64, **{name: value})
    Llama(str(tiny_tqn), n_ctx=64, strict=True, **{name: neutral}).close()


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"seed": 1 << 64}, ValueError, r"seed .*2\*\*64"),
        ({"top_k": 40.5}, TypeError, "top_k must be an integer, got 40.5"),
        ({"top_k": "many"}, TypeError, "top_k"),
        ({"temperature": float("nan")}, ValueError, "temperature"),
        ({"repeat_penalty": float("inf")}, ValueError, "repeat_penalty"),
    ],
)
def test_wrong_numbers_are_named(endless, options, kind, words):
    with pytest.raises(kind, match=words):
        endless[0](PROMPT, max_tokens=1, **options)


def test_a_whole_float_is_an_integer(endless):
    assert endless[0](PROMPT, max_tokens=3, top_k=1.0)["choices"] == endless[0](PROMPT, max_tokens=3, top_k=1)["choices"]


@pytest.mark.parametrize("seed", [1 << 64, "one"])
def test_a_seed_of_the_model_is_checked(tiny_tqn, seed):
    with pytest.raises((ValueError, TypeError), match="seed"):
        Llama(str(tiny_tqn), seed=seed)


def test_a_context_beyond_training_is_warned_of(tiny_tqn):
    with pytest.warns(UserWarning, match="n_ctx=300 is more than the 256 positions"):
        Llama(str(tiny_tqn), n_ctx=300).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Llama(str(tiny_tqn), n_ctx=256).close()
        Llama(str(tiny_tqn), n_ctx=0).close()


# --- states


def test_a_state_carries_the_rows_of_all_tokens(tiny_tqn):
    with Llama(str(tiny_tqn), n_ctx=64, n_threads=1, logits_all=True) as llm:
        llm.eval([10, 20, 30])
        rows, state = llm.scores.copy(), llm.save_state()
        llm.reset()
        assert len(llm.scores) == 0
        llm.load_state(state)
        np.testing.assert_array_equal(llm.scores, rows)
        llm.eval([40])
        assert llm.scores.shape[0] == llm.n_tokens == 4
        llm.reset()
        llm.eval([10, 20, 30, 40])
        again = llm.scores
        llm.load_state(state)
        llm.eval([40])
        np.testing.assert_allclose(llm.scores, again, rtol=1e-5, atol=1e-5)


def test_a_state_without_rows_is_evaluated_where_they_are_asked_for(tiny_tqn):
    with Llama(str(tiny_tqn), n_ctx=64, n_threads=1) as plain, Llama(str(tiny_tqn), n_ctx=64, n_threads=1, logits_all=True) as keeping:
        plain.eval([10, 20, 30])
        keeping.load_state(plain.save_state())
        assert keeping.scores.shape == (3, keeping.n_vocab())
        np.testing.assert_allclose(keeping.scores[-1], plain.logits, rtol=1e-5, atol=1e-5)


def test_completions_keep_rows_and_tokens_together(tiny_tqn):
    with Llama(str(tiny_tqn), n_ctx=128, n_threads=1, logits_all=True) as llm:
        for prompt in (PROMPT, PROMPT + " jumps", "The lazy"):
            llm(prompt, max_tokens=9, temperature=0)
            assert len(llm.scores) == llm.n_tokens
            tokens, rows = llm.input_ids, llm.scores
            llm.reset()
            llm.eval(tokens.tolist())
            np.testing.assert_allclose(llm.scores, rows, rtol=1e-4, atol=1e-4)


def test_generate_with_too_long_a_prompt_raises(endless):
    with pytest.raises(ValueError, match=r"1 to 256 tokens \(n_ctx\) to go on from, got 300"):
        endless[0].generate([5] * 300)
    with pytest.raises(ValueError, match="got 0"):
        endless[0].generate([])


# --- log-probabilities


def test_offsets_are_those_of_the_text(endless):
    llm, _ = endless
    text = "\U0001f600 ok"
    found = llm(text, echo=True, logprobs=1, max_tokens=0)["choices"][0]
    ids = llm.tokenize(text.encode(), special=True)
    pieces = [llm.vocabulary.piece(token) for token in ids]
    expected = [len(b"".join(pieces[:k]).decode("utf-8", "ignore")) for k in range(len(ids))]
    assert found["text"] == text and found["logprobs"]["text_offset"] == expected
    assert [offset for offset, piece in zip(expected, pieces, strict=True) if piece.startswith(b" ")][:1] == [1]
    assert len(found["logprobs"]["tokens"]) == len(ids)


def test_echoed_control_tokens_take_their_place(endless):
    llm, _ = endless
    control = llm.vocabulary.piece(llm.token_eos()).decode()
    found = llm(f"a{control}b", echo=True, logprobs=1, max_tokens=0)["choices"][0]
    offsets = dict(zip(found["logprobs"]["tokens"], found["logprobs"]["text_offset"], strict=True))
    assert offsets[control] == 1 and offsets["b"] == 1 + len(control)


def test_every_visible_token_has_its_entry_before_a_stop(endless):
    llm, options = endless
    whole = llm(PROMPT, max_tokens=20, logprobs=2, **options)["choices"][0]
    text, names = whole["text"], whole["logprobs"]["tokens"]
    stop = text[6:9]
    cut = llm(PROMPT, max_tokens=20, logprobs=2, stop=[stop], **options)["choices"][0]
    shown = text[: text.index(stop)]
    assert cut["text"] == shown and cut["finish_reason"] == "stop"
    offsets = whole["logprobs"]["text_offset"]
    visible = [k for k, offset in enumerate(offsets) if offset < len(shown)]
    assert cut["logprobs"]["tokens"] == [names[k] for k in visible]
    streamed = [chunk["choices"][0] for chunk in llm(PROMPT, max_tokens=20, logprobs=2, stop=[stop], stream=True, **options)]
    joined = [offset for choice in streamed if choice["logprobs"] for offset in choice["logprobs"]["text_offset"]]
    assert joined == [offsets[k] for k in visible]


def test_alternatives_that_are_parts_of_a_character_stay_apart(endless):
    llm, options = endless
    found = llm(PROMPT, max_tokens=4, logprobs=llm.n_vocab(), **options)["choices"][0]["logprobs"]["top_logprobs"]
    pieces = {llm.vocabulary.piece(token) for token in range(llm.n_vocab())}
    assert all(len(alternatives) >= len(pieces) for alternatives in found)


class Bytes:
    """A vocabulary of single bytes, with one control token."""

    def piece(self, token):
        return b"<s>" if token == 256 else bytes([token])

    def is_control(self, token):
        return token == 256


def test_offsets_of_every_kind_of_bytes():
    for data in ("aé€\U0001f600b".encode(), b"\xf0\x9fa", b"\x80\x80", b"\xe2\x82", b"\xff\xf0\x90\x80\x80z"):
        offsets, text = Offsets(Bytes()), data.decode("utf-8", "replace")
        found = [offsets.next(byte) for byte in data]
        assert found == sorted(found) and found[0] == 0 and found[-1] <= len(text)
    offsets = Offsets(Bytes(), "<s>a")
    assert [offsets.next(token) for token in (256, ord("a"), 256, ord("b"))] == [0, 3, 4, 4]
    offsets = Offsets(Bytes(), "a")
    assert [offsets.next(token) for token in (256, ord("a"), ord("b"))] == [0, 0, 1]
    assert token_key(Bytes(), 0xF0) == "bytes:\\xf0" != token_key(Bytes(), 0xF1)


# --- stop strings


def test_a_stop_string_that_is_a_control_token_stops(tiny_tqn):
    with Llama(str(tiny_tqn), n_ctx=128, n_threads=1) as llm:
        control = next(token for token in sorted(llm.vocabulary._control) if token not in llm.vocabulary.end_tokens)
        name = llm.vocabulary.piece(control).decode()
        wanted = [5, 6, control, 7]

        def follow(tokens, logits):
            logits[:] = -np.inf
            logits[wanted[len(tokens) - 1]] = 0
            return logits

        free = llm([4], max_tokens=4, logits_processor=[follow])["choices"][0]
        stopped = llm([4], max_tokens=4, logits_processor=[follow], stop=[name])["choices"][0]
    assert free["finish_reason"] == "length" and stopped["finish_reason"] == "stop"
    assert name not in free["text"] and free["text"].startswith(stopped["text"]) and stopped["text"] != free["text"]


# --- embeddings


def test_long_texts_follow_one_rule(tiny_tqn, caplog):
    with Llama(str(tiny_tqn), n_ctx=64, n_threads=1) as llm:
        text = "word " * 100
        with caplog.at_level(logging.WARNING):
            created = llm.create_embedding(text)
        assert "input 0" in caplog.text and created["usage"]["prompt_tokens"] == 64
        np.testing.assert_allclose(created["data"][0]["embedding"], llm.embed(text, normalize=True), rtol=1e-6)
        for call in (llm.embed, llm.create_embedding):
            with pytest.raises(ValueError, match=r"input 1 has \d+ tokens; the context holds 64"):
                call(["a", text], truncate=False)
            with pytest.raises(ValueError, match="input 1 is an empty text"):
                call(["a", ""])
            with pytest.raises(TypeError, match="input 0 must be a text, got 1"):
                call([1, 2, 3])
