"""The engine's scheduler: slots, prefixes, fairness, cancelling, errors of callers, forks, interrupts."""

import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from turboquant_native.engine.engine import Engine
from turboquant_native.engine.generation import Generation, Limits
from turboquant_native.engine.pace import Pace
from turboquant_native.engine.sampling import SamplingOptions, StoppingCriteriaList, TokenChooser
from turboquant_native.engine.scheduler import QueueFull
from turboquant_native.engine.slots import Slot, choose
from turboquant_native.engine.work import Completing, Evaluation

GREEDY = SamplingOptions(temperature=0)


@pytest.fixture
def engine(tiny_tqn):
    opened = Engine(str(tiny_tqn), n_ctx=256, max_slots=4, n_threads=1)
    yield opened
    opened.close()


def work(engine, prompt, max_tokens=8, processors=(), criteria=(), **options):
    """A greedy completion without end tokens."""
    bias = {token: -100.0 for token in engine.vocabulary.end_tokens}
    chooser = TokenChooser(engine.new_sampler(GREEDY, 0), bias, list(processors))
    limits = Limits(max_tokens, criteria=StoppingCriteriaList(criteria))
    return Completing(Generation(engine.vocabulary, np.array(prompt, np.intc), chooser, limits), **options)


def generated(handle):
    handle.wait()
    generation = handle.work.generation
    return generation.history[generation.n_prompt :].tolist()


def slow(seconds=0.02):
    def processor(_tokens, logits):
        time.sleep(seconds)
        return logits

    return processor


def fixed(rows):
    """A pace of so many prompt tokens a pass."""
    pace = Pace(512)
    pace.prompt_rows = lambda decoding, others: rows
    return pace


# --- slots


def slot(index, tokens, busy=False, used=0):
    made = Slot(index, 64)
    made.assign(np.array(tokens, np.intc))
    made.busy, made.used = busy, used
    return made


def test_a_conversation_goes_on_where_its_cache_is():
    slots = [slot(0, [1, 2, 3, 4], used=1), slot(1, [1, 2, 9, 9], used=2), slot(2, [])]
    assert choose(slots, np.array([1, 2, 9, 9, 5], np.intc)) == (slots[1], slots[1])


def test_another_conversation_with_the_same_beginning_gets_a_copy():
    system = list(range(10))
    slots = [slot(0, [*system, *range(100, 130)], used=5), slot(1, [50, 51], used=1)]
    assert choose(slots, np.array([*system, 7, 8], np.intc)) == (slots[1], slots[0])


def test_a_busy_slot_can_be_copied_from_but_not_taken():
    slots = [slot(0, [1, 2, 3], busy=True), slot(1, [9], used=3)]
    assert choose(slots, np.array([1, 2, 3, 4], np.intc)) == (slots[1], slots[0])
    slots[1].busy = True
    assert choose(slots, np.array([1, 2], np.intc)) is None


def test_an_unrelated_request_takes_the_slot_unused_for_longest():
    slots = [slot(0, [1, 2], used=4), slot(1, [3, 4], used=2), slot(2, [5, 6], used=9)]
    assert choose(slots, np.array([30, 31], np.intc)) == (slots[1], slots[1])


# --- running together


def test_together_is_as_alone(engine):
    prompts = [list(range(3, 3 + n)) for n in (1, 40, 7, 90, 33, 2)]
    alone = [generated(engine.scheduler.submit(work(engine, prompt))) for prompt in prompts]
    engine.scheduler.forget()
    together = [work(engine, prompt) for prompt in prompts]
    handles = engine.scheduler.run(lambda: [engine.scheduler.submit(each) for each in together])  # between two passes: none ends before
    assert [generated(handle) for handle in handles] == alone
    assert len(engine.scheduler.slots) == 4 and not any(slot.busy for slot in engine.scheduler.slots)


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_results_do_not_depend_on_how_prompts_are_cut(engine, rows):
    """Whole passes add in another order than short ones: equal but for the last bit of a float32 sum."""
    prompt = np.arange(3, 203, dtype=np.intc)
    expected = engine.evaluate(prompt, 5)
    engine.scheduler.forget()
    engine.scheduler._pace = fixed(rows)
    np.testing.assert_allclose(engine.evaluate(prompt, 5), expected, rtol=1e-5, atol=1e-5)


def test_a_prompt_alone_gives_the_same_bits_whatever_the_clock_says(engine):
    prompt = np.arange(3, 203, dtype=np.intc)
    expected = engine.evaluate(prompt)
    engine.scheduler.forget()
    engine.scheduler._pace.measured(512, 0, 100.0)
    np.testing.assert_array_equal(engine.evaluate(prompt), expected)


def test_a_long_prompt_lets_others_speak(engine):
    engine.scheduler._pace = fixed(8)
    order = []
    short = engine.scheduler.submit(work(engine, [5, 6], 100, [slow(0.01)]), lambda handle: order.append("short"))
    while not order:
        time.sleep(0.001)
    long = engine.scheduler.submit(work(engine, range(3, 203), 1), lambda handle: order.append("long"))
    generated(short), generated(long)
    assert order.count("long") > 10  # the prompt reports its progress
    first, last = order.index("long"), len(order) - 1 - order[::-1].index("long")
    assert order[first:last].count("short") > 5


def test_prompts_are_served_in_the_order_of_arrival(engine):
    engine.scheduler.reserve(4)
    ended = []
    prompts = [range(3 + k, 100 + k) for k in range(4)]
    handles = [
        engine.scheduler.submit(work(engine, prompt, 1), lambda handle, k=k: handle.done and ended.append(k))
        for k, prompt in enumerate(prompts)
    ]
    for handle in handles:
        handle.wait()
    assert ended == sorted(ended)


def test_a_short_prompt_does_not_wait_for_the_end_of_a_long_one(engine):
    engine.scheduler.reserve(2)
    engine.scheduler._pace = fixed(16)
    gate, ended = threading.Event(), []
    held = engine.scheduler.submit(work(engine, [1], 1, [lambda _tokens, logits: (gate.wait(10), logits)[1]]))
    held_by = lambda name: lambda handle: handle.done and ended.append(name)  # noqa: E731
    long = engine.scheduler.submit(work(engine, range(3, 203), 1), held_by("long"))
    short = engine.scheduler.submit(work(engine, [5, 6, 7], 1), held_by("short"))
    gate.set()
    for handle in (held, long, short):
        handle.wait()
    assert ended == ["short", "long"]


def test_a_prefix_of_a_busy_slot_is_copied(engine):
    engine.scheduler.reserve(2)
    prompt = list(range(3, 83))
    expected = generated(engine.scheduler.submit(work(engine, [*prompt, 9], 4)))
    engine.scheduler.forget()
    first = engine.scheduler.submit(work(engine, prompt, 40, [slow()]))
    next(iter_chunks := iter(first))
    second = engine.scheduler.submit(work(engine, [*prompt, 9], 4))
    assert generated(second) == expected
    assert second.cached_tokens == len(prompt)
    iter_chunks.close()


def test_more_slots_keep_what_the_first_held(engine):
    prompt = list(range(3, 83))
    engine.evaluate(prompt)
    assert engine.scheduler.reserve(3) == 3
    handle = engine.scheduler.submit(Evaluation(np.array(prompt, np.intc)))
    handle.wait()
    assert handle.cached_tokens == len(prompt) - 1


# --- ending early


def test_a_cancelled_request_frees_its_slot(engine):
    handle = engine.scheduler.submit(work(engine, [5, 6, 7], 200, [slow()]))
    stream = iter(handle)
    next(stream)
    stream.close()
    deadline = time.monotonic() + 5
    while engine.scheduler.active and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.scheduler.active == 0 and handle.done and handle.error is None
    assert 0 < handle.work.generation.n_generated < 200


def test_a_cancelled_request_in_the_queue_never_runs(engine):
    engine.scheduler.max_slots = 1
    first = engine.scheduler.submit(work(engine, [5], 30, [slow()]))
    second = engine.scheduler.submit(work(engine, [6], 30))
    second.cancel()
    third = engine.scheduler.submit(work(engine, [7], 1))
    generated(third)
    assert first.done and second.done and second.work.generation.n_generated == 0


def test_a_full_queue_refuses(tiny_tqn):
    engine = Engine(str(tiny_tqn), n_ctx=64, max_slots=1, queue_limit=1)
    try:
        running = engine.scheduler.submit(work(engine, [5], 50, [slow()]))
        next(iter(running.take()), None)
        while not engine.scheduler.active:
            time.sleep(0.001)
        engine.scheduler.submit(work(engine, [6], 1))
        with pytest.raises(QueueFull, match="limit is 1"):
            engine.scheduler.submit(work(engine, [7], 1))
    finally:
        engine.close()


def test_an_error_of_one_caller_is_its_own(engine):
    def broken(_tokens, _logits):
        raise KeyError("mine")

    engine.scheduler.reserve(2)
    good = engine.scheduler.submit(work(engine, [5, 6], 12))
    bad = engine.scheduler.submit(work(engine, [7, 8], 12, [broken]))
    with pytest.raises(KeyError, match="mine"):
        bad.wait()
    with pytest.raises(KeyError, match="mine"):
        list(bad)
    expected = generated(good)
    assert generated(engine.scheduler.submit(work(engine, [5, 6], 12))) == expected


def test_a_callback_cannot_wait_for_its_own_engine(engine):
    def waits(_tokens, logits):
        engine.evaluate([1, 2, 3])
        return logits

    with pytest.raises(RuntimeError, match="cannot wait"):
        engine.scheduler.submit(work(engine, [5], 2, [waits])).wait()


def test_closing_ends_what_runs_and_what_waits(tiny_tqn):
    engine = Engine(str(tiny_tqn), n_ctx=256, max_slots=1)
    handles = [engine.scheduler.submit(work(engine, [5 + k], 200, [slow()])) for k in range(3)]
    next(iter(handles[0]))
    engine.close()
    for handle in handles[1:]:
        with pytest.raises(RuntimeError, match="closed"):
            handle.wait()
    with pytest.raises(RuntimeError, match="closed"):
        engine.evaluate([1])
    engine.close()


def test_the_thread_ends_when_there_is_nothing_to_do(engine):
    engine.evaluate([1, 2])
    deadline = time.monotonic() + 5
    while any(thread.name == "turboquant-engine" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(thread.name == "turboquant-engine" for thread in threading.enumerate())
    assert engine.evaluate([1, 2]).shape == (1, engine.n_vocab)


def test_pace_beside_others_follows_what_passes_take():
    pace = Pace(512, 0.01)
    assert pace.prompt_rows(0, False) == 64 and pace.prompt_rows(0, True) == 32
    pace.measured(0, 2, 0.08)
    assert pace.prompt_rows(2, False) == 16
    fast = Pace(512)
    assert (fast.prompt_rows(0, False), fast.prompt_rows(0, True), fast.prompt_rows(1, False)) == (512, 512, 32)
    fast.measured(512, 0, 0.0512)
    fast.measured(0, 1, 0.01)
    assert (fast.prompt_rows(0, True), fast.prompt_rows(1, False)) == (512, 288)


# --- processes


def run(code, *arguments, timeout=60):
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], capture_output=True, text=True, timeout=timeout
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_answers_or_refuses_but_never_hangs(tiny_tqn):
    code = """
    import os, sys, warnings
    warnings.simplefilter("ignore")
    from turboquant_native import Llama
    llm = Llama(sys.argv[1], n_ctx=128, n_threads=2)
    text = llm("The quick", max_tokens=6, temperature=0)["choices"][0]["text"]
    stream = llm("The quick brown", max_tokens=100, temperature=0, stream=True)  # the engine is at work when the fork comes
    next(stream)
    child = os.fork()
    if child == 0:
        try:
            ok = llm("The quick", max_tokens=6, temperature=0)["choices"][0]["text"] == text
        except RuntimeError:
            ok = True
        llm.close()
        os._exit(0 if ok else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    assert sum(1 for _ in stream) > 0
    assert llm("The quick", max_tokens=6, temperature=0)["choices"][0]["text"] == text
    print("fine")
    """
    assert run(code, tiny_tqn) == "fine\n"


def test_ctrl_c_ends_a_prompt_at_once_and_nothing_is_torn(tiny_tqn):
    """Interrupts at many moments of calls that keep every token's logits: rows and tokens must stay together."""
    code = """
    import os, signal, sys, threading, time
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from turboquant_native import Llama
    llm = Llama(sys.argv[1], n_ctx=256, n_threads=1, logits_all=True)
    interrupted = 0
    for k in range(60):
        timer = threading.Timer(0.0004 * k, lambda: os.kill(os.getpid(), signal.SIGINT))
        try:
            timer.start()
            llm.eval(list(range(3, 120)))
            llm("The quick", max_tokens=3)
            timer.join()
            time.sleep(0.002)
        except KeyboardInterrupt:
            interrupted += 1
        assert len(llm.scores) == llm.n_tokens
        llm.reset()
    assert interrupted == 60, interrupted
    print("fine")
    """
    assert run(code, tiny_tqn) == "fine\n"


def test_the_interpreter_ends_while_the_engine_is_at_work(tiny_tqn):
    code = """
    import sys
    from turboquant_native import Llama
    llm = Llama(sys.argv[1], n_ctx=256)
    stream = llm("The quick", max_tokens=200, stream=True)
    next(stream)
    print("fine")
    """
    assert run(code, tiny_tqn) == "fine\n"
