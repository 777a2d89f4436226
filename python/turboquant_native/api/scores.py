"""Scores of texts and of pairs of texts, by a model's head or by two tokens' probabilities."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..engine import prefixes
from ..engine.head import ACTIVATIONS, Head, Scores, sigmoid, softmax
from ..engine.steps import (
    TURNS,
    Solution,
    StepConvention,
    messages_of_turns,
    one_token,
    solution_of,
    solution_of_turns,
    step_scores,
    stored_convention,
)
from ..engine.tokens import Tokens, check_tokens
from ..engine.work import Evaluation, Rows
from .chat_prompt import prompt_of
from .session import Session

RERANK_TEMPLATE_KEY = "tokenizer.chat_template.rerank"  # llama.cpp's
RERANK_TOKENS_KEY = "turboquant.rerank.tokens"
_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
_FIELD = re.compile(r"\{(query|document|instruction)\}")


def head_of(session: Session) -> Head:
    """The model's head; ValueError for a model that has none."""
    if session.engine.head is None:
        raise ValueError("the model has no head that scores (a classifier's, reward model's or reranker's)")
    return session.engine.head


def tokens_of(session: Session, given: Any) -> Tokens:
    """Tokens of what is to be scored: a text, tokens, or a conversation, which the chat template writes without opening another turn."""
    if isinstance(given, str):
        session.vocabulary.check_length(given, session.n_ctx())
        ids: Sequence[int] = session.vocabulary.encode_document(given)
    elif isinstance(given, Sequence) and given and isinstance(given[0], Mapping):
        ids = prompt_of(session, given, add_generation_prompt=False).tokens
    else:
        ids = given
    tokens = check_tokens(ids, session.n_vocab())
    if not 0 < len(tokens) <= session.n_ctx():
        raise ValueError(f"cannot score {len(tokens)} tokens; the context holds 1 to {session.n_ctx()} (n_ctx)")
    return tokens


def hidden_of(session: Session, sequences: Sequence[Tokens], all_rows: bool) -> list[Rows]:
    """Hidden states of all sequences together: of each one's tokens, or of its last one."""
    works = [Evaluation(tokens, len(tokens) if all_rows else 1, hidden=True) for tokens in sequences]
    return [work.rows for work in _run(session, works)]


def _run(session: Session, works: list[Evaluation]) -> list[Evaluation]:
    prefixes.share(session.engine, [work.tokens[: work.first_row] for work in works])
    handles = [session.engine.scheduler.submit(work) for work in works]
    try:
        for handle in handles:
            handle.wait()
    finally:
        for handle in handles:
            handle.cancel()
    return works


def score(session: Session, inputs: Sequence[Any], activation: str) -> list[Scores]:
    """Of each input (labels,) scores, or (tokens, labels) where the head scores tokens."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
    head = head_of(session)
    per_token = head.kind == "token"
    hidden = hidden_of(session, [tokens_of(session, given) for given in inputs], per_token)
    found = [ACTIVATIONS[activation](head(rows)) for rows in hidden]
    return found if per_token else [scores[0] for scores in found]


# --- pairs -------------------------------------------------------------------------------------------------------------------------------


def is_reranker(session: Session) -> bool:
    """Whether the file says how pairs of texts are scored: it has a head for whole texts, or names two tokens."""
    head = session.engine.head
    return _stored_tokens(session) is not None or (head is not None and head.kind != "token")


def rerank(
    session: Session,
    query: str,
    documents: Sequence[str],
    template: str | None = None,
    tokens: Sequence[str] | None = None,
    instruction: str | None = None,
) -> tuple[list[float], int]:
    """(relevance of each document from 0 to 1, tokens evaluated)."""
    for name, texts in (("query", [query]), ("documents", documents)):
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"{name} must be {'a text' if name == 'query' else 'a list of texts'}")
    template = template if template is not None else _stored_template(session)
    names = tokens if tokens is not None else _stored_tokens(session)
    values = {"query": query, "instruction": _INSTRUCTION if instruction is None else instruction}
    pairs = [check_tokens(_pair(session, template, {**values, "document": text}), session.n_vocab()) for text in documents]
    for index, pair in enumerate(pairs):
        if len(pair) > session.n_ctx():
            raise ValueError(f"query and document {index} have {len(pair)} tokens; the context holds {session.n_ctx()} (n_ctx)")
    return (_by_tokens(session, pairs, names) if names else _by_head(session, pairs)), sum(map(len, pairs))


def _pair(session: Session, template: str | None, values: dict[str, str]) -> list[int]:
    if template is None:
        return session.vocabulary.encode_pair(values["query"], values["document"])
    missing = {"{query}", "{document}"} - set(re.findall(r"\{query\}|\{document\}", template))
    if missing:
        raise ValueError(f"the template has no {min(missing)}: {template[:60]!r}")
    text = _FIELD.sub(lambda field: values[field[1]], template)  # in one go: a query may hold "{document}"
    session.vocabulary.check_length(text, session.n_ctx())
    return session.vocabulary.encode(text, add_bos=True, special=True)


def _by_tokens(session: Session, pairs: list[Tokens], names: Sequence[str]) -> list[float]:
    if isinstance(names, str) or len(names) != 2:
        raise ValueError(f"tokens is {names!r}, expected two texts: for relevant and for not")
    ids = [one_token(session.vocabulary, name) for name in names]
    works = _run(session, [Evaluation(pair) for pair in pairs])
    return [float(softmax(work.rows[-1][ids])[0]) for work in works]


def _by_head(session: Session, pairs: list[Tokens]) -> list[float]:
    head = head_of(session)
    scores = [head(rows)[0] for rows in hidden_of(session, pairs, all_rows=False)]
    if len(head.labels) == 1:
        return [float(sigmoid(found)[0]) for found in scores]
    relevant = next((i for i, label in enumerate(head.labels) if label.lower() == "yes"), len(head.labels) - 1)
    return [float(softmax(found)[relevant]) for found in scores]


def _stored_template(session: Session) -> str | None:
    template = session.metadata.get(RERANK_TEMPLATE_KEY)
    if template is not None and not isinstance(template, str):
        raise ValueError(f"key {RERANK_TEMPLATE_KEY} is {str(template)[:60]!r}, expected a text")
    return template


def _stored_tokens(session: Session) -> Sequence[str] | None:
    names = session.metadata.get(RERANK_TOKENS_KEY)
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"key {RERANK_TOKENS_KEY} is {str(names)[:60]!r}, expected two texts")
    return names


def rerank_keys(given: str) -> dict[str, Any]:
    """Keys of a file from JSON {"template": ..., "tokens": [relevant, not]}; ValueError names the field."""
    try:
        values = json.loads(given)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(values, dict) or (unknown := sorted(values.keys() - {"template", "tokens"})):
        raise ValueError(f"has the field {unknown[0]!r}" if isinstance(values, dict) else "not an object")
    template, names = values.get("template"), values.get("tokens")
    if template is not None and not (isinstance(template, str) and "{query}" in template and "{document}" in template):
        raise ValueError(f"template is {str(template)[:60]!r}, expected a text with {{query}} and {{document}}")
    if names is not None and not (isinstance(names, list) and len(names) == 2 and all(isinstance(name, str) and name for name in names)):
        raise ValueError(f"tokens is {str(names)[:60]!r}, expected two texts: for relevant and for not")
    return {key: value for key, value in ((RERANK_TEMPLATE_KEY, template), (RERANK_TOKENS_KEY, names)) if value is not None}


# --- steps -------------------------------------------------------------------------------------------------------------------------------


def convention_of(session: Session, given: StepConvention | Mapping[str, Any] | str | None) -> StepConvention:
    """The given convention, else the file's; ValueError where there is none."""
    found = StepConvention.of(given) if given is not None else stored_convention(session.metadata)
    if found is None:
        raise ValueError("the model file does not say how it reads steps; give a convention, such as {'separator': '\\n\\n'}")
    return found


def score_solutions(
    session: Session, solutions: Sequence[tuple[str, Sequence[str]]], given: StepConvention | Mapping[str, Any] | str | None
) -> list[list[float]]:
    """A score for each step of each (problem, steps)."""
    convention = convention_of(session, given)
    return step_scores(session.engine, convention, [_solution(session, convention, *solution) for solution in solutions])


def _solution(session: Session, convention: StepConvention, problem: str, steps: Sequence[str]) -> Solution:
    if isinstance(steps, str) or not all(isinstance(step, str) for step in steps):
        raise TypeError(f"steps must be a list of texts, got {steps!r}")
    if convention.prompt == TURNS:
        text = prompt_of(session, messages_of_turns(convention, len(steps)), add_generation_prompt=False).text if steps else ""
        found = solution_of_turns(session.vocabulary, convention, text, problem, steps)
    else:
        found = solution_of(session.vocabulary, convention, _opening(session, convention, problem), steps)
    if len(found.tokens) > session.n_ctx():
        raise ValueError(f"the problem and its steps have {len(found.tokens)} tokens; the context holds {session.n_ctx()} (n_ctx)")
    return found


def _opening(session: Session, convention: StepConvention, problem: str) -> str:
    if convention.prompt != "chat":
        before, _, after = convention.prompt.partition("{prompt}")
        return before + problem + after
    system = [{"role": "system", "content": convention.system}] if convention.system else []
    return prompt_of(session, [*system, {"role": "user", "content": problem}]).text


def aggregate(scores: Sequence[float], how: str) -> float:
    """One number of a solution's steps: "min", "last" or "product"; without steps 0."""
    if how not in AGGREGATES:
        raise ValueError(f"aggregate is {how!r}, expected one of {', '.join(AGGREGATES)}")
    return float(AGGREGATES[how](np.asarray(scores, np.float64))) if len(scores) else 0.0


AGGREGATES: dict[str, Callable[[Any], Any]] = {"min": np.min, "last": lambda scores: scores[-1], "product": np.prod}
