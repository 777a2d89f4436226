"""The allocation of widths: optimal on small cases, never above its budget."""

import itertools

import numpy as np
import pytest

from turboquant_native.calibrate.allocation import Choice, allocate
from turboquant_native.common.errors import ConvertError

WIDTHS = (1, 2, 3, 4, 6, 8)


def random_choices(seed: int, matrices: int, largest: int) -> dict[str, list[Choice]]:
    rng = np.random.default_rng(seed)
    choices = {}
    for i in range(matrices):
        weights, loss = int(rng.integers(8, largest)), float(rng.lognormal())
        choices[f"m{i}"] = [Choice(bits, bits * weights, loss * 4.0**-bits) for bits in WIDTHS]
    return choices


def cost(choices: dict[str, list[Choice]], chosen: dict[str, Choice]) -> tuple[int, float]:
    assert chosen.keys() == choices.keys() and all(chosen[name] in choices[name] for name in choices)
    return sum(c.bytes for c in chosen.values()), sum(c.loss for c in chosen.values())


@pytest.mark.parametrize("seed", range(6))
def test_equals_exhaustive_search(seed: int) -> None:
    choices = random_choices(seed, 5, 300)
    low, high = (sum(f(c.bytes for c in options) for options in choices.values()) for f in (min, max))
    for budget in np.linspace(low, high, 7).astype(int):
        fitting = (sum(c.loss for c in combo) for combo in itertools.product(*choices.values()) if sum(c.bytes for c in combo) <= budget)
        used, loss = cost(choices, allocate(choices, int(budget)))
        assert used <= budget
        assert loss == pytest.approx(min(fitting), rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_large_budgets_are_kept_and_used(seed: int) -> None:
    choices = random_choices(seed, 60, 5_000_000)
    low = sum(options[0].bytes for options in choices.values())
    step = min(c.bytes for options in choices.values() for c in options)
    for factor in (1.0, 1.37, 2.9, 4.2):
        used, _ = cost(choices, allocate(choices, int(low * factor)))
        assert low <= used <= int(low * factor)
        assert used > low * factor - 2 * step * len(choices) or factor == 1.0


def test_more_bytes_never_cost_loss() -> None:
    choices = random_choices(9, 12, 1000)
    low = sum(options[0].bytes for options in choices.values())
    losses = [cost(choices, allocate(choices, low + extra))[1] for extra in range(0, 12_000, 500)]
    assert losses == sorted(losses, reverse=True)


def test_too_small_a_budget_names_what_is_needed() -> None:
    choices = random_choices(1, 3, 100)
    low = sum(options[0].bytes for options in choices.values())
    with pytest.raises(ConvertError, match=str(low)):
        allocate(choices, low - 1)


def test_outliers_are_taken_where_they_pay() -> None:
    heavy = [Choice(2, 200, 1.0), Choice(2, 210, 0.1, 0.001), Choice(3, 300, 0.26)]
    plain = [Choice(2, 200, 1.0), Choice(2, 210, 0.99, 0.001), Choice(3, 300, 0.26)]
    chosen = allocate({"heavy": heavy, "plain": plain}, 510)
    assert chosen["heavy"].outliers == 0.001 and chosen["plain"].bits == 3
