"""`tqn bench`: prompt and generation speed of a model, or of random weights in a known model's shape.

pp512: a prompt of 512 tokens from an empty cache; tg128: 128 tokens one by one from an empty cache; medians of the repeats. GB/s is the
bytes of weights that one token must read times tg, to be compared with the machine's memory bandwidth.
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from ..common.system import peak_memory


@dataclass(frozen=True)
class Speed:
    """One row: rates in tokens/s, times in seconds, memory in bytes. `prompt` and `generated` are the token counts of pp and tg."""

    model: str
    backend: str
    precision: str
    threads: int
    prompt: int
    generated: int
    pp: float
    tg: float
    gigabytes_per_second: float
    ttft: float
    load: float
    weight_bytes: int
    peak_memory: int


@dataclass(frozen=True)
class Settings:
    """What is measured: tokens of the prompt and of the generation, repeats, numbers of sequences to run together, and how."""

    prompt: int = 512
    generate: int = 128
    repeats: int = 3
    batch: tuple[int, ...] = ()
    precision: str = "int8"
    gpu: bool = False
    profile: bool = False
    depths: tuple[int, ...] = ()
    caches: tuple[str, ...] = ("f16",)


@dataclass(frozen=True)
class AtDepth:
    """Speed with so many positions cached: tokens/s of the prompt that filled them (0: none did), of generation behind them, and bytes of
    the context (cache and workspace)."""

    depth: int
    cache: str
    prompt: float
    generation: float
    context_bytes: int


class Bench:
    """One model with one number of threads (0: this process's cores)."""

    def __init__(self, path: str, threads: int, settings: Settings) -> None:
        from .. import _core
        from ..engine.devices import device

        self._core, self._settings = _core, settings
        self.threads = threads or _core.cpu_count()
        start = time.perf_counter()
        self.model = _core.Model(
            os.fsencode(path), device=device(-1 if settings.gpu else 0, path), threads=threads, precision=settings.precision
        )
        self.context = _core.Context(self.model, n_ctx=settings.prompt + settings.generate, n_batch=512)
        self.load = time.perf_counter() - start
        self._tokens = np.random.default_rng(1).integers(0, self.context.n_vocab, settings.prompt + settings.generate).astype(np.int32)

    def prompt(self) -> None:
        """One prompt from an empty cache."""
        self.context.eval(self._tokens[: self._settings.prompt], 0)

    def generate(self) -> None:
        """Tokens one by one from an empty cache."""
        for position in range(self._settings.generate):
            self.context.eval(self._tokens[position : position + 1], position)

    def measure(self, name: str) -> Speed:
        """The row of this model."""
        settings = self._settings
        prompt_seconds = _median_seconds(self.prompt, settings.repeats)
        generate_seconds = _median_seconds(self.generate, settings.repeats)
        tg = settings.generate / generate_seconds
        return Speed(
            model=name,
            backend=self.model.backend,
            precision=settings.precision,
            threads=self.threads,
            prompt=settings.prompt,
            generated=settings.generate,
            pp=settings.prompt / prompt_seconds,
            tg=tg,
            gigabytes_per_second=self.model.weight_bytes * tg / 1e9,
            ttft=prompt_seconds,
            load=self.load,
            weight_bytes=self.model.weight_bytes,
            peak_memory=peak_memory(),
        )

    def extras(self) -> dict[str, Any]:
        """What was asked for besides: speed behind long prompts, tokens/s of several sequences together, profile."""
        found: dict[str, Any] = {}
        if self._settings.depths:
            found["depth"] = [asdict(self._at_depth(depth, cache)) for depth in self._settings.depths for cache in self._settings.caches]
        if self._settings.batch:
            found["batch"] = {count: self._throughput(count) for count in self._settings.batch}
        if self._settings.profile:
            found["profile"] = self._profile()
        return found

    def _profile(self) -> dict[str, float]:
        """Seconds of each kind of work over one generation, tokens drawn with the default options; "rest" is what passes do not count:
        waking threads and the calls from Python."""
        context, sampler, drawing = self.context, self._core.Sampler(seed=1), 0.0
        few_candidates_decide = sampler.needed_candidates(context.n_vocab) > 0
        context.profile(True)
        start = time.perf_counter()
        for position in range(self._settings.generate):
            token = self._tokens[position : position + 1]
            if few_candidates_decide:
                draw = partial(sampler.sample_best, context.eval_best(token, position))
            else:
                draw = partial(sampler.sample, context.eval(token, position), [])
            drawn = time.perf_counter()
            draw()
            drawing += time.perf_counter() - drawn
        total = time.perf_counter() - start
        seconds: dict[str, float] = context.profile(False)
        seconds["sampler"] = seconds.get("sampler", 0.0) + drawing
        seconds["rest"] = total - sum(seconds.values())
        return seconds

    def _at_depth(self, depth: int, cache: str) -> AtDepth:
        context = self._core.Context(self.model, n_ctx=depth + self._settings.generate, n_batch=512, cache=cache)
        try:
            tokens = np.resize(self._tokens, max(depth, 1))
            start = time.perf_counter()
            if depth:
                context.eval(tokens, 0, logits="none")
            seconds, times = time.perf_counter() - start, []
            for position in range(depth, depth + self._settings.generate):
                start = time.perf_counter()
                context.eval(self._tokens[:1], position)
                times.append(time.perf_counter() - start)
            return AtDepth(depth, cache, depth / seconds if depth else 0.0, 1 / median(times), int(context.memory_bytes))
        finally:
            context.close()

    def _throughput(self, count: int) -> float:
        """Tokens/s of `count` sequences that generate together."""
        context = self._core.Context(self.model, n_ctx=self._settings.generate, n_slots=count, n_batch=max(count, 16))
        rows = np.arange(count, dtype=np.int32)

        def generate() -> None:
            for position in range(self._settings.generate):
                context.forward(self._tokens[:1].repeat(count), np.full(count, position, np.int32), rows, rows)

        try:
            return float(count * self._settings.generate / _median_seconds(generate, self._settings.repeats))
        finally:
            context.close()

    def close(self) -> None:
        """Frees everything."""
        self.context.close()
        self.model.close()


def _median_seconds(work: Callable[[], None], repeats: int) -> float:
    """Median time of `repeats` runs after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)
