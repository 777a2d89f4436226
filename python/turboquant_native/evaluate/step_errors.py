"""How well a process reward model finds the first wrong step of solutions: ProcessBench's measure."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..engine.steps import first_errors
from . import jsonl

GROUP = 8  # solutions scored together


@dataclass(frozen=True)
class Record:
    """A problem, the steps of a solution, and the first wrong one's number, -1: all are right."""

    problem: str
    steps: tuple[str, ...]
    label: int

    def __post_init__(self) -> None:
        if not isinstance(self.problem, str) or not self.steps or not all(isinstance(step, str) for step in self.steps):
            raise ValueError("a record needs a problem, and steps that are texts")
        if isinstance(self.label, bool) or not isinstance(self.label, int) or not -1 <= self.label < len(self.steps):
            raise ValueError(f"label {self.label!r} names none of {len(self.steps)} steps, and is not -1")


@dataclass(frozen=True)
class StepErrors:
    """Shares from 0 to 1.

    Attributes:
        solutions: how many. with_errors: those that have a wrong step.
        accuracy_errors: of the latter, those whose first wrong step was found.
        accuracy_correct: of the others, those in which no step was called wrong.
        f1: the harmonic mean of the two; 0 where there are solutions of one kind alone.
        threshold: steps below it were called wrong.
    """

    solutions: int
    with_errors: int
    accuracy_errors: float
    accuracy_correct: float
    f1: float
    threshold: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def read(path: str | Path, limit: int | None = None) -> list[Record]:
    """Records of a JSONL file of objects with problem, steps and label. ValueError names the line that is none."""
    return jsonl.read(
        path,
        lambda fields: Record(fields["problem"], tuple(fields["steps"]), fields["label"]),
        "a record of problem, steps and label",
        limit,
    )


def evaluate(
    records: Sequence[Record],
    score: Callable[[list[tuple[str, tuple[str, ...]]]], list[list[float]]],
    threshold: float = 0.5,
    progress: Callable[[int], None] = lambda done: None,
) -> StepErrors:
    """Scores all solutions and compares the first step below the threshold with the label."""
    scores: list[list[float]] = []
    for first in range(0, len(records), GROUP):
        scores += score([(record.problem, record.steps) for record in records[first : first + GROUP]])
        progress(len(scores))
    found = first_errors(scores, threshold).tolist()
    right = [guess == record.label for guess, record in zip(found, records, strict=True)]
    of_errors = [hit for hit, record in zip(right, records, strict=True) if record.label >= 0]
    of_correct = [hit for hit, record in zip(right, records, strict=True) if record.label < 0]
    errors, correct = (sum(hits) / len(hits) if hits else 0.0 for hits in (of_errors, of_correct))
    f1 = 2 * errors * correct / (errors + correct) if errors + correct else 0.0
    return StepErrors(len(records), len(of_errors), errors, correct, f1, threshold)
