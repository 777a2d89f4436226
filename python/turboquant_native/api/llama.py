"""`Llama`: a model that is loaded and ready, with the methods that llama-cpp-python's class of this name has."""

import contextlib
import logging
import os
import random
import secrets
import threading
from collections.abc import Generator, Iterator, Sequence
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..engine import batch, devices
from ..engine.generation import DraftModel, Generation, Timings
from ..engine.prefix_cache import PrefixCache, check_tokens, common_prefix
from ..engine.sampling import Logits, LogitsProcessor, SamplingOptions, StoppingCriteriaList, TokenChooser, refuse_unsupported
from ..engine.vocabulary import Vocabulary
from . import arguments, completion, embedding, hub
from .cache import LlamaRAMCache, LlamaState
from .chat_completion import ChatCompletion
from .llama_tokenizer import LlamaTokenizer

if TYPE_CHECKING:
    from ..engine.grammar import LlamaGrammar

logger = logging.getLogger(__name__)

LLAMA_DEFAULT_SEED = 0xFFFFFFFF  # "draw one"


class Llama:
    """A language model from a GGUF file in TQN, F16, BF16 or F32.

    Calls from several threads are safe and take turns. What calls share as a prefix is evaluated once.

    Args:
        model_path: the file.
        n_ctx: positions of the context; 0: as many as the model was trained for.
        n_threads: threads for token-by-token work, None: this process's cores. n_threads_batch: for prompts, None: the same.
        n_batch: tokens evaluated in one pass at most.
        n_gpu_layers: 0: CPU; -1: all layers on a GPU, when one can be used (a warning says why not); else so many, the last ones.
        main_gpu: which GPU. tensor_split: shares of the layers that each GPU takes, instead of main_gpu.
        seed: makes sampling reproducible; the default draws a new one for each call.
        logits_all: `eval` keeps the logits of every token for `scores`.
        embedding: accepted; every model here can embed. pooling_type: LLAMA_POOLING_TYPE_MEAN (1), CLS (2) or LAST (3); default mean.
        use_mlock: keep the weights in memory. use_mmap: accepted; files are always mapped.
        type_k, type_v: None or 1 (float16), the cache's only type.
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
        n_gpu_layers: int = 0,
        main_gpu: int = 0,
        tensor_split: Sequence[float] | None = None,
        seed: int = LLAMA_DEFAULT_SEED,
        logits_all: bool = False,
        embedding: bool = False,
        pooling_type: int = -1,
        use_mmap: bool = True,
        use_mlock: bool = False,
        type_k: int | None = None,
        type_v: int | None = None,
        flash_attn: bool = False,
        chat_format: str | None = None,
        chat_handler: Any = None,
        draft_model: DraftModel | None = None,
        precision: str = "int8",
        verbose: bool = True,
        strict: bool = False,
        **kwargs: Any,
    ) -> None:
        self._arguments = {name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")} | kwargs
        arguments.check(kwargs, strict)
        arguments.check_cache_type(type_k, type_v)
        arguments.check_numbers(n_ctx=n_ctx, n_batch=n_batch, n_threads=n_threads or 0, n_threads_batch=n_threads_batch or 0, seed=seed)
        if not os.path.exists(model_path):
            raise FileNotFoundError(f"model_path {str(model_path)!r}: no such file")
        self.model_path = str(model_path)
        self.verbose, self.draft_model, self.chat_handler, self.chat_format = verbose, draft_model, chat_handler, chat_format
        self.logits_all, self.pooling_type = logits_all, arguments.check_pooling(pooling_type)
        self._seed = seed
        self._cache_of_states: LlamaRAMCache | None = None
        self.timings = Timings()
        self._lock = threading.RLock()
        self._closed = False
        device = devices.device(n_gpu_layers, self.model_path, main_gpu, tensor_split)
        self._open(device, n_ctx, n_batch, n_threads or 0, n_threads_batch or 0, use_mlock, precision)
        self.reset()

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
                a folder's again when a file of it is newer.
            cache_dir, local_dir, revision: as huggingface_hub has them.
            **kwargs: the constructor's.
        """
        if filename is None:
            return cls(hub.converted(repo_id, bits, cache_dir, revision), **kwargs)
        return cls(hub.find_file(repo_id, filename, cache_dir=cache_dir, local_dir=local_dir, revision=revision), **kwargs)

    def _open(self, device: str, n_ctx: int, n_batch: int, n_threads: int, n_threads_batch: int, use_mlock: bool, precision: str) -> None:
        from .. import _core

        threads = max(n_threads, n_threads_batch) if n_threads else 0
        self._model = _core.Model(self.model_path, device=device, threads=threads, precision=precision, lock_memory=use_mlock)
        self.metadata: dict[str, Any] = self._model.file.metadata
        self._context = _core.Context(self._model, n_ctx=n_ctx, n_batch=n_batch)
        if n_threads:
            self._context.set_threads(n_threads, n_threads_batch or n_threads)
        self.vocabulary = Vocabulary(self.metadata, self._context.n_vocab)
        self._contexts = {self._context}
        self._cache = PrefixCache(self._context, keep_logits=self.logits_all)
        self.context_params = SimpleNamespace(n_ctx=self._context.n_ctx, n_batch=self._context.n_batch)
        self._log("loaded %s: %d parameters, backend %s", self.model_path, self._model.parameters, self._model.backend)

    def _log(self, message: str, *values: Any) -> None:
        logger.log(logging.INFO if self.verbose else logging.DEBUG, message, *values)

    # --- life ----------------------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Frees the memory. A generation under way in another thread raises RuntimeError at its next token."""
        if not self._closed:
            self._closed = True
            for context in list(self._contexts):
                context.close()
            self._model.close()

    @contextlib.contextmanager
    def _own_cache(self) -> Iterator[PrefixCache]:
        """A second cache of the same size, for a generation whose turn was taken."""
        from .. import _core

        if self._closed:
            raise RuntimeError("the model is closed")
        context = _core.Context(self._model, n_ctx=self.n_ctx(), n_batch=self.context_params.n_batch)
        self._contexts.add(context)
        try:
            yield PrefixCache(context)
        finally:
            self._contexts.discard(context)
            context.close()

    def __enter__(self) -> "Llama":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Pickles as its constructor's arguments: the copy opens the file again."""
        return dict(self._arguments)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    # --- what it is ----------------------------------------------------------------------------------------------------------------------

    def n_ctx(self) -> int:
        """Positions of the context."""
        return int(self._context.n_ctx)

    def n_vocab(self) -> int:
        """Number of tokens that logits cover."""
        return int(self._context.n_vocab)

    def n_embd(self) -> int:
        """Width of the embeddings."""
        return int(self._context.n_embd)

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

    @property
    def model(self) -> Vocabulary:
        """The handle that the functions of `compat.llama_cpp` take."""
        return self.vocabulary

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
        return self._cache.n_tokens

    @property
    def input_ids(self) -> NDArray[np.intc]:
        """Those tokens, (n_tokens,)."""
        return np.array(self._cache.tokens)

    @property
    def logits(self) -> Logits:
        """Logits after the last token, (n_vocab,) float32; RuntimeError before the first."""
        if self._cache.last_logits is None:
            raise RuntimeError("no logits: evaluate tokens first")
        return self._cache.last_logits

    @property
    def eval_logits(self) -> list[list[float]]:
        """Logits of the evaluated tokens with `logits_all`, else of the last one."""
        rows = self.scores if self.logits_all else self.logits[None]
        return [[float(value) for value in row] for row in rows]

    @property
    def scores(self) -> NDArray[np.float32]:
        """Logits after each evaluated token, (n_tokens, n_vocab) float32; made on request.

        Only `logits_all=True` keeps them; otherwise RuntimeError (the last token's are in `logits`).
        """
        if not self.logits_all:
            raise RuntimeError("scores needs Llama(..., logits_all=True); the logits of the last token are in .logits")
        return np.stack(self._cache.rows) if self._cache.rows else np.empty((0, self.n_vocab()), np.float32)

    def reset(self) -> None:
        """Forgets all tokens."""
        with self._lock:
            self._cache.truncate(0)
            self._sampler_seed = random.Random(self.next_seed(None))

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluates tokens after those already evaluated; ValueError when they do not fit the context."""
        new = check_tokens(tokens, self.n_vocab())
        with self._lock:
            if len(new):
                self._cache.logits_after(np.concatenate([self._cache.tokens, new]))

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
        grammar: "LlamaGrammar | None" = None,
        idx: int | None = None,
        **kwargs: Any,
    ) -> int:
        """Draws a token from the last logits (with `logits_all`, from those of position `idx`) without evaluating it."""
        refuse_unsupported(**kwargs)
        options = SamplingOptions(temp, top_k, top_p, min_p, typical_p, repeat_penalty, frequency_penalty, presence_penalty)
        processors = list(logits_processor or ())
        if grammar is not None:
            processors.append(grammar.processor(self.vocabulary, self.n_tokens))
        chooser = TokenChooser(self.new_sampler(options, self._sampler_seed.getrandbits(63)), processors=processors)
        position = self.n_tokens - 1 if idx is None else idx
        logits = self.logits if idx is None else self.scores[idx]
        return chooser.choose(self._cache.tokens[: position + 1], logits)

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
        grammar: "LlamaGrammar | None" = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> Generator[int, Sequence[int] | None, None]:
        """Yields tokens that follow `tokens`, without end; tokens sent to the generator are appended after the yielded one.

        reset: `tokens` is the whole text; otherwise it follows what was evaluated. Ends with the context or a stopping criterion.
        """
        refuse_unsupported(**kwargs)
        options = SamplingOptions(temp, top_k, top_p, min_p, typical_p, repeat_penalty, frequency_penalty, presence_penalty)
        new = check_tokens(tokens, self.n_vocab())
        history = new if reset else np.concatenate([self._cache.tokens, new])
        processors = list(logits_processor or ())
        if grammar is not None:
            processors.append(grammar.processor(self.vocabulary, len(history)))
        chooser = TokenChooser(self.new_sampler(options, seed), processors=processors)
        while len(history) <= self.n_ctx():
            with self._lock:
                logits = self._cache.logits_after(history)[0]
            if stopping_criteria is not None and stopping_criteria(history, logits):
                return
            token = chooser.choose(history, logits)
            sent = yield token
            history = np.concatenate([history, check_tokens([token, *(sent or ())], self.n_vocab())])

    def new_sampler(self, options: SamplingOptions, seed: int | None) -> Any:
        """A sampler of the core with these options."""
        from .. import _core

        return _core.Sampler(**vars(options), seed=self.next_seed(seed))

    def next_seed(self, seed: int | None) -> int:
        """The seed of a call: its own, else one that follows from the model's, else a random one."""
        if seed is not None and seed != LLAMA_DEFAULT_SEED and seed >= 0:
            return seed
        if self._seed != LLAMA_DEFAULT_SEED and self._seed >= 0:
            return random.Random(self._seed).getrandbits(63)
        return secrets.randbits(63)

    def set_seed(self, seed: int) -> None:
        """Sets the seed of the calls that follow."""
        self._seed = seed
        self._sampler_seed = random.Random(self.next_seed(None))

    # --- completions ---------------------------------------------------------------------------------------------------------------------

    def create_completion(
        self,
        prompt: str | Sequence[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | Sequence[str] | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        model: str | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        grammar: "LlamaGrammar | None" = None,
        logit_bias: dict[Any, float] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """Continues a text.

        Args:
            prompt: text (control tokens' names count as those tokens) or token ids.
            suffix: not supported; must be empty.
            max_tokens: exactly how many tokens at most; None or negative: until the context is full.
            temperature, top_k, top_p, min_p, typical_p: the draw; temperature 0 takes the most likely token.
            repeat_penalty, frequency_penalty, presence_penalty: against tokens among the last 64.
            logprobs: report log-probabilities with so many alternatives a token.
            echo: the prompt stands before the text.
            stop: ends the text at the first of these strings, which is not part of it.
            stream: return an iterator of pieces.
            seed: of this call; None: the model's.
            model: name to report.
            stopping_criteria, logits_processor: lists of callables, see `turboquant_native.sampling`.
            grammar: a `LlamaGrammar`. logit_bias: {token: added to its logit}; works together with processors.

        Returns:
            {"id", "object": "text_completion", "created", "model", "choices": [{"text", "index", "logprobs", "finish_reason"}], "usage"};
            with stream an iterator of such dicts without usage, whose last one has the finish reason ("stop" or "length").

        Raises ValueError for a prompt that does not fit n_ctx and for arguments out of range, RuntimeError once the model is closed.
        """
        refuse_unsupported(suffix=suffix, **kwargs)
        request = completion.CompletionRequest(
            prompt=prompt,
            max_tokens=max_tokens,
            sampling=SamplingOptions(temperature, top_k, top_p, min_p, typical_p, repeat_penalty, frequency_penalty, presence_penalty),
            stop=stop,
            logprobs=logprobs,
            echo=echo,
            seed=seed,
            stopping_criteria=stopping_criteria,
            logits_processor=logits_processor,
            grammar=grammar,
            logit_bias=logit_bias,
        )
        return (completion.stream if stream else completion.complete)(self, request, model)

    __call__ = create_completion

    def create_chat_completion(
        self,
        messages: Sequence[dict[str, Any]],
        functions: Any = None,
        function_call: Any = None,
        tools: Sequence[dict[str, Any]] | None = None,
        tool_choice: Any = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        stream: bool = False,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        response_format: dict[str, Any] | None = None,
        max_tokens: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        model: str | None = None,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        grammar: "LlamaGrammar | None" = None,
        logit_bias: dict[Any, float] | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """Answers a conversation through the model's chat template.

        Args:
            messages: [{"role": "system" | "user" | "assistant" | "tool", "content": text or text parts}, ...].
            functions, function_call: OpenAI's old names, not supported: use tools.
            tools: given to the template; the file's template "tool_use" is used where it has one.
            tool_choice: "none", "auto", or {"type": "function", "function": {"name": ...}}, which constrains the answer to that tool's
                arguments and returns a tool call; "required" is the same for a single tool.
            response_format: {"type": "text" | "json_object" | "json_schema", ...}; constrains the answer.
            logprobs, top_logprobs: report log-probabilities, with so many alternatives a token.
            chat_template_kwargs: more variables of the template, such as {"enable_thinking": False}.
            The rest is `create_completion`'s.

        Returns:
            {"id", "object": "chat.completion", "created", "model", "usage",
            "choices": [{"index", "message", "logprobs", "finish_reason"}]};
            with stream an iterator of "chat.completion.chunk" dicts with "delta".

        Raises TemplateError (a ValueError) when there is no usable template, and what `create_completion` raises.
        """
        if functions is not None or function_call is not None:
            raise ValueError("functions and function_call are not supported; use tools and tool_choice")
        if self.chat_handler is not None:
            given = {name: value for name, value in locals().items() if name not in ("self", "kwargs", "functions", "function_call")}
            answer: dict[str, Any] | Iterator[dict[str, Any]] = self.chat_handler(llama=self, **given, **kwargs)
            return answer
        refuse_unsupported(**kwargs)
        request = completion.CompletionRequest(
            prompt="",
            max_tokens=max_tokens,
            sampling=SamplingOptions(temperature, top_k, top_p, min_p, typical_p, repeat_penalty, frequency_penalty, presence_penalty),
            stop=stop,
            logprobs=(top_logprobs or 0) if logprobs else None,
            seed=seed,
            logits_processor=logits_processor,
            grammar=grammar,
            logit_bias=logit_bias,
        )
        chat = ChatCompletion(self, messages, request, tools, tool_choice, response_format, model, chat_template_kwargs)
        return chat.stream() if stream else chat.finish()

    def create_chat_completion_openai_v1(self, *args: Any, **kwargs: Any) -> Any:
        """`create_chat_completion` as objects of the `openai` package (ChatCompletion, or an iterator of ChatCompletionChunk)."""
        try:
            from openai.types.chat import ChatCompletion as Answer
            from openai.types.chat import ChatCompletionChunk as Piece
        except ImportError as error:
            raise ImportError("create_chat_completion_openai_v1 needs the openai package: pip install openai") from error
        answer = self.create_chat_completion(*args, **kwargs)
        if isinstance(answer, dict):
            return Answer.model_validate(answer)
        return (Piece.model_validate(chunk) for chunk in answer)

    def generate_batch(self, prompts: Sequence[str | Sequence[int]], *, n_slots: int = 8, **options: Any) -> list[dict[str, Any]]:
        """Continues many prompts at once, `n_slots` of them running at any time.

        Args:
            prompts: texts or token ids. n_slots: sequences in one forward pass; each needs its own cache memory.
            **options: max_tokens, temperature, top_k, ... as for `create_completion`, without stream and echo.

        Returns completions in the order of the prompts; with temperature 0 each is what it would be alone.
        """
        if isinstance(prompts, str):
            raise TypeError(f"prompts must be a list of prompts, got the text {prompts!r}")
        requests = [completion.request(prompt, **options) for prompt in prompts]
        return batch.generate(self, requests, n_slots)

    # --- embeddings ----------------------------------------------------------------------------------------------------------------------

    def create_embedding(self, input: str | Sequence[str], model: str | None = None) -> dict[str, Any]:
        """Normalized embeddings: {"object": "list", "data": [{"object": "embedding", "embedding", "index"}], "model", "usage"}."""
        return embedding.create(self, input, model)

    def embed(self, input: str | Sequence[str], normalize: bool = False, truncate: bool = True, return_count: bool = False) -> Any:
        """Embeddings as lists of n_embd floats, one a text (one a token with pooling NONE); ValueError for a text longer than n_ctx.

        truncate: cut longer texts instead. return_count: return (embeddings, number of tokens).
        """
        texts = [input] if isinstance(input, str) else list(input)
        tokens = [self.tokenize(text.encode(), special=True)[: self.n_ctx() if truncate else None] for text in texts]
        vectors = [embedding.embed(self, ids, normalize).tolist() for ids in tokens]
        result = vectors[0] if isinstance(input, str) else vectors
        return (result, sum(map(len, tokens))) if return_count else result

    # --- the cache of states -------------------------------------------------------------------------------------------------------------

    def _recall(self, prompt: NDArray[np.intc]) -> None:
        """Loads the state that shares most with a prompt, when the cache of states knows more than the engine's own."""
        states = self._cache_of_states
        if states is not None and prompt.tolist() in states:
            state = states[prompt.tolist()]
            if common_prefix(state.input_ids, prompt) > common_prefix(self._cache.tokens, prompt):
                self.load_state(state)

    def _remember(self, generation: Generation) -> None:
        self.timings = generation.timings
        if self._cache_of_states is not None:
            self._cache_of_states[self.input_ids.tolist()] = self.save_state()
        self._log("%s", generation.timings)

    # --- states --------------------------------------------------------------------------------------------------------------------------

    def save_state(self) -> LlamaState:
        """The present moment: tokens, keys and values, logits."""
        with self._lock:
            return LlamaState(self.input_ids, self._cache.save(), self._cache.last_logits, self._seed)

    def load_state(self, state: LlamaState) -> None:
        """Goes back to a saved moment of the same model; FormatError when the state belongs to another."""
        with self._lock:
            self._cache.restore(state.llama_state, state.input_ids, state.logits)
            self._seed = state.seed

    def set_cache(self, cache: LlamaRAMCache | None) -> None:
        """Keeps the states of finished completions in `cache`, so that any earlier prompt's prefix can be taken up again."""
        self._cache_of_states = cache
