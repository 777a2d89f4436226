"""Search with a process reward model: the best of several solutions, and a beam of solutions that grow step by step."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..engine import prefixes
from . import completion
from .chat_prompt import prompt_of
from .scores import aggregate
from .session import Session

# (problem, steps) pairs -> a score for each step of each.
Scorer = Callable[[Sequence[tuple[str, list[str]]]], list[list[float]]]


@dataclass(frozen=True)
class Candidate:
    """A solution, whole or in the making.

    Attributes:
        text: what was generated. steps: the same, cut. step_scores: one a step.
        score: their aggregate.
        finish_reason: "stop": the model ended it; "length": it was cut; "": it goes on.
        tokens: the sequence that it ends, with the prompt.
    """

    text: str = ""
    steps: tuple[str, ...] = ()
    step_scores: tuple[float, ...] = ()
    score: float = 0.0
    finish_reason: str = ""
    tokens: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For callers, without the tokens."""
        values = {**asdict(self), "steps": list(self.steps), "step_scores": list(self.step_scores)}
        return {name: value for name, value in values.items() if name != "tokens"}


def steps_of(text: str, separator: str) -> tuple[str, ...]:
    """A text's steps, without those that are white space alone."""
    return tuple(step for step in text.split(separator) if step.strip())


def opening_of(session: Session, prompt: str | Sequence[dict[str, Any]], problem: str | None) -> tuple[list[int], str]:
    """(tokens to generate from, the problem as a reward model is shown it) of a text or of a conversation."""
    if isinstance(prompt, str):
        return completion.prompt_tokens(session, prompt).tolist(), prompt if problem is None else problem
    if problem is None:
        contents = [message.get("content") for message in prompt if isinstance(message, dict) and message.get("role") == "user"]
        if not contents or not isinstance(contents[-1], str):
            raise ValueError("the conversation has no user message with a text: give problem, what the reward model is shown")
        problem = contents[-1]
    return prompt_of(session, prompt).tokens, problem


def best_of_n(
    session: Session, opening: list[int], problem: str, n: int, score: Scorer, how: str, separator: str, options: dict[str, Any]
) -> list[Candidate]:
    """n solutions, the best first; of equal ones the earlier."""
    aggregate([], how)
    _check_counts(n=n)
    drawn = _continue(session, [Candidate(tokens=tuple(opening))] * n, options)
    return _ranked([replace(found, steps=steps_of(found.text, separator)) for found in drawn], problem, score, how)


@dataclass(frozen=True)
class Beam:
    """How a beam search goes.

    Attributes:
        beams: solutions kept after each step. expand: ways in which each goes on.
        max_steps: of a solution, at most. separator: text that ends a step.
        aggregate: "min", "last" or "product" of a solution's step scores decides.
    """

    beams: int
    expand: int
    max_steps: int
    separator: str
    aggregate: str

    def __post_init__(self) -> None:
        aggregate([], self.aggregate)
        _check_counts(beams=self.beams, expand=self.expand, max_steps=self.max_steps)
        if not self.separator:
            raise ValueError("step_separator is empty")


def beam_search(session: Session, opening: list[int], problem: str, beam: Beam, score: Scorer, options: dict[str, Any]) -> list[Candidate]:
    """Up to `beams` solutions, the best first: with every step each unfinished one goes on in `expand` ways, and the best are kept."""
    if session.vocabulary.control_token(beam.separator) is not None:
        raise ValueError(f"step_separator {beam.separator!r} is a control token of the model, expected text")
    kept, options = [Candidate(tokens=tuple(opening))], {**options, "stop": [beam.separator]}
    for count in range(beam.max_steps):
        growing = [candidate for candidate in kept if not candidate.finish_reason]
        if not growing:
            break
        ways = beam.expand * (1 if count else beam.beams)
        seed = options.get("seed")
        seeds = {} if seed is None else {"seed": seed + count * ways * len(growing)}
        drawn = _continue(session, [candidate for candidate in growing for _ in range(ways)], {**options, **seeds}, beam.separator)
        distinct = list({found.text: found for found in reversed(drawn)}.values())[::-1]  # several ways may say the same
        finished = [candidate for candidate in kept if candidate.finish_reason]
        kept = sorted([*finished, *_ranked(distinct, problem, score, beam.aggregate)], key=lambda found: -found.score)[: beam.beams]
    return [candidate if candidate.finish_reason else replace(candidate, finish_reason="length") for candidate in kept]


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, expected 1 or more")


def _continue(session: Session, parents: Sequence[Candidate], options: dict[str, Any], separator: str = "") -> list[Candidate]:
    """Each candidate with what follows it, all together; slots share what the sequences begin with. A step that the separator ended
    leaves a candidate that can go on."""
    seed = options.get("seed")
    runs = []
    for index, parent in enumerate(parents):
        own = {**options, "seed": None if seed is None else seed + index, "penalty_last_n": session.penalty_last_n}
        runs.append(completion.Completion(session, completion.request(parent.tokens, **own)))
    prefixes.share(session.engine, [run.prompt for run in runs])
    for run in runs:
        run.submit()
    try:
        texts = [run.finish().text for run in runs]
    finally:
        for run in runs:
            if run.handle is not None:
                run.handle.cancel()
    return [_grown(session, *found, separator) for found in zip(parents, runs, texts, strict=True)]


def _grown(session: Session, parent: Candidate, run: completion.Completion, text: str, separator: str) -> Candidate:
    goes_on = bool(separator) and run.generation.stopped_by == separator
    new = text + separator if goes_on else text
    drawn = run.generation.history[len(parent.tokens) :].tolist()
    if goes_on and not session.vocabulary.decode(drawn, previous=parent.tokens).endswith(
        separator.encode()
    ):  # a token goes beyond the separator
        drawn = session.vocabulary.encode(new)
    tokens = (*parent.tokens, *drawn)
    reason = "" if goes_on and len(tokens) < session.n_ctx() else "length" if goes_on else run.generation.finish_reason or "stop"
    steps = (*parent.steps, *([text] if text.strip() else []))
    return Candidate(parent.text + new, steps, finish_reason=reason, tokens=tokens)


def _ranked(candidates: list[Candidate], problem: str, score: Scorer, how: str) -> list[Candidate]:
    scores = score([(problem, list(candidate.steps)) for candidate in candidates])
    found = zip(candidates, scores, strict=True)
    scored = [replace(candidate, step_scores=tuple(steps), score=aggregate(steps, how)) for candidate, steps in found]
    return sorted(scored, key=lambda candidate: -candidate.score)
