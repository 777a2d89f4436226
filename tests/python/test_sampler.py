"""The sampler behind the extension module."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from turboquant_native._core import Sampler


def frequencies(sampler: Sampler, logits: Any, n: int = 4000) -> Counter[int]:
    return Counter(sampler.sample(logits, ()) for _ in range(n))


LOGITS = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05], np.float32))
PLAIN: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def test_sampling_follows_the_probabilities() -> None:
    """Each count is binomial: 5 standard deviations of 4000 draws."""
    counts = frequencies(Sampler(**PLAIN, seed=3), LOGITS)
    for token, p in enumerate(np.exp(LOGITS)):
        assert abs(counts[token] - 4000 * p) < 5 * np.sqrt(4000 * p * (1 - p))


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.7}, {0, 1}),
        ({"top_p": 0.71}, {0, 1, 2}),
        ({"top_p": 0.0}, {0}),
        ({"min_p": 0.3}, {0, 1, 2}),
        ({"top_k": 3, "top_p": 0.8}, {0, 1}),  # top-p sees the probabilities that top-k left
        ({"typical_p": 0.2}, {1}),  # entropy 1.39: token 1, of surprise 1.2, is the most typical
        ({"temperature": 0.0}, {0}),
        ({"temperature": 0.05}, {0, 1}),
    ],
)
def test_stages_keep_what_they_should(options: dict[str, Any], kept: set[int]) -> None:
    assert set(frequencies(Sampler(**{**PLAIN, **options}, seed=1), LOGITS)) == kept


def test_penalties_lower_recent_tokens() -> None:
    logits = np.array([2.0, 1.9, -1.0], np.float32)
    greedy = {"temperature": 0.0}
    assert Sampler(**greedy).sample(logits, [0]) == 0
    assert Sampler(**greedy, repeat_penalty=1.2).sample(logits, [0]) == 1
    assert Sampler(**greedy, presence_penalty=0.2).sample(logits, [0]) == 1
    assert Sampler(**greedy, frequency_penalty=0.06).sample(logits, [0]) == 0
    assert Sampler(**greedy, frequency_penalty=0.06).sample(logits, [0, 0]) == 1
    assert Sampler(**greedy, repeat_penalty=1.2, penalty_last_n=2).sample(logits, [0, 2, 2]) == 0
    assert Sampler(**greedy, repeat_penalty=1.2, penalty_last_n=-1).sample(logits, [0, 2, 2]) == 1
    assert Sampler(**greedy, repeat_penalty=3.0).sample(np.array([-1.0, -2.0], np.float32), [0]) == 1  # negative logits are multiplied


def test_seeds_decide() -> None:
    logits = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    first = [Sampler(seed=5).sample(logits, ()) for _ in range(3)]
    assert len(set(first)) == 1
    sampler = Sampler(**PLAIN, seed=5)
    run = [sampler.sample(logits, ()) for _ in range(20)]
    assert len(set(run)) > 1
    sampler.reseed(5)
    assert [sampler.sample(logits, ()) for _ in range(20)] == run


@pytest.mark.parametrize("n", [1, 63, 64, 65, 5000, 131072])
def test_large_vocabularies_keep_the_exact_set(n: int) -> None:
    """Partial selection must keep what a full sort keeps."""
    logits = (3 * np.random.default_rng(n).standard_normal(n)).astype(np.float32)
    order = np.argsort(-logits, kind="stable")
    p = np.exp(logits[order].astype(np.float64) - logits.max())
    p /= p.sum()
    nucleus = set(order[: int(np.searchsorted(np.cumsum(p), 0.5)) + 1].tolist())
    assert set(frequencies(Sampler(**{**PLAIN, "top_p": 0.5}), logits, 300)) <= nucleus
    assert set(frequencies(Sampler(**{**PLAIN, "top_k": 5}), logits, 300)) <= set(order[:5].tolist())
    assert Sampler(temperature=0.0).sample(logits, ()) == order[0]


def test_unusual_logits() -> None:
    logits = np.array([np.nan, -np.inf, 1.0, np.nan], np.float32)
    for options in ({"temperature": 0.0}, {}, PLAIN, {"top_k": 2}):
        assert Sampler(**options).sample(logits, ()) == 2
        with pytest.raises(ValueError, match="none of 3"):
            Sampler(**options).sample(np.array([np.nan, -np.inf, -np.inf], np.float32), ())
    assert Sampler(**PLAIN).sample(np.array([0.0, np.inf], np.float32), ()) == 1
    with pytest.raises(ValueError, match="none of 0"):
        Sampler().sample(np.array([], np.float32), ())


@pytest.mark.parametrize("option", ["top_p", "min_p", "typical_p", "repeat_penalty", "temperature", "presence_penalty"])
def test_bad_sampler_options_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=option):
        Sampler(**{option: float("nan")})
