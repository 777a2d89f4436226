"""`Llama`: a model that is loaded and ready, with the methods that llama-cpp-python's class of this name has."""

import logging
import os
import random
import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace, TracebackType
from typing import Any

from ..engine import devices
from ..engine.cache_types import cache_type
from ..engine.engine import RANDOM_SEED, Engine
from ..engine.work import DraftModel
from . import arguments, hub
from .score_methods import ScoreMethods
from .session import Session
from .text_methods import TextMethods
from .token_methods import TokenMethods

logger = logging.getLogger(__name__)

LLAMA_DEFAULT_SEED = RANDOM_SEED


class Llama(TextMethods, TokenMethods, ScoreMethods):
    """A language model from a GGUF file in TQN, F16, BF16 or F32.

    Calls from several threads are safe and run together, up to n_slots at a time. What calls share as a prefix is evaluated once.

    Args:
        model_path: the file.
        n_ctx: positions of the context; 0: as many as the model was trained for.
        n_threads: threads for token-by-token work, None: this process's cores. n_threads_batch: for prompts, None: the same.
        n_batch: tokens evaluated in one pass at most.
        n_gpu_layers: 0: CPU; -1: all layers on a GPU, when one can be used (a warning says why not); else so many, the last ones.
        main_gpu: which GPU. tensor_split: shares of the layers that each GPU takes, instead of main_gpu.
        n_slots: sequences that may be evaluated together (streams, threads, batches); memory is taken when they are.
        last_n_tokens_size: how many of the last tokens the penalties look at; 0: none, -1: all.
        seed: makes sampling reproducible; the default draws a new one for each call.
        logits_all: `eval` keeps the logits of every token for `scores`.
        embedding: accepted; every model here can embed. pooling_type: LLAMA_POOLING_TYPE_MEAN (1), CLS (2) or LAST (3);
            default: the one that the file names, else the mean.
        use_mlock: keep the weights in memory. use_mmap: accepted; files are always mapped.
        type_k, type_v: types of cached keys and values, as ggml's numbers or names: None or 1 float16; 8 ("q8_0") and 2 ("q4_0") codes of
            8 or 4 bits, which take a half or a quarter of the memory (docs/running.md says what they cost). Types between are rounded up.
            "auto": what was measured for models of this kind, else float16.
        cache_budget: bytes that the caches of all sequences may take together. Prefixes that no call uses are then kept in fewer bits, and
            forgotten last of all, where they would exceed it (docs/running.md); None: only the slots keep prefixes.
        flash_attn: accepted; attention never stores its score matrix.
        chat_format: a template instead of the file's default: chatml, llama-3, gemma, one of the file's by name, or jinja2 text.
        chat_handler: a function in place of `create_chat_completion`'s own formatting.
        draft_model: guesses tokens ahead, see `turboquant_native.speculative`.
        precision: "int8" activations for packed matrices, or "f32", the slow reference.
        verbose: log at INFO, otherwise at DEBUG (to `logging`; nothing is printed).
        strict: unknown arguments raise TypeError instead of a warning.
        **kwargs: arguments of llama-cpp-python that have no effect here are accepted; those that would change results raise ValueError.

    Raises FileNotFoundError, FormatError (damaged file), UnsupportedError (architecture or machine), ValueError, MemoryError.
    """

    def __init__(
        self,
        model_path: str,
        *,
        n_ctx: int = 512,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        n_batch: int = 512,
        n_slots: int = 8,
        n_gpu_layers: int = 0,
        main_gpu: int = 0,
        tensor_split: Sequence[float] | None = None,
        seed: int = LLAMA_DEFAULT_SEED,
        last_n_tokens_size: int = 64,
        logits_all: bool = False,
        embedding: bool = False,
        pooling_type: int = -1,
        use_mmap: bool = True,
        use_mlock: bool = False,
        type_k: int | str | None = None,
        type_v: int | str | None = None,
        cache_budget: int | None = None,
        flash_attn: bool = False,
        chat_format: str | None = None,
        chat_handler: Callable[..., Any] | None = None,
        draft_model: DraftModel | None = None,
        precision: str = "int8",
        verbose: bool = True,
        strict: bool = False,
        **kwargs: Any,
    ) -> None:
        self._arguments = {name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")} | kwargs
        arguments.check(kwargs, strict)
        cache = cache_type(type_k, type_v)
        arguments.check_numbers(
            n_ctx=n_ctx, n_batch=n_batch, n_threads=n_threads or 0, n_threads_batch=n_threads_batch or 0, n_slots=n_slots, seed=seed
        )
        arguments.check_seed(seed)
        self.model_path = os.fsdecode(model_path)
        if not os.path.exists(self.model_path):
            raise FileNotFoundError(f"model_path {self.model_path!r}: no such file")
        self.verbose, self.chat_handler, self.logits_all = verbose, chat_handler, logits_all
        self.pooling_type = arguments.check_pooling(pooling_type)
        self.engine = Engine(
            self.model_path,
            n_ctx=n_ctx,
            max_slots=n_slots,
            n_batch=n_batch,
            n_threads=n_threads or 0,
            n_threads_batch=n_threads_batch or 0,
            device=devices.device(n_gpu_layers, self.model_path, main_gpu, tensor_split),
            precision=precision,
            lock_memory=use_mlock,
            cache=cache,
            cache_budget=cache_budget,
        )
        self._session = Session(
            self.engine,
            self.model_path,
            seed=seed,
            logits_all=logits_all,
            draft_model=draft_model,
            penalty_last_n=arguments.check_penalty_window(last_n_tokens_size),
            chat_format=chat_format,
        )
        self.context_params = SimpleNamespace(n_ctx=self.n_ctx(), n_batch=self.engine.n_batch)
        self._warn_of_long_contexts()
        core = self.engine.core
        level = logging.INFO if verbose else logging.DEBUG
        logger.log(level, "loaded %s: %d parameters, backend %s", self.model_path, core.parameters, core.backend)
        self._sampler_seed = random.Random(self.next_seed(None))

    def _warn_of_long_contexts(self) -> None:
        trained = int(self.engine.core.config["n_ctx_train"])
        if self.n_ctx() > trained > 0:
            warnings.warn(f"n_ctx={self.n_ctx()} is more than the {trained} positions that the model was trained for", stacklevel=3)

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None = None,
        *,
        bits: int = 4,
        cache_dir: str | None = None,
        local_dir: str | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> "Llama":
        """Opens a model of the Hugging Face hub.

        Args:
            repo_id: "organisation/name", or without `filename` also a folder.
            filename: name or glob of the GGUF file to load. None: convert the repository's safetensors to `bits`, once, into the cache;
                a folder's again when a file of it changed. Processes that ask at the same time wait for the first.
            cache_dir, local_dir, revision: as huggingface_hub has them.
            **kwargs: the constructor's.
        """
        if filename is None:
            return cls(hub.converted(repo_id, bits, cache_dir, revision), **kwargs)
        return cls(hub.find_file(repo_id, filename, cache_dir=cache_dir, local_dir=local_dir, revision=revision), **kwargs)

    @property
    def session(self) -> Session:
        """What completions of this model share; for programs that run their own, such as the server."""
        return self._session

    def cache_stats(self) -> dict[str, Any]:
        """What is kept of evaluated tokens, in tokens and bytes.

        Returns {"type": of cached keys and values ("f16", "k8v4", ...), "why": why "auto" took that one, None where it was named,
        "budget": bytes or None, "bytes": of slots, snapshots and kept prefixes together, "slots": {"prefixes", "tokens",
        "bytes"}, "snapshots": {"count", "bytes"} of recurrent layers, "prompt_tokens", "cached_tokens": evaluated and found since the
        beginning}. With a budget also "kept": {type of cache: {"prefixes", "tokens", "bytes"}} beside the slots, and since the beginning
        "dropped_snapshots": those that gave way, "requantized": steps to fewer bits, "evicted": prefixes that were forgotten, "taken_up"
        and "taken_up_tokens": {type: of kept prefixes that went on}. RuntimeError once closed.
        """
        stats = self.engine.scheduler.cache_stats()
        return {"type": self.engine.cache, "why": self.engine.why_cache, **stats}

    # --- life ----------------------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Frees the memory. A generation under way in another thread raises RuntimeError there."""
        self.engine.close()

    @property
    def chat_format(self) -> str | None:
        """The named template in place of the file's."""
        return self._session.chat_format

    @chat_format.setter
    def chat_format(self, name: str | None) -> None:
        self._session.chat_format = name

    @property
    def draft_model(self) -> DraftModel | None:
        """What guesses tokens ahead."""
        return self._session.draft_model

    @draft_model.setter
    def draft_model(self, draft: DraftModel | None) -> None:
        self._session.draft_model = draft

    def __enter__(self) -> "Llama":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Pickles as its constructor's arguments: the copy opens the file again."""
        return dict(self._arguments)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
