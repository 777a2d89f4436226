"""A model that is open and ready: the core's model, one context, the vocabulary, and the scheduler that everything goes through."""

import logging
import os
import random
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .cache_types import MEASURED, four_bit_keys, is_balanced, measured_choice
from .generation import Generation, Limits
from .head import read_head
from .pace import Pace
from .sampling import SamplingOptions, TokenChooser
from .scheduler import Scheduler
from .tokens import Tokens, check_tokens
from .vocabulary import Vocabulary
from .work import Completing, Evaluation, Rows

if TYPE_CHECKING:
    from .. import _core

logger = logging.getLogger(__name__)

RANDOM_SEED = 0xFFFFFFFF  # llama.cpp's number for "draw one"
_CPU_SECONDS = 2e-11  # a prompt token's time for each parameter, on a slow processor


class Engine:
    """A model file, opened.

    Args:
        model: the file, or a `_core.Model` that is open already and not owned.
        n_ctx: positions of a sequence; 0: as many as the model was trained for.
        n_slots: sequences that may run at once; max_slots: how far that may grow when more are asked for.
        n_batch: rows of one forward pass at most.
        n_threads: threads for token-by-token work, 0: this process's cores. n_threads_batch: for prompts, 0: the same.
        device: "cpu", "cuda", or parts, as `_core.Model` has them.
        precision: "int8" activations for packed matrices, or "f32".
        lock_memory: keep the weights in memory.
        queue_limit: requests that may wait; None: any number.
        cache: type of cached keys and values, as `_core.Context` names it, or `cache_types.MEASURED`.
        cache_budget: bytes that the caches of all sequences may take together, which their precision then follows; None: no limit.

    Attributes:
        why_cache: where the type of the cache was left to what was measured: why it is that one. Else None.

    Raises FileNotFoundError, FormatError, UnsupportedError, ValueError, MemoryError.
    """

    def __init__(
        self,
        model: "str | _core.Model",
        *,
        n_ctx: int = 512,
        n_slots: int = 1,
        max_slots: int = 8,
        n_batch: int = 512,
        n_threads: int = 0,
        n_threads_batch: int = 0,
        device: str = "cpu",
        precision: str = "int8",
        lock_memory: bool = False,
        queue_limit: int | None = None,
        cache: str = "auto",
        cache_budget: int | None = None,
    ) -> None:
        from .. import _core

        threads = max(n_threads, n_threads_batch) if n_threads else 0
        self._owns_core = isinstance(model, str)
        if isinstance(model, str):
            model = _core.Model(os.fsencode(model), device=device, threads=threads, precision=precision, lock_memory=lock_memory)
        self.core = model
        architecture = str(model.config["architecture"])
        balanced = is_balanced((name for name, _, _ in model.file.tensors()), model.file.layers_with_codes())
        bears = four_bit_keys(architecture, balanced)
        self.why_cache: str | None = None
        if cache == MEASURED:
            head_dims = (layer["head_dim"] for layer in model.config["layers"] if "head_dim" in layer)
            choice, self.why_cache = measured_choice(architecture, head_dims, balanced)
            cache = "auto" if choice == "f16" else choice
        if cache.startswith("k4") and bears is False:
            logger.warning(
                "keys in 4 bits (%s): models of the architecture %s were measured to lose their sense with them, where the file has no "
                "means and balances of keys (tqn convert stores them)",
                cache,
                architecture,
            )
        self.head = read_head(model.file, int(model.config["n_embd"]))  # None: the model does not score

        def open_context(slots: int) -> _core.Context:
            context = _core.Context(self.core, n_ctx=n_ctx, n_slots=slots, n_batch=max(n_batch, slots), cache=cache)
            if n_threads:
                context.set_threads(n_threads, n_threads_batch or n_threads)
            return context

        guess = self.core.parameters * _CPU_SECONDS if device.startswith("cpu") else 0.0
        self.scheduler = Scheduler(open_context, n_slots, max_slots, queue_limit, Pace(n_batch, guess), cache_budget, bears is True)
        if self.why_cache:
            logger.info("cache: auto is %s: %s", self.cache, self.why_cache)
        self.metadata: dict[str, Any] = self.core.file.metadata
        self.vocabulary = Vocabulary(self.metadata, self.n_vocab)

    @property
    def context(self) -> Any:
        """The `_core.Context`; use it only in functions given to `scheduler.run`."""
        return self.scheduler.context

    @property
    def cache(self) -> str:
        """Type of cached keys and values: "f16", "f32", "k8v4" and so on."""
        return str(self.context.cache)

    @property
    def n_ctx(self) -> int:
        """Positions of a sequence."""
        return int(self.context.n_ctx)

    @property
    def n_batch(self) -> int:
        """Rows of one forward pass at most."""
        return int(self.context.n_batch)

    @property
    def n_vocab(self) -> int:
        """Number of tokens that logits cover."""
        return int(self.context.n_vocab)

    @property
    def n_embd(self) -> int:
        """Width of the hidden states."""
        return int(self.context.n_embd)

    def evaluate(self, tokens: Sequence[int] | Tokens, rows: int = 1, hidden: bool = False) -> Rows:
        """Logits (rows, n_vocab) after each of the last `rows` tokens of a sequence, or its hidden states (rows, n_embd).

        What slots hold of the sequence is not evaluated again.
        """
        work = Evaluation(check_tokens(tokens, self.n_vocab), rows, hidden)
        self.scheduler.submit(work).wait()
        return work.rows

    def complete(self, prompt: Sequence[int], limits: Limits, options: SamplingOptions, seed: int = RANDOM_SEED) -> str:
        """The text that follows a prompt; ValueError when the two do not fit the context."""
        tokens = check_tokens(prompt, self.n_vocab)
        if len(tokens) + limits.max_tokens > self.n_ctx:
            raise ValueError(f"{len(tokens)} tokens and {limits.max_tokens} to generate exceed the context of {self.n_ctx} (n_ctx)")
        generation = Generation(self.vocabulary, tokens, TokenChooser(self.new_sampler(options, draw_seed(seed))), limits)
        return "".join(chunk.text for chunk in self.scheduler.submit(Completing(generation)))

    @staticmethod
    def new_sampler(options: SamplingOptions, seed: int) -> Any:
        """A sampler of the core with these options."""
        from .. import _core

        return _core.Sampler(**vars(options), seed=seed)

    def close(self) -> None:
        """Frees everything; requests under way end with RuntimeError."""
        self.scheduler.close()
        if self._owns_core:
            self.core.close()


def draw_seed(seed: int | None, model_seed: int = RANDOM_SEED) -> int:
    """The seed of a call: its own, else one that follows from the model's, else a random one."""
    if seed is not None and seed != RANDOM_SEED and seed >= 0:
        return seed
    if model_seed != RANDOM_SEED and model_seed >= 0:
        return random.Random(model_seed).getrandbits(63)
    return secrets.randbits(63)
