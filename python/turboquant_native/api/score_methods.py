"""The part of `Llama` that scores: classifiers, reward models of answers and of steps, rerankers, and search with them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.steps import StepConvention
from . import scores, step_search
from .session import Session

Convention = StepConvention | Mapping[str, Any] | str
Scored = NDArray[np.float32]


class ScoreMethods:
    """Methods of `Llama` that give numbers for texts."""

    _session: Session

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of what `score` gives, as the model was trained with; empty for a model without a head that scores."""
        head = self._session.engine.head
        return head.labels if head is not None else ()

    def score(self, input: str | Sequence[Any], *, activation: str = "none") -> Scored | list[Scored]:
        """What the model's head says of texts: a classifier's logits, a reward.

        Args:
            input: a text, or a conversation ([{"role", "content"}, ...]), which the chat template writes; or a list of texts, of
                conversations or of lists of tokens, which are evaluated together.
            activation: of the scores: "none", "softmax" over the labels, or "sigmoid".

        Returns (labels,) float32, or (tokens, labels) where the head scores every token; a list of these for a list.
        Raises ValueError for a model without a head, and for what does not fit n_ctx.
        """
        if isinstance(input, str) or (len(input) > 0 and isinstance(input[0], Mapping)):
            return scores.score(self._session, [input], activation)[0]
        return scores.score(self._session, input, activation)

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        template: str | None = None,
        tokens: Sequence[str] | None = None,
        instruction: str | None = None,
        model: str | None = None,
    ) -> dict[str, Any]:
        """Orders documents by what they say about a query.

        Args:
            top_n: the best so many; None: all.
            template: how the two make one text, with {query}, {document} and, where it is used, {instruction}; None: the file's
                (`tokenizer.chat_template.rerank`), else as the tokenizer joins a pair.
            tokens: two texts of one token each, for relevant and for not: their probabilities at the end decide, as in models that
                answer yes or no; None: as the file says (`turboquant.rerank.tokens`), else the model's head decides: the sigmoid of a
                single score, or of several the softmax of "yes" or of the last one.
            instruction: None: that of web search.
            model: name to report.

        Returns {"object": "list", "model", "results": [{"index", "relevance_score"}] from the most relevant, "usage"}.
        Raises ValueError, TypeError for a query or documents that are no texts.
        """
        if top_n is not None and top_n < 1:
            raise ValueError(f"top_n is {top_n}, expected 1 or more")
        found, count = scores.rerank(self._session, query, documents, template, tokens, instruction)
        order = sorted(range(len(found)), key=lambda index: -found[index])[:top_n]
        results = [{"index": index, "relevance_score": found[index]} for index in order]
        usage = {"prompt_tokens": count, "total_tokens": count}
        return {"object": "list", "model": model or self._session.model_path, "results": results, "usage": usage}

    def score_steps(self, prompt: str, steps: Sequence[str], *, convention: Convention | None = None) -> list[float]:
        """How right each step of a solution is, by a process reward model; 0 to 1 unless the convention says otherwise.

        Args:
            prompt: the problem. steps: texts, without separators.
            convention: how the model was trained to read steps: a dict of `engine.steps.StepConvention`'s fields, or JSON;
                None: as the file says. {"separator": "\\n\\n"} is the least.

        Raises ValueError where there is no convention or no head, and for what does not fit n_ctx.
        """
        return self.score_solutions([(prompt, steps)], convention=convention)[0]

    def score_solutions(self, solutions: Sequence[tuple[str, Sequence[str]]], *, convention: Convention | None = None) -> list[list[float]]:
        """`score_steps` of several (prompt, steps), evaluated together; what they share as a prefix is evaluated once."""
        return scores.score_solutions(self._session, solutions, convention)

    def best_of_n(
        self,
        prompt: str | Sequence[dict[str, Any]],
        n: int,
        *,
        prm: "ScoreMethods",
        aggregate: str = "min",
        step_separator: str = "\n\n",
        problem: str | None = None,
        convention: Convention | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Draws n answers together and gives the one whose steps a process reward model likes best.

        Args:
            prompt: a text to go on from, or a conversation.
            prm: a model that scores steps; this one may be it.
            aggregate: "min", "last" or "product" of an answer's step scores.
            step_separator: text between the steps of an answer.
            problem: what the reward model is shown; None: the prompt, or the last user's message.
            convention: of the reward model, see `score_steps`.
            **options: max_tokens, temperature, seed, ... as for `create_completion`.

        Returns {"text", "steps", "step_scores", "score", "finish_reason", "candidates": all n of these, the best first}.
        """
        opening, own = step_search.opening_of(self._session, prompt, problem)
        score = lambda solutions: prm.score_solutions(solutions, convention=convention)  # noqa: E731
        return _result(step_search.best_of_n(self._session, opening, own, n, score, aggregate, step_separator, options))

    def beam_search_steps(
        self,
        prompt: str | Sequence[dict[str, Any]],
        *,
        prm: "ScoreMethods",
        beams: int = 4,
        expand: int = 4,
        max_steps: int = 32,
        max_tokens: int = 256,
        aggregate: str = "last",
        step_separator: str = "\n\n",
        problem: str | None = None,
        convention: Convention | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Searches for an answer step by step: each of the best `beams` beginnings goes on in `expand` ways; a reward model chooses.

        Args:
            max_steps: of an answer, at most. max_tokens: of a step, at most; one that needs more ends its answer there ("length").
            Otherwise as for `best_of_n`.

        Returns what `best_of_n` returns, with up to `beams` candidates.
        """
        opening, own = step_search.opening_of(self._session, prompt, problem)
        score = lambda solutions: prm.score_solutions(solutions, convention=convention)  # noqa: E731
        beam = step_search.Beam(beams, expand, max_steps, step_separator, aggregate)
        return _result(step_search.beam_search(self._session, opening, own, beam, score, {"max_tokens": max_tokens, **options}))


def _result(candidates: list[step_search.Candidate]) -> dict[str, Any]:
    return {**candidates[0].to_dict(), "candidates": [candidate.to_dict() for candidate in candidates]}
