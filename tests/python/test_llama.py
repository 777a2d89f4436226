"""`Llama` on a tiny model: completions, streams, seeds, states, and what happens when it is closed."""

import gc
import os
import pickle
import threading
import warnings

import numpy as np
import pytest

from turboquant_native import Llama, LlamaRAMCache, LogitsProcessorList, StoppingCriteriaList, _core
from turboquant_native.engine import devices
from turboquant_native.engine.slots import Slot

PROMPT = "The quick brown fox"
GREEDY = {"temperature": 0.0, "max_tokens": 24}


def script(llm, text):
    """A logits processor that makes the model write a text, then end."""
    tokens = [*llm.tokenize(text.encode(), add_bos=False), llm.token_eos()]
    start = None

    def force(input_ids, logits):
        nonlocal start
        start = len(input_ids) if start is None else start
        wanted = tokens[len(input_ids) - start]
        logits[:] = -np.inf
        logits[wanted] = 0
        return logits

    return LogitsProcessorList([force])


def text_of(answer):
    return answer["choices"][0]["text"]


def joined(chunks):
    return "".join(text_of(chunk) for chunk in chunks)


# --- shape of the answers


def test_completion_has_openais_shape(llm):
    answer = llm(PROMPT, max_tokens=5, temperature=0, logit_bias={llm.token_eos(): -100})
    assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl-")
    assert answer["model"] == llm.model_path and isinstance(answer["created"], int)
    (choice,) = answer["choices"]
    assert set(choice) == {"text", "index", "logprobs", "finish_reason"}
    assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (0, None, "length")
    n_prompt = len(llm.tokenize(PROMPT.encode()))
    assert answer["usage"] == {"prompt_tokens": n_prompt, "completion_tokens": 5, "total_tokens": n_prompt + 5}


def test_stream_gives_the_same_text(llm):
    chunks = list(llm(PROMPT, stream=True, **GREEDY))
    assert joined(chunks) == text_of(llm(PROMPT, **GREEDY))
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert len({chunk["id"] for chunk in chunks}) == 1


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_max_tokens_is_exact(llm, count):
    answer = llm(PROMPT, max_tokens=count, temperature=1.0, seed=1, logit_bias={t: -100.0 for t in llm.vocabulary.end_tokens})
    assert answer["usage"]["completion_tokens"] == count
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("max_tokens", [None, -1])
def test_without_a_limit_the_context_is_filled(llm, max_tokens):
    answer = llm(PROMPT, max_tokens=max_tokens, temperature=0, logit_bias={t: -100.0 for t in llm.vocabulary.end_tokens})
    assert answer["usage"]["total_tokens"] == llm.n_ctx()


def test_echo(llm):
    assert text_of(llm(PROMPT, echo=True, **GREEDY)) == PROMPT + text_of(llm(PROMPT, **GREEDY))
    assert joined(llm(PROMPT, echo=True, stream=True, max_tokens=0)) == PROMPT


def test_token_ids_are_a_prompt_too(llm):
    assert text_of(llm(llm.tokenize(PROMPT.encode(), special=True), **GREEDY)) == text_of(llm(PROMPT, **GREEDY))


def test_an_empty_prompt_begins_with_bos(llm):
    assert llm("", max_tokens=1)["usage"]["prompt_tokens"] == 1


# --- the end of a text


def test_end_of_text_is_not_part_of_it(llm):
    answer = llm(PROMPT, max_tokens=50, logits_processor=script(llm, " jumps over"))
    assert text_of(answer) == " jumps over" and answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("written", "stop", "expected"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", "wo th", "one t"),
        ("one two three", ["three", "two", "zzz"], "one "),
        ("naïve café", ["é"], "naïve caf"),
        ("one tw", ["two"], "one tw"),
        ("我想在apple工作", ["在app"], "我想"),
    ],
)
def test_stop_strings(llm, stream, written, stop, expected):
    answer = llm(PROMPT, max_tokens=60, stop=stop, stream=stream, logits_processor=script(llm, written))
    assert (joined(answer) if stream else text_of(answer)) == expected


def test_a_stream_never_cuts_characters(llm):
    written = "🚀 naïve 我想 é"
    pieces = [text_of(chunk) for chunk in llm(PROMPT, max_tokens=100, stream=True, logits_processor=script(llm, written))]
    assert "".join(pieces) == written and not any("\ufffd" in piece for piece in pieces)


def test_an_unfinished_character_at_max_tokens_is_dropped(llm):
    rocket = llm.tokenize("ok🚀".encode(), add_bos=False)
    assert b"".join(llm.vocabulary.piece(token) for token in rocket[:-1]) != b"ok"
    answer = llm(PROMPT, max_tokens=len(rocket) - 1, logits_processor=script(llm, "ok🚀"))
    assert text_of(answer) == "ok"


def test_stopping_criteria(llm):
    n_prompt = len(llm.tokenize(PROMPT.encode()))
    criteria = StoppingCriteriaList([lambda ids, logits: len(ids) >= n_prompt + 3])
    answer = llm(
        PROMPT, temperature=0, max_tokens=20, stopping_criteria=criteria, logit_bias={t: -100.0 for t in llm.vocabulary.end_tokens}
    )
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (3, "stop")


# --- sampling


def test_same_seed_same_text(llm, tiny_tqn):
    draw = {"temperature": 1.5, "max_tokens": 20, "top_k": 0, "min_p": 0.0, "top_p": 1.0}
    assert text_of(llm(PROMPT, seed=5, **draw)) == text_of(llm(PROMPT, seed=5, **draw))
    assert len({text_of(llm(PROMPT, seed=seed, **draw)) for seed in range(4)}) > 1
    with Llama(str(tiny_tqn), n_ctx=64, seed=9) as one, Llama(str(tiny_tqn), n_ctx=64, seed=9) as other:
        assert text_of(one(PROMPT, **draw)) == text_of(other(PROMPT, **draw))
    assert len({text_of(llm(PROMPT, **draw)) for _ in range(4)}) > 1  # the default seed is drawn anew


def test_logit_bias_works_with_processors(llm):
    token, other = llm.tokenize(b"dog", add_bos=False)[0], llm.tokenize(b"fox", add_bos=False)[0]
    seen = []

    def look(ids, logits):
        seen.append(float(logits[token]))
        logits[other] = -np.inf
        return logits

    answer = llm(PROMPT, max_tokens=3, temperature=0, logit_bias={str(token): 1000.0}, logits_processor=LogitsProcessorList([look]))
    assert llm.tokenize(text_of(answer).encode(), add_bos=False)[0] == token and min(seen) > 900


def test_logprobs_are_the_models(llm):
    answer = llm(PROMPT, max_tokens=4, temperature=0, logprobs=3, echo=True, logit_bias={t: -100.0 for t in llm.vocabulary.end_tokens})
    entry = answer["choices"][0]["logprobs"]
    text, tokens = text_of(answer), entry["tokens"]
    assert "".join(tokens) == text and entry["text_offset"] == [len("".join(tokens[:i])) for i in range(len(tokens))]
    assert entry["token_logprobs"][0] is None and entry["top_logprobs"][0] is None
    ids = llm.tokenize(PROMPT.encode())
    llm.reset()
    llm.eval(ids[:1])
    logits = llm.logits.astype(np.float64)
    expected = logits[ids[1]] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    assert entry["token_logprobs"][1] == pytest.approx(expected, abs=1e-6)
    for logprob, top in zip(entry["token_logprobs"][-4:], entry["top_logprobs"][-4:], strict=True):
        assert 3 <= len(top) <= 4 and logprob == max(top.values())


def test_logprobs_of_a_removed_stop_string_are_removed(llm):
    answer = llm(PROMPT, max_tokens=60, stop="three", logprobs=0, logits_processor=script(llm, "one two three"))
    entry = answer["choices"][0]["logprobs"]
    assert text_of(answer) == "one two " and "".join(entry["tokens"]) == "one two t"  # the token " t" lies half in the text
    assert entry["text_offset"][-1] == len("one two")


def test_streamed_logprobs_are_the_same(llm):
    whole = llm(PROMPT, logprobs=2, **GREEDY)["choices"][0]["logprobs"]
    parts = [chunk["choices"][0]["logprobs"] for chunk in llm(PROMPT, logprobs=2, stream=True, **GREEDY)]
    streamed = {name: [value for part in parts if part for value in part[name]] for name in whole}
    assert (streamed["tokens"], streamed["text_offset"]) == (whole["tokens"], whole["text_offset"])
    # the second call finds the prompt in the cache: other batches, other rounding of float32 sums
    assert streamed["token_logprobs"] == pytest.approx(whole["token_logprobs"], abs=1e-4)
    for mine, theirs in zip(streamed["top_logprobs"], whole["top_logprobs"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


# --- one token at a time


def test_eval_sample_and_generate_agree_with_completion(llm):
    expected = text_of(llm(PROMPT, **GREEDY))
    ids = llm.tokenize(PROMPT.encode())
    llm.reset()
    llm.eval(ids)
    assert llm.n_tokens == len(ids) and llm.input_ids.tolist() == ids
    written = []
    while len(written) < GREEDY["max_tokens"] and (token := llm.sample(temp=0.0)) not in llm.vocabulary.end_tokens:
        written.append(token)
        llm.eval([token])
    assert llm.detokenize(written).decode("utf-8", "replace").startswith(expected)
    generated = [token for token, _ in zip(llm.generate(ids, temp=0.0), written, strict=False)]
    assert generated == written


def test_tokens_can_be_sent_to_generate(llm):
    ids = llm.tokenize(PROMPT.encode())
    generator = llm.generate(ids, temp=0.0)
    first = next(generator)
    sent = generator.send([7, 8])
    llm.reset()
    llm.eval([*ids, first, 7, 8])
    assert sent == llm.sample(temp=0.0)


def test_scores_exist_on_request_only(llm, tiny_tqn):
    ids = llm.tokenize(PROMPT.encode())
    llm.eval(ids)
    with pytest.raises(RuntimeError, match="logits_all"):
        llm.scores  # noqa: B018
    with Llama(str(tiny_tqn), n_ctx=64, logits_all=True) as full:
        full.eval(ids[:2])
        full.eval(ids[2:])
        assert full.scores.shape == (len(ids), full.n_vocab())
        np.testing.assert_allclose(full.scores[-1], llm.logits, atol=1e-4)
        assert len(full.eval_logits) == len(ids)
        full(PROMPT + " jumps", max_tokens=2)
        assert len(full.scores) == full.n_tokens


def test_logits_before_anything_is_an_error(llm):
    with pytest.raises(RuntimeError, match="evaluate"):
        llm.logits  # noqa: B018


# --- what the cache keeps


def counted(llm, monkeypatch):
    """Counts tokens that the engine evaluates."""
    evaluated = []
    original = Slot.append
    monkeypatch.setattr(Slot, "append", lambda self, new: evaluated.append(len(new)) or original(self, new))
    return evaluated


def test_a_shared_prefix_is_evaluated_once(llm, monkeypatch):
    first, second = list(range(3, 40)), [*range(3, 30), 100, 101, 102]
    fresh = llm(second, **GREEDY)["choices"]
    llm.reset()
    llm(first, max_tokens=1, temperature=0)
    evaluated = counted(llm, monkeypatch)
    again = llm(second, **GREEDY)["choices"]
    assert evaluated[0] == 3 and again == fresh
    assert llm.timings.prompt_tokens == 3


def test_states(llm, tiny_tqn):
    llm.eval(llm.tokenize(PROMPT.encode()))
    state = pickle.loads(pickle.dumps(llm.save_state()))
    expected = [token for token, _ in zip(llm.generate([5], temp=0.0, reset=False), range(8), strict=False)]
    llm.reset()
    llm.load_state(state)
    assert llm.n_tokens == state.n_tokens
    assert [token for token, _ in zip(llm.generate([5], temp=0.0, reset=False), range(8), strict=False)] == expected
    with Llama(str(tiny_tqn), n_ctx=4) as small, pytest.raises(ValueError, match="n_ctx"):
        small.load_state(state)


def test_cache_of_states_takes_up_earlier_prompts(llm, monkeypatch):
    llm.set_cache(LlamaRAMCache())
    first, second = list(range(3, 40)), list(range(100, 140))
    fresh = llm(first, **GREEDY)["choices"]
    llm(second, **GREEDY)
    evaluated = counted(llm, monkeypatch)
    assert llm(first, **GREEDY)["choices"] == fresh
    assert evaluated[0] == 1
    cache = LlamaRAMCache(capacity_bytes=1)
    llm.set_cache(cache)
    llm(first, **GREEDY)
    assert cache.cache_size <= 1


def test_pickling_opens_the_file_again(llm):
    with pickle.loads(pickle.dumps(llm)) as copy:
        assert copy.n_ctx() == llm.n_ctx() and text_of(copy(PROMPT, **GREEDY)) == text_of(llm(PROMPT, **GREEDY))


# --- errors


def test_a_prompt_that_does_not_fit_is_an_error(llm):
    with pytest.raises(ValueError, match="256"):
        llm([5] * 256)
    with pytest.raises(ValueError, match="256"):
        llm([5] * 256, stream=True)  # at the call, not at the first piece
    with pytest.raises(ValueError, match="256"):
        llm.eval([5] * 257)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"mirostat_mode": 2}, "mirostat_mode"),
        ({"top_p": 1.5}, "top_p"),
        ({"logprobs": -1}, "logprobs"),
        ({"logit_bias": {999999: 1.0}}, "999999"),
    ],
)
def test_bad_options_are_named(llm, options, message):
    with pytest.raises(ValueError, match=message):
        llm(PROMPT, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": 3}, "prompt"),
        ({"prompt": b"bytes"}, "prompt"),
        ({"prompt": ["One", "Two"]}, "'One'"),
        ({"prompt": [1.5]}, "1.5"),
        ({"max_tokens": "9"}, "max_tokens.*'9'"),
        ({"seed": 0.5}, "seed"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", 5]}, r"stop.*\['a', 5\]"),
        ({"stop": b"a"}, "stop.*b'a'"),
        ({"temperature": "hot"}, "temperature.*'hot'"),
        ({"grammar": "root ::= x"}, "LlamaGrammar"),
        ({"logit_bias": [5]}, "logit_bias"),
    ],
)
def test_arguments_of_a_wrong_type_are_named(llm, options, message):
    with pytest.raises(TypeError, match=message):
        llm(**{"prompt": PROMPT, **options})


def test_wrong_types_elsewhere(llm, tiny_tqn):
    with pytest.raises(TypeError, match="n_ctx must be an integer, got 'x'"):
        Llama(str(tiny_tqn), n_ctx="x")
    with pytest.raises(TypeError, match="prompts must be a list"):
        llm.generate_batch("One")
    with pytest.raises(TypeError, match="'max_tokns'"):
        llm.generate_batch(["One"], max_tokns=3)
    with pytest.raises(ValueError, match="surrogate"):
        llm("\ud83d")


def test_unknown_options(llm, tiny_tqn):
    with pytest.raises(TypeError, match="max_token"):
        llm(PROMPT, max_token=3)
    with pytest.warns(UserWarning, match="n_cxt"):
        Llama(str(tiny_tqn), n_cxt=64).close()
    with pytest.raises(TypeError, match="n_cxt"):
        Llama(str(tiny_tqn), n_cxt=64, strict=True)
    with pytest.raises(ValueError, match="lora_path"):
        Llama(str(tiny_tqn), lora_path="x")
    with pytest.raises(ValueError, match="type_k"):
        Llama(str(tiny_tqn), type_k=8)  # alone
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Llama(str(tiny_tqn), n_ctx=16, n_parts=-1, f16_kv=True, low_vram=False, rope_freq_base=10000.0, strict=True).close()


def test_bad_tokens_are_named(llm):
    with pytest.raises(ValueError, match=r"token 320 at position 1 is outside \[0, 320\)"):
        llm.eval([5, 320])
    with pytest.raises(ValueError, match="not UTF-8 at byte 2"):
        llm.tokenize(b"ab\xff")


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Llama(str(tmp_path / "nowhere.gguf"))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ValueError, match="broken"):
        Llama(str(tmp_path / "broken.gguf"))


@pytest.mark.parametrize(
    ("asked", "main_gpu", "split", "expected"),
    [
        (-1, 0, None, "cuda:0"),
        (99, 1, None, "cuda:1"),
        (20, 0, None, "cpu*12,cuda:0*20"),
        (20, 1, None, "cpu*12,cuda:1*20"),
        (-1, 0, [1, 1], "cuda:0*16,cuda:1*16"),
        (10, 0, [3, 0, 1], "cpu*22,cuda:0*8,cuda:2*2"),
    ],
)
def test_layers_are_given_to_devices(asked, main_gpu, split, expected):
    assert devices.device_parts("cuda", asked, 32, main_gpu, split) == expected


def test_without_a_gpu_the_cpu_runs_the_model(tiny_tqn, monkeypatch, caplog):
    monkeypatch.setattr(_core, "backends", lambda: {"cpu": "available", "cuda": "unsupported: no driver", "metal": "unsupported: no"})
    with Llama(str(tiny_tqn), n_ctx=16, n_gpu_layers=-1) as llm:
        assert llm("fox", max_tokens=1)["usage"]["completion_tokens"] <= 1
    assert "no driver" in caplog.text
    with pytest.raises(ValueError, match="tensor_split"):
        devices.device_parts("cuda", -1, 32, 0, [0.0, 0.0])


# --- text and tokens


@pytest.mark.parametrize("text", ["The quick", "  two  spaces\n", "naïve 我想 🚀", "", "<|im_end|>"])
def test_detokenize_inverts_tokenize(llm, text):
    assert llm.detokenize(llm.tokenize(text.encode(), add_bos=False)) == text.encode()


def test_control_tokens_are_text_unless_special(llm):
    assert llm.tokenize(b"<|im_end|>", add_bos=False, special=True) == [1]
    assert 1 not in llm.tokenize(b"<|im_end|>", add_bos=False)
    assert llm.detokenize([1, *llm.tokenize(b"fox", add_bos=False)]) == b"fox"
    assert llm.detokenize([1], special=True) == b"<|im_end|>"


# --- several threads, and the end


def test_threads_take_turns(llm):
    prompts = [list(range(3 + i, 20 + i)) for i in range(6)]
    alone = [text_of(llm(prompt, **GREEDY)) for prompt in prompts]
    together = [None] * len(prompts)

    def work(i):
        together[i] = joined(llm(prompts[i], stream=True, **GREEDY)) if i % 2 else text_of(llm(prompts[i], **GREEDY))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_interleaved_streams_do_not_disturb_each_other(llm, monkeypatch):
    prompts = [list(range(3, 60)), list(range(3, 12))]
    options = {**GREEDY, "logit_bias": {t: -100.0 for t in llm.vocabulary.end_tokens}}
    alone = [text_of(llm(prompt, **options)) for prompt in prompts]
    llm.reset()
    evaluated = counted(llm, monkeypatch)
    submit, append, second = llm.engine.scheduler.submit, Slot.append, threading.Event()

    def submitted(work, *args, **kwargs):
        handle = submit(work, *args, **kwargs)
        if len(work.tokens) == len(prompts[1]):
            second.set()
        return handle

    def held(slot, new):  # the first stream does not end before the second is there, however late this thread is
        append(slot, new)
        assert len(evaluated) < options["max_tokens"] // 2 or second.wait(60)

    monkeypatch.setattr(llm.engine.scheduler, "submit", submitted)
    monkeypatch.setattr(Slot, "append", held)
    streams = [llm(prompt, stream=True, **options) for prompt in prompts]
    texts = ["", ""]
    for pair in zip(*streams, strict=False):
        for i, chunk in enumerate(pair):
            texts[i] += text_of(chunk)
    for i, stream in enumerate(streams):
        texts[i] += joined(stream)
    assert texts == alone
    # each prompt once, then token by token
    assert sum(evaluated) <= sum(map(len, prompts)) + 2 * options["max_tokens"]
    assert len(llm.engine.scheduler.slots) == 2


def test_closed_while_generating_raises(tiny_tqn):
    llm = Llama(str(tiny_tqn), n_ctx=256)
    stream = llm(PROMPT, stream=True, max_tokens=100, logit_bias={t: -100.0 for t in llm.vocabulary.end_tokens})
    next(stream)
    llm.close()
    with pytest.raises(RuntimeError, match="closed"):
        list(stream)
    llm.close()
    with pytest.raises(RuntimeError, match="closed"):
        llm(PROMPT)


def test_closed_by_another_thread_raises(tiny_tqn):
    llm = Llama(str(tiny_tqn), n_ctx=256)
    started, failure = threading.Event(), []

    def generate():
        try:
            while True:
                started.set()
                llm([5, 6, 7], max_tokens=200, temperature=1.0)
        except RuntimeError as error:
            failure.append(error)

    thread = threading.Thread(target=generate)
    thread.start()
    started.wait()
    llm.close()
    thread.join(timeout=30)
    assert not thread.is_alive() and "closed" in str(failure[0])


def test_loading_and_closing_leaves_nothing_behind(tiny_tqn):
    def cycle():
        with Llama(str(tiny_tqn), n_ctx=256) as llm:
            llm(PROMPT, max_tokens=2)

    def resident():
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not os.path.exists("/proc/self/statm"):
        pytest.skip("resident memory is read from /proc")
    for _ in range(5):
        cycle()
    before = resident()
    threads = threading.active_count()
    for _ in range(20):
        cycle()
    # one leaked context would keep 20 caches of 256 * 2 * 2 * 24 * 2 bytes and as many thread stacks: far above a megabyte
    assert resident() - before < 1 << 20
    assert threading.active_count() == threads and not hasattr(Llama, "__del__")


def test_nothing_is_printed(llm, capfd):
    llm(PROMPT, max_tokens=2)
    assert capfd.readouterr() == ("", "")
