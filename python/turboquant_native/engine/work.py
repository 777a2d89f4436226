"""What a slot can be asked to do. The scheduler knows only this much of it: which tokens must be in the cache, of which positions logits
are wanted, and what to do with them."""

import time
from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .generation import Chunk, Generation, TokenLogprob, token_logprob
from .sampling import Best, Logits
from .tokens import Tokens

DraftModel = Callable[[Tokens], Tokens]
Rows = NDArray[np.float32]  # (positions, n_vocab) logits or (positions, n_embd) hidden states


class Work(Protocol):
    """A request as the scheduler sees it.

    Attributes:
        tokens: the whole sequence as it must stand in the cache now; it may grow, and its end may change, whenever rows were taken.
        first_row: from this position on rows are wanted; len(tokens): none any more.
        hidden: rows are hidden states after the output norm, in place of logits.
        only_best: a position's best tokens suffice: `take_best` in place of `take`.
        done: nothing is left to do.
    """

    tokens: Tokens
    first_row: int
    hidden: bool

    @property
    def only_best(self) -> bool: ...
    @property
    def done(self) -> bool: ...
    def take(self, rows: Rows, emit: Callable[[Chunk], None]) -> None:
        """Rows of the positions from first_row on, as many as one pass gave; moves first_row on. Text that is ready goes to `emit`."""

    def take_best(self, best: Best, emit: Callable[[Chunk], None]) -> None:
        """The best tokens of the last position."""


class Evaluation:
    """Rows of the last `rows` positions of a sequence: logits, or hidden states."""

    only_best = False

    def __init__(self, tokens: Tokens, rows: int = 1, hidden: bool = False) -> None:
        if not 0 <= rows <= len(tokens):
            raise ValueError(f"cannot give logits of {rows} positions of {len(tokens)} tokens")
        self.tokens, self.first_row, self.hidden = tokens, len(tokens) - rows, hidden
        self._parts: list[Rows] = []

    @property
    def done(self) -> bool:
        return bool(self._parts) and self.first_row == len(self.tokens)

    def take(self, rows: Rows, emit: Callable[[Chunk], None]) -> None:
        """Keeps the rows. With none wanted an empty part marks the end."""
        self._parts.append(rows)
        self.first_row += len(rows)

    def take_best(self, best: Best, emit: Callable[[Chunk], None]) -> None:
        """Never called: all logits are wanted."""
        raise AssertionError("an evaluation wants logits")

    @property
    def rows(self) -> Rows:
        """(rows, n_vocab) or (rows, n_embd) float32."""
        return self._parts[0] if len(self._parts) == 1 else np.concatenate(self._parts)


class Completing:
    """A completion: draws tokens from logits until its generation ends.

    Args:
        generation: the completion's state.
        draft: guesses the next tokens, which are then evaluated together with the last one; those that the sampler agrees with are kept,
            so that the text is that of plain generation.
        prompt_logprobs: with logprobs, report those of the prompt's own tokens first.
        keep_rows: keep the logits of all positions from this one on in `kept`; None: none.

    Attributes:
        draft_depth: how many tokens may be guessed at once; None: as many as the draft gives.
    """

    hidden = False

    def __init__(
        self, generation: Generation, draft: DraftModel | None = None, prompt_logprobs: bool = False, keep_rows: int | None = None
    ) -> None:
        self.generation, self._draft = generation, draft
        self.draft_depth: int | None = None
        self.kept: list[Logits] = []
        self.keeps_from = keep_rows
        n_prompt = generation.n_prompt
        self._prompt_entries = [TokenLogprob(int(generation.history[0]), None, [])] if prompt_logprobs else None
        self.tokens = generation.history
        self.first_row = min(n_prompt - 1, 0 if prompt_logprobs else n_prompt, n_prompt - 1 if keep_rows is None else keep_rows)
        self._prompt_over = not prompt_logprobs
        self._started = self._first_token = 0.0

    def start(self, evaluated_before: int) -> None:
        """Called once, when the work gets its slot: `evaluated_before` tokens were in the cache."""
        self._started = time.perf_counter()
        self.generation.timings.prompt_tokens = len(self.tokens) - evaluated_before

    @property
    def n_evaluated(self) -> int:
        """How many tokens of the generation's history were evaluated, when it has drawn any or scored its prompt; else 0."""
        ended = self._started and self._prompt_over and self.generation.finish_reason is not None
        return self.first_row if self.generation.n_generated or ended else 0

    @cached_property
    def _draws_from_best(self) -> bool:
        return self._draft is None and self.keeps_from is None and self.generation.needs_only_best

    @property
    def only_best(self) -> bool:
        return self._draws_from_best and self._prompt_over and self.first_row == len(self.tokens) - 1

    @property
    def done(self) -> bool:
        return self.generation.finish_reason is not None and self._prompt_over

    def take(self, rows: Rows, emit: Callable[[Chunk], None]) -> None:
        """Keeps, scores and draws, position by position."""
        for row in rows:
            if self.done:
                return
            position = self.first_row
            self.first_row += 1
            if self.keeps_from is not None:
                self.kept.append(row)
            if not self._prompt_over:
                self._score_prompt(position, row, emit)
            if self.generation.finish_reason is None and position >= len(self.generation.history) - 1:
                emit(self.generation.advance(row))
                if not self._guess_holds(position):
                    break
        self._go_on()

    def take_best(self, best: Best, emit: Callable[[Chunk], None]) -> None:
        """Draws from the best tokens of the last position."""
        self.first_row += 1
        emit(self.generation.advance_best(best))
        self._go_on()

    def _guess_holds(self, position: int) -> bool:
        """Whether the drawn token is the one that stands behind this position, so that the next row belongs to the text."""
        behind = position + 1
        return behind < len(self.tokens) and bool(self.tokens[behind] == self.generation.history[-1])

    def _score_prompt(self, position: int, row: Logits, emit: Callable[[Chunk], None]) -> None:
        entries, prompt = self._prompt_entries, self.generation.history
        assert entries is not None
        if position + 1 < self.generation.n_prompt:
            entries.append(token_logprob(row, int(prompt[position + 1]), self.generation.n_logprobs))
        if len(entries) == self.generation.n_prompt:
            self._prompt_over = True
            emit(Chunk("", [], entries))

    def _go_on(self) -> None:
        """What must be evaluated next: the text with its last token, and the draft's guesses."""
        generation = self.generation
        if generation.n_generated:
            now = time.perf_counter()
            if not self._first_token:
                self._first_token, generation.timings.prompt_seconds = now, now - self._started
            generation.timings.generation_seconds = now - self._first_token
            generation.timings.generated_tokens = generation.n_generated - 1
        if generation.finish_reason is not None or not generation.n_generated:
            return
        self.tokens = generation.history
        most = max(0, generation.room - 1) if self.draft_depth is None else max(0, min(self.draft_depth, generation.room - 1))
        if self._draft is not None and most > 0:
            guesses = np.asarray(self._draft(generation.history), dtype=np.intc)[:most]
            self.tokens = np.concatenate([generation.history, guesses])
        self.first_row = len(generation.history) - 1
