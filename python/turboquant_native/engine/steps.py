"""Process reward models: how a solution's steps are written for them, where they are read, and what makes a score of what is read."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from . import prefixes
from .engine import Engine
from .head import ACTIVATIONS, Head, softmax
from .tokens import Tokens, check_tokens
from .vocabulary import Vocabulary
from .work import Evaluation, Rows

STEPS_KEY = "turboquant.steps"  # a convention as JSON
CHAT, TURNS = "chat", "turns"
MAX_TEXT = 65535  # characters


@dataclass(frozen=True)
class StepConvention:
    """How a model was trained to read steps.

    Attributes:
        separator: what stands behind each step; the step's score is read at its last token. With "turns": what stands between the
            problem and the first step.
        prompt: "chat": the problem is a user's message in the model's chat template. "turns": each step is one, the first with the problem
            before it, and the assistant answers each with the first of `tokens`; the score is read where that answer begins. Else a text
            with {prompt} in the problem's place.
        system: the system message of the chat; empty: none.
        tokens: two texts of one token each, for right and wrong: the score is the first one's share of the two's probability. Empty: the
            model's head gives the score.
        label: which of the head's scores says that a step is right; -1: the last.
        activation: what makes that score a number from 0 to 1: "softmax", "sigmoid" or "none"; empty: softmax of several scores,
            sigmoid of a single one.
        whole: the text is cut into tokens as a whole, and the separator's last token looked for in it; otherwise prompt, steps and
            separators are cut each by itself.
    """

    separator: str
    prompt: str = CHAT
    system: str = ""
    tokens: tuple[str, ...] = ()
    label: int = -1
    activation: str = ""
    whole: bool = False

    def __post_init__(self) -> None:
        for name in ("separator", "prompt", "system", "activation"):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value) > MAX_TEXT:
                raise _refused(name, value, f"a text of up to {MAX_TEXT} characters")
        if not self.separator:
            raise _refused("separator", self.separator, "a text behind each step")
        if self.prompt not in (CHAT, TURNS) and self.prompt.count("{prompt}") != 1:
            raise _refused("prompt", self.prompt, "'chat', 'turns', or a text with one {prompt}")
        pair = isinstance(self.tokens, tuple) and len(self.tokens) in (0, 2) and all(isinstance(t, str) and t for t in self.tokens)
        if not pair or len(set(self.tokens)) != len(self.tokens):
            raise _refused("tokens", self.tokens, "two different texts, for right and wrong")
        if isinstance(self.label, bool) or not isinstance(self.label, int) or self.label < -1:
            raise _refused("label", self.label, "a score's number, or -1 for the last")
        if self.activation and self.activation not in ACTIVATIONS:
            raise _refused("activation", self.activation, f"one of {', '.join(ACTIVATIONS)}")
        if not isinstance(self.whole, bool):
            raise _refused("whole", self.whole, "true or false")
        if self.prompt == TURNS and not self.tokens:
            raise _refused("tokens", self.tokens, "two texts, where steps are turns")
        if self.prompt == TURNS and self.whole:
            raise _refused("whole", self.whole, "false where steps are turns")

    @classmethod
    def of(cls, given: "StepConvention | Mapping[str, Any] | str") -> "StepConvention":
        """A convention from its fields, or from JSON; ValueError names a field and its value."""
        if isinstance(given, cls):
            return given
        if isinstance(given, str):
            try:
                given = json.loads(given)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"convention of steps: not JSON: {error}") from None
        if not isinstance(given, Mapping):
            raise _refused("itself", given, "an object")
        names = [entry.name for entry in fields(cls)]
        if unknown := sorted(map(str, given.keys() - set(names))):
            raise ValueError(f"convention of steps: has no field {unknown[0][:60]!r} (fields: {', '.join(names)})")
        if "separator" not in given:
            raise ValueError("convention of steps: has no field 'separator'")
        values = dict(given)
        if isinstance(values.get("tokens"), list):
            values["tokens"] = tuple(values["tokens"])
        return cls(**values)

    def to_json(self) -> str:
        """As a file holds it: without fields that have their default."""
        return json.dumps({f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}, ensure_ascii=False)


def _refused(field: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"convention of steps: {field} is {str(value)[:60]!r}, expected {expected}")


def stored_convention(metadata: Mapping[str, Any]) -> StepConvention | None:
    """The convention of a model file; None where it has none. ValueError names the key where it makes no sense."""
    if (stored := metadata.get(STEPS_KEY)) is None:
        return None
    try:
        return StepConvention.of(stored)
    except ValueError as error:
        raise ValueError(f"key {STEPS_KEY}: {error}") from None


@dataclass(frozen=True)
class Solution:
    """A problem and its steps as tokens, and the position at which each step's score is read."""

    tokens: Tokens
    positions: list[int]


def solution_of(vocabulary: Vocabulary, convention: StepConvention, opening: str, steps: Sequence[str]) -> Solution:
    """opening: what stands before the steps, the problem in it. ValueError where the separator's tokens cannot be told."""
    add_bos = convention.prompt != CHAT  # a chat template writes it
    if convention.whole:
        separator = vocabulary.encode(convention.separator, special=True)[-1:]
        text = opening + "".join(step + convention.separator for step in steps)
        ids = vocabulary.encode(text, add_bos, special=True)
        positions = [i for i, token in enumerate(ids) if [token] == separator]
        if len(positions) != len(steps):
            raise ValueError(f"the separator {convention.separator!r} stands {len(positions)} times in the text of {len(steps)} steps")
    else:
        ids, positions = vocabulary.encode(opening, add_bos, special=True), []
        separator = vocabulary.encode(convention.separator, special=True)
        if not separator:
            raise ValueError(f"the separator {convention.separator!r} has no tokens")
        for step in steps:
            ids += vocabulary.encode(step) + separator
            positions.append(len(ids) - 1)
    return Solution(check_tokens(ids, vocabulary.n_vocab), positions)


def messages_of_turns(convention: StepConvention, n_steps: int) -> list[dict[str, str]]:
    """The conversation in which each step is a turn, with marks in place of all texts but the system's."""
    messages = [{"role": "system", "content": convention.system}] if convention.system else []
    for step in range(n_steps):
        messages.append({"role": "user", "content": _mark(2 * step)})
        messages.append({"role": "assistant", "content": _mark(2 * step + 1)})
    return messages


def _mark(number: int) -> str:
    """Of characters that Unicode leaves to private use."""
    return f"\ue000{number}\ue001"


def solution_of_turns(vocabulary: Vocabulary, convention: StepConvention, text: str, problem: str, steps: Sequence[str]) -> Solution:
    """text: `messages_of_turns` as the chat template writes them. Texts go in without the white space around them, and what looks like a
    control token in them is plain text. ValueError where the template does not write each turn once, in order."""
    parts = re.split("\ue000(\\d+)\ue001", text)
    if [int(number) for number in parts[1::2]] != list(range(2 * len(steps))):
        raise ValueError("the chat template does not write each turn of a conversation once, so steps cannot be turns")
    right, ids, positions = one_token(vocabulary, convention.tokens[0]), [], []
    for i, step in enumerate(steps):
        turn = problem.strip() + convention.separator + step.strip() if i == 0 else step.strip()
        ids += vocabulary.encode(parts[4 * i], special=True) + vocabulary.encode(turn) + vocabulary.encode(parts[4 * i + 2], special=True)
        positions.append(len(ids) - 1)
        ids.append(right)
    return Solution(check_tokens(ids, vocabulary.n_vocab) if steps else np.zeros(0, np.int32), positions)


def step_scores(engine: Engine, convention: StepConvention, solutions: Sequence[Solution]) -> list[list[float]]:
    """A score for each step of each solution, all solutions together; what they share as a prefix is evaluated once."""
    if convention.tokens:
        return [_token_scores(engine, convention.tokens, solution) for solution in solutions]
    head = engine.head
    if head is None:
        raise ValueError("the model has no head that scores; a convention with `tokens` reads two tokens' probabilities instead")
    works = [_reading(solution) for solution in solutions]
    # up to the first position that is read: from there on a slot that holds the tokens is of no use
    prefixes.share(engine, [work.tokens[: work.first_row] for work in works if work is not None])
    handles = [engine.scheduler.submit(work) if work is not None else None for work in works]
    try:
        for handle in handles:
            if handle is not None:
                handle.wait()
    finally:
        for handle in handles:
            if handle is not None:
                handle.cancel()
    return [
        [] if work is None else _head_scores(head, convention, work.rows[[p - solution.positions[0] for p in solution.positions]])
        for work, solution in zip(works, solutions, strict=True)
    ]


def _reading(solution: Solution) -> Evaluation | None:
    """Hidden states from the first position that is read to the last."""
    if not solution.positions:
        return None
    first, last = solution.positions[0], solution.positions[-1]
    return Evaluation(solution.tokens[: last + 1], last + 1 - first, hidden=True)


def _head_scores(head: Head, convention: StepConvention, hidden: Rows) -> list[float]:
    scores = head(hidden)
    n_labels = scores.shape[1]
    if convention.label >= n_labels:
        raise _refused("label", convention.label, f"less than the {n_labels} scores of the model's head")
    activation = convention.activation or ("softmax" if n_labels > 1 else "sigmoid")
    return [float(score) for score in ACTIVATIONS[activation](scores)[:, convention.label]]


def _token_scores(engine: Engine, names: Sequence[str], solution: Solution) -> list[float]:
    pair = [one_token(engine.vocabulary, name) for name in names]
    return [float(softmax(engine.evaluate(solution.tokens[: p + 1])[-1][pair])[0]) for p in solution.positions]


def one_token(vocabulary: Vocabulary, text: str) -> int:
    """The token of a text that is one, or of such a name; ValueError for others."""
    if (token := vocabulary.id_of(text)) >= 0:
        return token
    ids = vocabulary.encode(text, special=True)
    if len(ids) != 1:
        raise ValueError(f"{text!r} is {len(ids)} tokens of this model, expected one")
    return ids[0]


def first_errors(scores: Sequence[Sequence[float]], threshold: float) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The first step of each solution whose score is below the threshold, -1 where there is none; (n,) int64."""
    found = [next((i for i, score in enumerate(steps) if not score >= threshold), -1) for steps in scores]
    return np.asarray(found, np.int64)
