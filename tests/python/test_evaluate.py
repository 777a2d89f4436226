"""The arithmetic of perplexity and KL divergence, against plain definitions; llama-perplexity's file."""

import struct

import numpy as np
import pytest

from turboquant_native.evaluate import evaluation as evaluate
from turboquant_native.evaluate import kld_base


def softmax64(logits):
    logits = logits.astype(np.float64)
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


class ArrayReference:
    floor = -np.inf

    def __init__(self, logits, windows):
        self._logits, self.windows, self.n_vocab = logits, windows, logits.shape[-1]

    def logprobs(self, index):
        return evaluate.normalize(self._logits[index].copy())


@pytest.fixture
def reference():
    rng = np.random.default_rng(7)
    ctx, n_vocab = 16, 101  # an odd vocabulary: rows of the file are padded
    windows = rng.integers(0, n_vocab, (3, ctx)).astype(np.int32)
    logits = (rng.standard_normal((3, len(evaluate.scored_rows(ctx)), n_vocab)) * 4).astype(np.float32)
    return ArrayReference(logits, windows)


def test_the_second_half_is_scored():
    assert evaluate.scored_rows(512) == range(256, 511)
    assert evaluate.scored_rows(7) == range(3, 6)


def test_scores_follow_the_definitions(reference):
    rng = np.random.default_rng(8)
    logits = (reference._logits[0] + rng.standard_normal(reference._logits[0].shape)).astype(np.float32)
    targets = reference.windows[0][9:]
    scores = evaluate.score_window(logits.copy(), targets, reference.logprobs(0))
    p, q = softmax64(reference._logits[0]), softmax64(logits)
    # float32 log-probabilities up to 20 nats carry 1e-6 each
    np.testing.assert_allclose(scores.kld, (p * np.log(p / q)).sum(axis=1), atol=4e-6)
    np.testing.assert_allclose(scores.nll, -np.log(q[np.arange(len(q)), targets]), atol=4e-6)
    np.testing.assert_allclose(scores.nll_reference, -np.log(p[np.arange(len(p)), targets]), atol=4e-6)
    np.testing.assert_array_equal(scores.same_top, p.argmax(axis=1) == q.argmax(axis=1))


def test_blocks_do_not_change_the_scores(reference, monkeypatch):
    targets = reference.windows[1][9:]
    whole = evaluate.score_window(reference._logits[0].copy(), targets, reference.logprobs(1))
    monkeypatch.setattr(evaluate, "_BLOCK_VALUES", 2 * reference.n_vocab)
    parts = evaluate.score_window(reference._logits[0].copy(), targets, reference.logprobs(1))
    np.testing.assert_array_equal(whole.kld, parts.kld)


def test_summary_of_known_values():
    nll = np.log(np.array([2.0, 8.0]))
    scores = evaluate.TokenScores(nll, nll, np.array([0.0, 1.0]), np.array([True, False]))
    result = evaluate.summarize([scores], 4)
    assert result.ppl == pytest.approx(4)
    assert result.ppl_se == pytest.approx(4 * np.log(2))  # population deviation ln 2, one degree of freedom
    assert (result.kld_mean, result.kld_median, result.kld_max) == (0.5, 0.5, 1.0)
    assert result.kld_p99 == pytest.approx(0.99)
    assert (result.same_top, result.same_top_se) == (0.5, 0.5)
    assert result.as_dict()["scored"] == 2 and "bpw" not in result.as_dict()


def test_cached_reference_repeats_the_live_one(reference, tmp_path):
    cached = evaluate.CachedReference.store(tmp_path / "ref.npy", reference, np.float32)
    np.testing.assert_array_equal(cached.logprobs(2), reference.logprobs(2))
    with pytest.raises(ValueError, match="expected"):
        evaluate.CachedReference(tmp_path / "ref.npy", reference.windows[:2])


def test_kld_base_bytes(tmp_path):
    """One row of known values, byte by byte: log-probabilities 0, -8 and -40 below the best, one pad word."""
    windows = np.arange(4, dtype=np.int32).reshape(1, 4) % 3
    logits = np.array([[[0.0, -8.0, -40.0]]], np.float32)
    kld_base.write(tmp_path / "base", ArrayReference(logits, windows))
    log_sum = np.log1p(np.exp(-8.0))
    data = (tmp_path / "base").read_bytes()
    assert data[:20] == b"_logits_" + struct.pack("<iii", 4, 3, 1)
    assert data[20:36] == struct.pack("<4i", 0, 1, 2, 0)
    step, least = struct.unpack("<ff", data[36:44])
    assert step == pytest.approx(16 / 65535, rel=1e-6) and least == pytest.approx(-16 - log_sum, rel=1e-6)
    assert struct.unpack("<3H", data[44:50])[0] == 65535
    assert abs(struct.unpack("<3H", data[44:50])[1] - 65535 / 2) <= 1
    assert struct.unpack("<4H", data[44:52])[2:] == (0, 0)
    assert len(data) == 52


def test_kld_base_round_trip(reference, tmp_path):
    kld_base.write(tmp_path / "base", reference)
    base = kld_base.KldBaseFile(tmp_path / "base")
    np.testing.assert_array_equal(base.windows, reference.windows)
    original, restored = reference.logprobs(1), base.logprobs(1)
    counted = original > original.max(axis=1, keepdims=True) - 16
    assert np.abs(restored - original)[counted].max() <= 0.5 * 16 / 65535 + 4e-6
    targets = reference.windows[1][9:]
    exact = evaluate.score_window(reference._logits[0].copy(), targets, original)
    coded = evaluate.score_window(reference._logits[0].copy(), targets, restored, base.floor)
    # half a step on each log-probability, and at most 101 words of exp(-16) that are not counted
    np.testing.assert_allclose(coded.kld, exact.kld, atol=2 * 16 / 65535 + 101 * np.exp(-16) * 40)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"_logitz_" + data[8:], "does not begin with"),
        (lambda data: data[:12], "does not begin with"),
        (lambda data: data[:-1], "header asks for"),
        (lambda data: data + b"\0", "header asks for"),
        (lambda data: data[:8] + struct.pack("<i", -5) + data[12:], "impossible header"),
        (lambda data: data[:20] + struct.pack("<i", 101) + data[24:], "tokens outside"),
    ],
)
def test_damaged_kld_base_is_refused(reference, tmp_path, change, message):
    kld_base.write(tmp_path / "base", reference)
    (tmp_path / "base").write_bytes(change((tmp_path / "base").read_bytes()))
    with pytest.raises(ValueError, match=message):
        kld_base.KldBaseFile(tmp_path / "base")
