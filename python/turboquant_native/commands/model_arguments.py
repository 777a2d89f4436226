"""Arguments of the commands that run a model, and the way from them to a loaded `Llama`: found or made, looked at, warned about."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import ConvertError
from ..engine.cache_types import CACHE_HELP, OFFERED, Choice, measured_choice, types_of
from .terminal.console import Console, size

if TYPE_CHECKING:
    from ..api.fit import Fit, ModelFile

MODEL_HELP = "a file, a folder, org/name of the Hugging Face hub, or a name of `tqn ls`"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, engine and sampling arguments."""
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("-n", "--max-tokens", type=int, default=-1, help="tokens of an answer at most; -1: until it is done (%(default)s)")
    parser.add_argument(
        "--ctx", type=int, metavar="N", help="tokens that the context holds (default: the model's own, as far as free memory goes)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="(default: this process's cores)")
    parser.add_argument("--gpu", action="store_true", help="run on a GPU (default: the CPU)")
    parser.add_argument("--precision", choices=("int8", "f32"), default="int8", help="activations of packed matrices (%(default)s)")
    parser.add_argument("--cache", choices=OFFERED, default="f16", help=CACHE_HELP)
    parser.add_argument("--chat-format", help="chatml, llama-3, gemma or a jinja2 template (default: the file's)")
    parser.add_argument("--fit-only", action="store_true", help="only say what the model would need and how fast it would be")
    group = parser.add_argument_group("sampling")
    group.add_argument("--temperature", "--temp", type=float, default=0.7, help="0: always the most likely token (%(default)s)")
    group.add_argument("--top-k", type=int, default=40, help="draw from so many; 0: from all (%(default)s)")
    group.add_argument("--top-p", type=float, default=0.95, help="draw from the likeliest of this probability together (%(default)s)")
    group.add_argument("--min-p", type=float, default=0.05, help="and at least this share of the likeliest's (%(default)s)")
    group.add_argument("--repeat-penalty", type=float, default=1.0, help="above 1: against repeating (%(default)s)")
    group.add_argument("--seed", type=int, help="same seed, same text (default: random)")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end at this text; repeatable")


def options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of a completion."""
    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed", "stop")
    return {name: getattr(args, name) for name in names}


def find_model(model: str) -> Path:
    """The file of what a user calls a model; made first where it has to be."""
    from ..api.models import Models

    return Models(convert).path(model)


def convert(source: str, target: Path, given: Sequence[str]) -> None:
    """`tqn convert`, whose words go to standard error; ConvertError when it fails (it has said why)."""
    from . import convert as command

    print(f"converting {source}, once", file=sys.stderr, flush=True)
    with contextlib.redirect_stdout(sys.stderr):
        code = command.main([source, str(target), "--overwrite", *given])
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise ConvertError(f"{source}: could not be converted")


@dataclass(frozen=True)
class Opened:
    """A model that is ready."""

    llm: Any
    file: ModelFile
    args: argparse.Namespace

    @property
    def n_ctx_train(self) -> int:
        """Tokens that the model was trained for."""
        return self.file.n_ctx_train

    def has_template(self) -> bool:
        """Whether it can chat."""
        return bool(self.args.chat_format) or any(key.startswith("tokenizer.chat_template") for key in self.file.metadata)

    def too_long(self, text: str) -> str:
        """What to do about a prompt that does not fit."""
        tokens = len(self.llm.tokenize(text.encode(errors="replace")))
        text = f"the prompt has {tokens} tokens, the context holds {self.llm.n_ctx()}"
        if tokens < self.n_ctx_train:
            return f"{text}: --ctx {self.n_ctx_train} is the model's limit"
        return f"{text}, and the model's limit is {self.n_ctx_train}"

    def record_speed(self) -> None:
        """For later estimates."""
        from ..api import machine

        timings = self.llm.timings
        machine.record(self.args.threads or 0, self.args.gpu, self.file.token_bytes, timings.generated_tokens, timings.generation_seconds)


@contextlib.contextmanager
def open_model(args: argparse.Namespace, console: Console) -> Iterator[Opened]:
    """The model that the arguments describe; ValueError or MemoryError where it cannot be run as asked."""
    from ..api.fit import ModelFile
    from ..api.llama import Llama

    _check(args, console)
    file = ModelFile(find_model(args.model))
    n_ctx = _context(file, args, console)
    type_k, type_v = types_of(args.cache)
    with console.waiting(f"loading {Path(file.path).name}"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_ctx=")  # said above, with the option's name
        llm = Llama(
            file.path,
            n_ctx=n_ctx,
            n_threads=args.threads,
            n_gpu_layers=-1 if args.gpu else 0,
            precision=args.precision,
            type_k=type_k,
            type_v=type_v,
            chat_format=args.chat_format,
            verbose=False,
        )
    with llm:
        if llm.engine.why_cache:
            console.note(f"(cache: {llm.engine.cache}: {llm.engine.why_cache})")
        yield Opened(llm, file, args)


def print_fit(args: argparse.Namespace, as_json: bool) -> int:
    """The estimate alone; 1 where the model does not fit."""
    from ..api.fit import ModelFile

    console = Console()
    _check(args, console)
    file = ModelFile(find_model(args.model))
    cache, why = _cache(file, args)
    if why:
        console.note(f"(cache: {cache}: {why})")
    fit = file.fit(args.ctx, threads=args.threads or 0, gpu=args.gpu, cache=cache)
    print(json.dumps(fit.to_dict()) if as_json else _fit_text(fit))
    return 0 if fit.fits else 1


def _cache(file: ModelFile, args: argparse.Namespace) -> Choice:
    """The cache's type for the estimate, and why `auto` takes it: float32 activations have a float32 cache unless it is quantized."""
    choice = Choice(args.cache, "")
    if args.cache == "auto":
        choice = measured_choice(str(file.metadata.get("general.architecture")), (dim for _, dim, _ in file.layers), file.balanced)
    return choice._replace(cache="f32") if args.precision == "f32" and choice.cache == "f16" else choice


def _check(args: argparse.Namespace, console: Console) -> None:
    from .. import _core

    if args.threads is not None and args.threads < 0:
        raise ValueError(f"--threads {args.threads}: give 0 (this process's cores) or more")
    if args.ctx is not None and args.ctx < 0:
        raise ValueError(f"--ctx {args.ctx}: give 0 (the model's own) or more")
    if args.threads and args.threads > _core.cpu_count():
        console.note(f"warning: --threads {args.threads} on {_core.cpu_count()} cores: more threads than cores is slower")


def _context(file: ModelFile, args: argparse.Namespace, console: Console) -> int:
    """Positions of the context: those asked for, else the model's own as far as memory goes."""
    fit = file.fit(args.ctx, probe=False, cache=_cache(file, args).cache)
    if args.ctx is not None and fit.n_ctx > fit.n_ctx_train:
        console.note(f"warning: --ctx {args.ctx} is beyond the {fit.n_ctx_train} tokens that the model was trained for")
    if not fit.fits and not args.gpu:
        raise MemoryError(_refusal(fit))
    if args.ctx is None and fit.n_ctx < fit.n_ctx_train:
        console.note(f"(context: {fit.n_ctx} tokens, as free memory allows; the model's own is {fit.n_ctx_train})")
    return fit.n_ctx


def _refusal(fit: Fit) -> str:
    remedy = f"--ctx {fit.largest_ctx} is the largest that fits" if fit.largest_ctx else "no context fits"
    return f"{os.path.basename(fit.model)} needs {_needs(fit)}; {size(fit.free)} are free: {remedy}"


def _needs(fit: Fit) -> str:
    states = f"recurrent states {size(fit.states)}, " if fit.states else ""
    parts = f"weights {size(fit.weights)}, context of {fit.n_ctx} tokens {size(fit.cache)}, {states}workspace {size(fit.workspace)}"
    return f"{size(fit.needed)} ({parts})"


def _fit_text(fit: Fit) -> str:
    rate = f"{fit.tokens_per_second:.0f}" if fit.tokens_per_second >= 10 else f"{fit.tokens_per_second:.1f}"
    speed = f"{'about' if fit.measured else 'at most'} {rate} tokens/s, {'as earlier answers' if fit.measured else 'by memory bandwidth'}"
    return "\n".join(
        [
            f"model      {fit.model}",
            f"weights    {size(fit.weights)}",
            f"context    {size(fit.cache)} for {fit.n_ctx} tokens (the model's own: {fit.n_ctx_train})",
            *([f"states     {size(fit.states)} of recurrent layers, snapshots included"] if fit.states else []),
            f"workspace  {size(fit.workspace)}",
            f"together   {size(fit.needed)} of {size(fit.free)} that are free",
            f"speed      {speed if fit.tokens_per_second else 'unknown'}",
            "fits" if fit.fits else f"does not fit: --ctx {fit.largest_ctx} would" if fit.largest_ctx else "does not fit with any context",
        ]
    )
