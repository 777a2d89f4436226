"""The half of `Llama` that works with tokens: what the model is, tokenizing, one token at a time, saved states."""

import random
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.engine import Engine, draw_seed
from ..engine.generation import Timings
from ..engine.grammar import LlamaGrammar
from ..engine.sampling import Logits, LogitsProcessor, SamplingOptions, StoppingCriteriaList, TokenChooser, refuse_unsupported
from ..engine.tokens import Tokens, check_tokens
from ..engine.vocabulary import Vocabulary
from .cache import LlamaRAMCache, LlamaState
from .llama_tokenizer import LlamaTokenizer
from .session import NOTHING, Session


class TokenMethods:
    """Methods of `Llama` on tokens. What was evaluated last is the present sequence; `eval` goes on from it."""

    engine: Engine
    _session: Session
    _sampler_seed: random.Random

    # --- what it is ----------------------------------------------------------------------------------------------------------------------

    def n_ctx(self) -> int:
        """Positions of the context."""
        return self.engine.n_ctx

    def n_vocab(self) -> int:
        """Number of tokens that logits cover."""
        return self.engine.n_vocab

    def n_embd(self) -> int:
        """Width of the embeddings."""
        return self.engine.n_embd

    @property
    def metadata(self) -> dict[str, Any]:
        """The file's metadata in its own types."""
        return self.engine.metadata

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer."""
        return self.engine.vocabulary

    @property
    def model(self) -> Vocabulary:
        """The handle that the functions of `compat.llama_cpp` take."""
        return self.vocabulary

    @property
    def timings(self) -> Timings:
        """Where the time of the last completion went."""
        return self._session.timings

    def token_bos(self) -> int:
        """The beginning-of-sequence token, -1 where there is none."""
        return self.vocabulary.bos

    def token_eos(self) -> int:
        """The end-of-sequence token, -1 where there is none."""
        return self.vocabulary.eos

    def token_nl(self) -> int:
        """The token of a line break, -1 where there is none."""
        ids = self.vocabulary.encode(b"\n")
        return ids[-1] if ids and self.vocabulary.piece(ids[-1]) == b"\n" else -1

    # --- text and tokens -----------------------------------------------------------------------------------------------------------------

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Token ids of a UTF-8 text. add_bos: begin with BOS where the model uses one; special: control tokens' names are those tokens."""
        return self.vocabulary.encode(text, add_bos, special)

    def detokenize(self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False) -> bytes:
        """The text of tokens, in bytes; control tokens appear only with `special`. prev_tokens: what stood before them."""
        return self.vocabulary.decode(tokens, special, prev_tokens)

    def tokenizer(self) -> LlamaTokenizer:
        """`tokenize` and `detokenize` as an object."""
        return LlamaTokenizer(self)

    @property
    def tokenizer_(self) -> LlamaTokenizer:
        """The same, under the name that some callers use."""
        return LlamaTokenizer(self)

    # --- one token at a time -------------------------------------------------------------------------------------------------------------

    @property
    def n_tokens(self) -> int:
        """Tokens evaluated since the last reset."""
        return len(self._session.moment.tokens)

    @property
    def input_ids(self) -> NDArray[np.intc]:
        """Those tokens, (n_tokens,)."""
        return self._session.moment.tokens.copy()

    @property
    def logits(self) -> Logits:
        """Logits after the last token, (n_vocab,) float32; RuntimeError before the first."""
        return self._session.logits

    @property
    def eval_logits(self) -> list[list[float]]:
        """Logits of the evaluated tokens with `logits_all`, else of the last one."""
        rows = self.scores if self._session.logits_all else self.logits[None]
        return [[float(value) for value in row] for row in rows]

    @property
    def scores(self) -> NDArray[np.float32]:
        """Logits after each evaluated token, (n_tokens, n_vocab) float32; made on request.

        Only `logits_all=True` keeps them; otherwise RuntimeError (the last token's are in `logits`).
        """
        if not self._session.logits_all:
            raise RuntimeError("scores needs Llama(..., logits_all=True); the logits of the last token are in .logits")
        return self._session.scores

    def reset(self) -> None:
        """Forgets all tokens, and prefixes that might be used again."""
        self.engine.scheduler.forget()
        self._session.moment = NOTHING
        self._sampler_seed = random.Random(self.next_seed(None))

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluates tokens after those already evaluated; ValueError when they do not fit the context."""
        self._session.append(tokens)

    def sample(
        self,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.8,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        grammar: LlamaGrammar | None = None,
        idx: int | None = None,
        **kwargs: Any,
    ) -> int:
        """Draws a token from the last logits (with `logits_all`, from those of position `idx`) without evaluating it."""
        refuse_unsupported(**kwargs)
        options = SamplingOptions(
            temp, top_k, top_p, min_p, typical_p, repeat_penalty, frequency_penalty, presence_penalty, self._session.penalty_last_n
        )
        processors = list(logits_processor or ())
        if grammar is not None:
            processors.append(grammar.processor(self.vocabulary, self.n_tokens))
        chooser = TokenChooser(self.new_sampler(options, self._sampler_seed.getrandbits(63)), processors=processors)
        position = self.n_tokens - 1 if idx is None else idx
        logits = self.logits if idx is None else self.scores[idx]
        return chooser.choose(self._session.moment.tokens[: position + 1], logits)

    def generate(
        self,
        tokens: Sequence[int],
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.8,
        repeat_penalty: float = 1.0,
        reset: bool = True,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        grammar: LlamaGrammar | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> Generator[int, Sequence[int] | None, None]:
        """Yields tokens that follow `tokens`, without end; tokens sent to the generator are appended after the yielded one.

        reset: `tokens` is the whole text; otherwise it follows what was evaluated. Ends with the context or a stopping criterion;
        ValueError for tokens that do not fit the context to begin with.
        """
        refuse_unsupported(**kwargs)
        options = SamplingOptions(
            temp, top_k, top_p, min_p, typical_p, repeat_penalty, frequency_penalty, presence_penalty, self._session.penalty_last_n
        )
        new = check_tokens(tokens, self.n_vocab())
        history = new if reset else np.concatenate([self._session.moment.tokens, new])
        if not 0 < len(history) <= self.n_ctx():
            raise ValueError(f"generate needs 1 to {self.n_ctx()} tokens (n_ctx) to go on from, got {len(history)}")
        processors = list(logits_processor or ())
        if grammar is not None:
            processors.append(grammar.processor(self.vocabulary, len(history)))
        chooser = TokenChooser(self.new_sampler(options, seed), processors=processors)
        return self._generate(history, chooser, stopping_criteria)

    def _generate(
        self, history: Tokens, chooser: TokenChooser, criteria: StoppingCriteriaList | None
    ) -> Generator[int, Sequence[int] | None, None]:
        while len(history) <= self.n_ctx():
            logits = self._session.stand_at(history)
            if criteria is not None and criteria(history, logits):
                return
            token = chooser.choose(history, logits)
            sent = yield token
            history = np.concatenate([history, check_tokens([token, *(sent or ())], self.n_vocab())])

    def new_sampler(self, options: SamplingOptions, seed: int | None) -> Any:
        """A sampler of the core with these options."""
        return self._session.new_sampler(options, seed)

    def next_seed(self, seed: int | None) -> int:
        """The seed of a call: its own, else one that follows from the model's, else a random one."""
        return draw_seed(seed, self._session.seed)

    def set_seed(self, seed: int) -> None:
        """Sets the seed of the calls that follow."""
        self._session.seed = seed
        self._sampler_seed = random.Random(self.next_seed(None))

    # --- states --------------------------------------------------------------------------------------------------------------------------

    def save_state(self) -> LlamaState:
        """The present moment: tokens, keys and values, logits (those of every token with `logits_all`)."""
        return self._session.save_state()

    def load_state(self, state: LlamaState) -> None:
        """Goes back to a saved moment of the same model; FormatError when the state belongs to another."""
        self._session.load_state(state)

    def set_cache(self, cache: LlamaRAMCache | None) -> None:
        """Keeps the states of finished completions in `cache`, so that any earlier prompt's prefix can be taken up again."""
        self._session.states = cache
