"""Search with a process reward model, and ProcessBench's measure."""

import json
from pathlib import Path

import numpy as np
import pytest

from turboquant_native import Llama
from turboquant_native.api.scores import aggregate
from turboquant_native.commands import cli
from turboquant_native.evaluate import step_errors

PROMPT = "The quick brown fox"


class Judge:
    """In place of a process reward model: scores each step by a function, and keeps what it was shown."""

    def __init__(self, score):
        self.score, self.seen = score, []

    def score_solutions(self, solutions, convention=None):
        self.seen += solutions
        return [[self.score(step) for step in steps] for _, steps in solutions]


def vowels(step: str) -> float:
    return sum(step.count(letter) for letter in "aeiou") / (len(step) + 1)


def test_aggregates():
    assert [aggregate([0.5, 0.2, 0.4], how) for how in ("min", "last", "product")] == pytest.approx([0.2, 0.4, 0.04])
    assert aggregate([], "min") == 0
    with pytest.raises(ValueError, match="aggregate is 'mean', expected one of min, last, product"):
        aggregate([1.0], "mean")


@pytest.mark.parametrize("how", ["min", "last", "product"])
def test_the_best_of_n(llm: Llama, how: str):
    """Each candidate is the completion of its own seed; the prompt is evaluated once and shared."""
    judge, options = Judge(vowels), {"temperature": 1.5, "max_tokens": 20}
    llm.reset()
    before = llm.engine.scheduler.counters.prompt_tokens
    answer = llm.best_of_n(PROMPT, 5, prm=judge, aggregate=how, step_separator=" ", seed=3, **options)
    n_prompt = len(llm.tokenize(PROMPT.encode()))
    assert llm.engine.scheduler.counters.prompt_tokens - before == n_prompt + 5  # the last token for each, the others once
    texts = [llm(PROMPT, seed=3 + i, **options)["choices"][0]["text"] for i in range(5)]
    assert sorted(candidate["text"] for candidate in answer["candidates"]) == sorted(texts)
    totals = [aggregate([vowels(step) for step in text.split(" ") if step.strip()], how) for text in texts]
    assert answer["score"] == pytest.approx(max(totals)) and answer["text"] == texts[int(np.argmax(totals))]
    assert [candidate["score"] for candidate in answer["candidates"]] == sorted(totals, reverse=True)
    assert all(problem == PROMPT for problem, _ in judge.seen) and answer["finish_reason"] in ("stop", "length")
    assert answer["step_scores"] == [vowels(step) for step in answer["steps"]]


def separated(llm: Llama) -> tuple[str, str]:
    """(greedy text, a character that cuts it into several steps)."""
    text = llm(PROMPT, temperature=0.0, max_tokens=40)["choices"][0]["text"]
    counts = {character: text[1:].count(character) for character in set(text) if character.isascii() and character.isprintable()}
    return text, max(counts, key=lambda character: (counts[character], character))


def test_a_beam_of_one_is_greedy_generation(llm: Llama):
    text, separator = separated(llm)
    steps = text.split(separator)
    assert len(steps) > 3
    answer = llm.beam_search_steps(
        PROMPT, prm=Judge(vowels), beams=1, expand=1, max_steps=3, max_tokens=40, step_separator=separator, temperature=0.0
    )
    assert answer["text"] == separator.join(steps[:3]) + separator
    assert answer["finish_reason"] == "length" and answer["steps"] == [step for step in steps[:3] if step.strip()]


@pytest.mark.parametrize("how", ["min", "last"])
def test_a_beam_keeps_the_best(llm: Llama, how: str):
    _, separator = separated(llm)
    judge = Judge(vowels)
    options = {"prm": judge, "max_tokens": 12, "step_separator": separator, "aggregate": how, "temperature": 1.5, "seed": 5}
    answer = llm.beam_search_steps(PROMPT, beams=2, expand=3, max_steps=4, **options)
    again = llm.beam_search_steps(PROMPT, beams=2, expand=3, max_steps=4, **options)
    assert [c["text"] for c in answer["candidates"]] == [c["text"] for c in again["candidates"]]
    assert 1 <= len(answer["candidates"]) <= 2
    scores = [candidate["score"] for candidate in answer["candidates"]]
    assert scores == sorted(scores, reverse=True) and answer["score"] == scores[0]
    for candidate in answer["candidates"]:
        assert len(candidate["steps"]) <= 4 and candidate["score"] == pytest.approx(aggregate(candidate["step_scores"], how))
    first = [steps for _, steps in judge.seen if len(steps) == 1]
    assert len(first) > 1  # several ways were tried


def test_the_model_may_be_its_own_judge_and_conversations(llm: Llama):
    """The tokens of a conversation; the last user's message is the problem."""
    judge = Judge(vowels)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    llm.best_of_n(messages, 2, prm=judge, max_tokens=4)
    llm.best_of_n(messages, 1, prm=judge, max_tokens=4, problem="Another")
    assert [problem for problem, _ in judge.seen] == ["Why?", "Why?", "Another"]
    with pytest.raises(ValueError, match="has no user message with a text"):
        llm.best_of_n([{"role": "system", "content": "a"}], 1, prm=judge)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda llm, judge: llm.best_of_n(PROMPT, 0, prm=judge), "n is 0, expected 1 or more"),
        (lambda llm, judge: llm.best_of_n(PROMPT, 1, prm=judge, aggregate="sum"), "aggregate is 'sum'"),
        (lambda llm, judge: llm.beam_search_steps(PROMPT, prm=judge, beams=0), "beams is 0"),
        (lambda llm, judge: llm.beam_search_steps(PROMPT, prm=judge, step_separator=""), "step_separator is empty"),
        (lambda llm, judge: llm.beam_search_steps(PROMPT, prm=judge, step_separator="<|im_end|>"), "is a control token"),
        (lambda llm, judge: llm.best_of_n(PROMPT, 1, prm=llm), "does not say how it reads steps"),
    ],
)
def test_arguments_of_searches(llm: Llama, call, message: str):
    with pytest.raises(ValueError, match=message):
        call(llm, Judge(vowels))


# --- ProcessBench


def write(path: Path, records) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


def test_f1_of_first_errors(tmp_path: Path):
    """By hand: of two solutions with an error one is found, of three right ones two pass: 2 * (1/2 * 2/3) / (1/2 + 2/3) = 4/7."""
    records = [
        {"problem": "a", "steps": ["1", "0", "0"], "label": 1},
        {"problem": "b", "steps": ["1", "1"], "label": 0},
        {"problem": "c", "steps": ["1", "1"], "label": -1},
        {"problem": "d", "steps": ["1"], "label": -1},
        {"problem": "e", "steps": ["1", "0"], "label": -1},
    ]
    found = step_errors.read(write(tmp_path / "r.jsonl", records))
    progress = []
    result = step_errors.evaluate(found, Judge(float).score_solutions, progress=progress.append)
    assert (result.solutions, result.with_errors, result.accuracy_errors) == (5, 2, 0.5)
    assert result.accuracy_correct == pytest.approx(2 / 3) and result.f1 == pytest.approx(4 / 7) and progress == [5]
    assert step_errors.evaluate(found, Judge(lambda step: float("nan")).score_solutions).accuracy_correct == 0  # no number passes
    assert step_errors.evaluate(found, Judge(float).score_solutions, threshold=-1).f1 == 0
    assert len(step_errors.read(tmp_path / "r.jsonl", limit=2)) == 2


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"problem": "a", "steps": [], "label": 0}, "a record needs a problem, and steps"),
        ({"problem": 1, "steps": ["a"], "label": 0}, "a record needs a problem"),
        ({"problem": "a", "steps": ["a"], "label": 1}, "label 1 names none of 1 steps"),
        ({"problem": "a", "steps": ["a"], "label": True}, "label True"),
        ({"problem": "a", "steps": ["a"]}, "'label'"),
        ([1], "not a record"),
    ],
)
def test_records_that_are_none(record, message: str, tmp_path: Path):
    path = write(tmp_path / "r.jsonl", [{"problem": "a", "steps": ["b"], "label": -1}, record])
    with pytest.raises(ValueError, match=message) as caught:
        step_errors.read(path)
    assert f"{path}, line 2" in str(caught.value)


def test_the_command(tiny_tqn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path / "r.jsonl", [{"problem": "a", "steps": ["b", "c"], "label": -1}, {"problem": "a", "steps": ["b"], "label": 0}])
    convention = json.dumps({"separator": "\n", "prompt": "{prompt}\n", "tokens": ["!", "?"]})
    arguments = ["eval", str(tiny_tqn), "--steps", str(path), "--convention", convention, "--ctx", "128"]
    assert cli.main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["solutions"] == 2 and result["with_errors"] == 1 and 0 <= result["f1"] <= 1 and result["threshold"] == 0.5
    assert cli.main([*arguments, "--threshold", "0"]) == 0
    assert "right ones passed    100.00 %" in capsys.readouterr().out
    for wrong, message in (
        (["eval", str(tiny_tqn), "--steps", str(path)], "does not say how it reads steps"),
        (["eval", str(tiny_tqn), "--text", str(path), "--threshold", "0.1"], "--threshold goes with --steps"),
        (["eval", str(tiny_tqn), "--steps", str(path), "--multiple-choice", str(path)], "give one of"),
    ):
        assert cli.main(wrong) != 0
        assert message in capsys.readouterr().err
