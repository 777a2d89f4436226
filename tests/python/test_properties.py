"""What must hold for all inputs, tried on those that hypothesis makes up."""

import codecs
import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from turboquant_native import _core
from turboquant_native.api.logprobs import Offsets
from turboquant_native.calibrate.allocation import Choice, allocate
from turboquant_native.engine.pace import Pace
from turboquant_native.engine.slots import Slot, choose
from turboquant_native.engine.streaming import TextStream
from turboquant_native.engine.tokens import common_prefix
from turboquant_native.engine.vocabulary import Vocabulary

# The same inputs every time: a run must not fail by chance for a fault that is older than the change it tests.
FEW = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def vocabulary(tiny_f32):
    return Vocabulary(_core.GgufFile(str(tiny_f32)).metadata, 320)


@FEW
@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=60))
def test_text_survives_the_tokenizer(vocabulary, text):
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids, special=True).decode() == text
    assert b"".join(vocabulary.piece(token) for token in ids).decode() == text


@FEW
@given(
    data=st.binary(max_size=40), cuts=st.lists(st.integers(0, 40), max_size=6), stop=st.lists(st.text("ab\u00e9", min_size=1, max_size=3))
)
def test_a_stream_gives_the_text_before_the_first_stop_string_whatever_the_pieces(data, cuts, stop):
    stream, ends = TextStream(stop), [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    text = "".join(stream.push(data[a:b]) for a, b in itertools.pairwise(ends)) + stream.finish()
    whole = codecs.getincrementaldecoder("utf-8")("replace").decode(data)
    assert whole.startswith(text) and not any(word in text for word in stop)
    if stream.stopped_by is None:
        assert text == whole
    else:
        assert whole[len(text) :].startswith(stream.stopped_by)


class Pieces:
    """A vocabulary whose tokens are given."""

    def __init__(self, pieces):
        self._pieces = pieces

    def piece(self, token):
        return self._pieces[token]

    def is_control(self, token):
        return False


@FEW
@given(pieces=st.lists(st.binary(min_size=1, max_size=4), max_size=12))
def test_offsets_never_go_back_and_stay_within_the_text(pieces):
    offsets = Offsets(Pieces(pieces))
    found = [offsets.next(index) for index in range(len(pieces))]
    assert found == sorted(found)
    assert all(offset <= len(b"".join(pieces).decode("utf-8", "replace")) for offset in found)


CHOICES = st.lists(st.tuples(st.integers(1, 500), st.floats(0, 10)), min_size=1, max_size=4)


@FEW
@given(matrices=st.lists(CHOICES, min_size=1, max_size=6), spare=st.integers(0, 1500))
def test_an_allocation_fits_and_beats_the_smallest(matrices, spare):
    options = {str(index): [Choice(k + 1, size, loss) for k, (size, loss) in enumerate(choices)] for index, choices in enumerate(matrices)}
    smallest = {name: min(choices, key=lambda choice: choice.bytes) for name, choices in options.items()}
    budget = sum(choice.bytes for choice in smallest.values()) + spare
    chosen = allocate(options, budget)
    assert chosen.keys() == options.keys() and all(chosen[name] in options[name] for name in options)
    assert sum(choice.bytes for choice in chosen.values()) <= budget


TOKENS = st.lists(st.integers(0, 3), max_size=12)


@FEW
@given(held=st.lists(st.tuples(TOKENS, st.booleans()), min_size=1, max_size=5), wanted=TOKENS)
def test_a_request_gets_a_free_slot_and_the_longest_prefix_there_is(held, wanted):
    slots = []
    for index, (tokens, busy) in enumerate(held):
        slots.append(Slot(index, 16))
        slots[-1].assign(np.array(tokens, np.intc))
        slots[-1].busy, slots[-1].used = busy, index
    tokens = np.array(wanted, np.intc)
    found = choose(slots, tokens)
    if all(slot.busy for slot in slots):
        assert found is None
        return
    target, source = found
    assert not target.busy
    assert source.shared(tokens) == max(common_prefix(slot.tokens, tokens) for slot in slots)


@FEW
@given(
    n_batch=st.integers(1, 2048),
    row=st.floats(0, 10),
    passes=st.lists(st.tuples(st.integers(0, 2048), st.integers(0, 8), st.floats(1e-6, 100)), max_size=10),
)
@example(n_batch=1, row=2.2e-313, passes=[(0, 0, 1.0)])
def test_a_pass_always_takes_some_prompt_and_never_more_than_a_batch(n_batch, row, passes):
    pace = Pace(n_batch, row)
    for prompt, decoding, seconds in passes:
        pace.measured(prompt, decoding, seconds)
        for others in (False, True):
            assert 1 <= pace.prompt_rows(decoding, others) <= n_batch


@FEW
@given(seed=st.integers(0, 2**64 - 1), options=st.fixed_dictionaries({"temperature": st.floats(0.01, 5), "top_k": st.integers(-1, 20)}))
def test_the_sampler_draws_what_it_may(seed, options):
    logits = np.random.default_rng(seed % 2**32).standard_normal(16).astype(np.float32)
    logits[3] = -np.inf
    token = _core.Sampler(**options, top_p=1.0, min_p=0.0, seed=seed).sample(logits, [])
    assert 0 <= token < 16 and token != 3
    if options["top_k"] > 0:
        assert (logits > logits[token]).sum() < options["top_k"]
