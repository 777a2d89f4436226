"""One program's use of an engine: the sequence it stands at, its seed, its draft model, the states it keeps."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine.engine import RANDOM_SEED, Engine, draw_seed
from ..engine.generation import Generation, Timings
from ..engine.handle import Handle
from ..engine.sampling import Logits, SamplingOptions
from ..engine.tokens import Tokens, check_tokens, common_prefix
from ..engine.work import Completing, DraftModel, Rows
from .cache import LlamaRAMCache, LlamaState


@dataclass(frozen=True)
class Moment:
    """Where a sequence stands. It is replaced as a whole, so that an interruption leaves the old one or the new one.

    Attributes:
        tokens: those evaluated.
        rows: logits after each of them, where they are kept and known.
        logits: after the last one, where known.
    """

    tokens: Tokens
    rows: tuple[Logits, ...] = ()
    logits: Logits | None = None


NOTHING = Moment(np.empty(0, np.intc))


class Session:
    """What `Llama` and its completions share.

    Args:
        engine: everything is evaluated there.
        model_name: reported by completions.
        seed: of calls that give none; RANDOM_SEED: a new one each time.
        logits_all: keep the logits of every token.
        draft_model: guesses tokens of completions.
        penalty_last_n: how many tokens the penalties look back; 0: none, -1: all.
        chat_format: a named template, or one in place of the file's.
    """

    def __init__(
        self,
        engine: Engine,
        model_name: str,
        *,
        seed: int = RANDOM_SEED,
        logits_all: bool = False,
        draft_model: DraftModel | None = None,
        penalty_last_n: int = 64,
        chat_format: str | None = None,
    ) -> None:
        self.engine, self.vocabulary, self.metadata = engine, engine.vocabulary, engine.metadata
        self.model_path, self.seed, self.logits_all, self.draft_model = model_name, seed, logits_all, draft_model
        self.penalty_last_n, self.chat_format = penalty_last_n, chat_format
        self.moment = NOTHING
        self.timings = Timings()
        self.states: LlamaRAMCache | None = None

    def n_ctx(self) -> int:
        """Positions of the context."""
        return self.engine.n_ctx

    def n_vocab(self) -> int:
        """Number of tokens that logits cover."""
        return self.engine.n_vocab

    def token_bos(self) -> int:
        """The beginning-of-sequence token, -1 where there is none."""
        return self.vocabulary.bos

    def new_sampler(self, options: SamplingOptions, seed: int | None) -> Any:
        """A sampler of the core with these options."""
        return self.engine.new_sampler(options, draw_seed(seed, self.seed))

    # --- completions ---------------------------------------------------------------------------------------------------------------------

    def submit(
        self,
        generation: Generation,
        prompt_logprobs: bool = False,
        listener: Callable[[Handle], None] | None = None,
        may_grow: bool = True,
    ) -> Handle:
        """Starts a completion. prompt_logprobs: those of the prompt's own tokens come first."""
        self._recall(generation.history)
        keep_rows = None
        if self.logits_all:
            keep_rows = min(common_prefix(self.moment.tokens[: len(self.moment.rows)], generation.history), generation.n_prompt - 1)
        work = Completing(generation, self.draft_model, prompt_logprobs, keep_rows)
        return self.engine.scheduler.submit(work, listener, may_grow)

    def ended(self, handle: Handle) -> None:
        """Takes the sequence of a completion as the present one, and keeps its state where states are kept."""
        work = handle.work
        assert isinstance(work, Completing)
        generation, known = work.generation, work.n_evaluated
        if not known:
            return
        self.timings = generation.timings
        rows = (*self.moment.rows[: work.keeps_from], *work.kept) if work.keeps_from is not None else ()
        self.moment = Moment(generation.history[:known].copy(), rows, rows[-1] if rows else None)
        if self.states is not None and handle.error is None:
            self.states[self.moment.tokens.tolist()] = self.save_state()

    def _recall(self, prompt: Tokens) -> None:
        """Loads the state that shares most with a prompt, when the kept states know more than the engine's slots."""
        if self.states is None or prompt.tolist() not in self.states:
            return
        state = self.states[prompt.tolist()]
        scheduler = self.engine.scheduler
        held = scheduler.run(lambda: max(slot.shared(prompt) for slot in scheduler.slots))
        if common_prefix(state.input_ids, prompt) > held:
            with suppress(ValueError):  # of another model, type of cache or longer context: it is of no use here
                self.load_state(state)

    # --- one sequence, token by token ----------------------------------------------------------------------------------------------------

    def stand_at(self, tokens: Tokens) -> Logits:
        """Makes a sequence the present one, evaluating what is new of it; returns the logits (n_vocab,) after its last token."""
        before = self.moment
        shared = min(common_prefix(before.tokens[: len(before.rows)], tokens), len(tokens) - 1) if self.logits_all else len(tokens) - 1
        rows = self.engine.evaluate(tokens, len(tokens) - shared)
        self.moment = Moment(tokens, (*before.rows[:shared], *rows) if self.logits_all else (), rows[-1])
        return rows[-1]

    def append(self, tokens: Sequence[int]) -> None:
        """Evaluates tokens after those of the present sequence; ValueError when they do not fit the context."""
        new = check_tokens(tokens, self.n_vocab())
        if len(new):
            self.stand_at(np.concatenate([self.moment.tokens, new]))

    @property
    def logits(self) -> Logits:
        """Logits after the last token, (n_vocab,); RuntimeError before the first."""
        moment = self.moment
        if not len(moment.tokens):
            raise RuntimeError("no logits: evaluate tokens first")
        return self.stand_at(moment.tokens) if moment.logits is None else moment.logits

    @property
    def scores(self) -> Rows:
        """Logits after each token of the present sequence, (n_tokens, n_vocab)."""
        moment = self.moment
        if not len(moment.tokens):
            return np.empty((0, self.n_vocab()), np.float32)
        if len(moment.rows) < len(moment.tokens):
            rows = self.engine.evaluate(moment.tokens, len(moment.tokens))
            self.moment = moment = Moment(moment.tokens, tuple(rows), rows[-1])
        return np.stack(moment.rows)

    def save_state(self) -> LlamaState:
        """The present sequence: tokens, keys and values, logits."""
        moment, scheduler = self.moment, self.engine.scheduler

        def save() -> bytes | None:
            slot = max(scheduler.slots, key=lambda slot: slot.shared(moment.tokens))
            n_tokens = len(moment.tokens)
            return bytes(scheduler.context.save(slot.index, n_tokens)) if slot.shared(moment.tokens) == n_tokens else None

        state = scheduler.run(save)
        while state is None:  # its slot served another request since
            self.engine.evaluate(moment.tokens)
            state = scheduler.run(save)
        rows = np.stack(moment.rows) if moment.rows else None
        return LlamaState(moment.tokens, state, moment.logits, self.seed, rows)

    def load_state(self, state: LlamaState) -> None:
        """Goes back to a saved moment of the same model; FormatError when the state belongs to another."""
        tokens, scheduler = check_tokens(state.input_ids, self.n_vocab()), self.engine.scheduler
        if len(tokens) > self.n_ctx():
            raise ValueError(f"the state holds {len(tokens)} tokens, the context only {self.n_ctx()} (n_ctx)")
        scheduler.place(tokens, state.llama_state)
        rows = () if state.rows is None else tuple(state.rows)
        self.moment, self.seed = Moment(tokens, rows if self.logits_all else (), state.logits), state.seed
