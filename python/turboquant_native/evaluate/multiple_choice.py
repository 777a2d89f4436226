"""Multiple-choice tests: the model chooses the ending that it finds most likely, in total or per character."""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.engine import Engine
from . import jsonl
from .evaluation import mean_and_error
from .loglikelihood import Likelihoods


@dataclass(frozen=True)
class Question:
    """A context, its possible endings and the index of the right one."""

    context: str
    endings: Sequence[str]
    label: int

    def __post_init__(self) -> None:
        if not self.endings or any(not ending for ending in self.endings):
            raise ValueError("a question needs endings, none of them empty")
        if not 0 <= self.label < len(self.endings):
            raise ValueError(f"label {self.label} names none of {len(self.endings)} endings")


@dataclass(frozen=True)
class MultipleChoice:
    """Share of right answers by total and by per-character log-likelihood, with standard errors."""

    questions: int
    accuracy: float
    accuracy_se: float
    accuracy_norm: float
    accuracy_norm_se: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def read(path: str | Path, limit: int | None = None) -> list[Question]:
    """Questions of a JSONL file in HellaSwag's form (ctx, endings, label) or ARC's (question, choices, answerKey).

    ValueError names the line that has neither form.
    """
    return jsonl.read(path, parse, "a question in HellaSwag's or ARC's form", limit)


def parse(entry: dict[str, Any]) -> Question:
    """One question from its JSON form, worded as lm-evaluation-harness words it."""
    if "endings" in entry:
        label = entry.get("activity_label")
        context = f"{label}: {entry['ctx']}" if label else entry["ctx"]
        return Question(_clean(context), [" " + _clean(ending) for ending in entry["endings"]], int(entry["label"]))
    question, choices = entry["question"], entry.get("choices")
    if isinstance(question, dict):
        question, choices = question["stem"], question["choices"]
    if isinstance(choices, dict):
        texts, labels = choices["text"], choices["label"]
    else:
        texts, labels = [choice["text"] for choice in choices or ()], [choice["label"] for choice in choices or ()]
    return Question(f"Question: {question}\nAnswer:", [" " + text for text in texts], list(labels).index(entry["answerKey"]))


def _clean(text: str) -> str:
    """WikiHow's markers are removed from HellaSwag's texts."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ").strip()


def evaluate(model: Any, questions: Sequence[Question], n_ctx: int = 2048, progress: Callable[[int], None] | None = None) -> MultipleChoice:
    """Answers questions with a `_core.Model`; of questions longer than n_ctx tokens the beginning is dropped.

    progress: called with the number of questions answered.
    """
    engine = Engine(model, n_ctx=n_ctx)
    try:
        likelihoods = Likelihoods(engine)
        answers = []
        for question in questions:
            answers.append(_answer(likelihoods, question))
            if progress is not None:
                progress(len(answers))
        right = np.array(answers, float)
    finally:
        engine.close()
    accuracy, error = mean_and_error(right[:, 0])
    normalized, normalized_error = mean_and_error(right[:, 1])
    return MultipleChoice(len(questions), accuracy, error, normalized, normalized_error)


def _answer(likelihoods: Likelihoods, question: Question) -> tuple[bool, bool]:
    pairs = [likelihoods.encode_pair(question.context, ending) for ending in question.endings]
    totals = np.array([likelihoods.score(context, ending)[0] for context, ending in pairs])
    lengths = np.array([len(ending) for ending in question.endings])
    return int(totals.argmax()) == question.label, int((totals / lengths).argmax()) == question.label
