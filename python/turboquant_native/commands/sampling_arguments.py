"""Arguments that every generating command has."""

import argparse
from typing import Any


def add_arguments(parser: argparse.ArgumentParser, temperature: float, max_tokens: int) -> None:
    """Model, engine and sampling arguments; the defaults that differ between commands are given."""
    parser.add_argument("model", help="model file")
    parser.add_argument(
        "-n", "--max-tokens", type=int, default=max_tokens, help="tokens to generate; -1: until the context is full (%(default)s)"
    )
    parser.add_argument("--ctx", type=int, default=2048, help="positions of the context; 0: the model's (%(default)s)")
    parser.add_argument("--threads", type=int, help="default: this process's cores")
    parser.add_argument("--gpu", action="store_true", help="run on a GPU")
    parser.add_argument("--precision", choices=("int8", "f32"), default="int8", help="activations of packed matrices (%(default)s)")
    parser.add_argument("--chat-format", help="chatml, llama-3, gemma or a jinja2 template (default: the file's)")
    group = parser.add_argument_group("sampling")
    group.add_argument("--temperature", "--temp", type=float, default=temperature, help="0: always the most likely token (%(default)s)")
    group.add_argument("--top-k", type=int, default=40, help="(%(default)s)")
    group.add_argument("--top-p", type=float, default=0.95, help="(%(default)s)")
    group.add_argument("--min-p", type=float, default=0.05, help="(%(default)s)")
    group.add_argument("--repeat-penalty", type=float, default=1.0, help="(%(default)s)")
    group.add_argument("--seed", type=int, help="same seed, same text (default: random)")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end at this text; repeatable")


def open_model(args: argparse.Namespace) -> Any:
    """The `Llama` that the arguments describe."""
    from ..api.llama import Llama

    if args.threads is not None and args.threads < 0:
        raise ValueError(f"--threads {args.threads}: give 0 (this process's cores) or more")
    return Llama(
        args.model,
        n_ctx=args.ctx,
        n_threads=args.threads,
        n_gpu_layers=-1 if args.gpu else 0,
        precision=args.precision,
        chat_format=args.chat_format,
        verbose=False,
    )


def options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of a completion."""
    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed", "stop")
    return {name: getattr(args, name) for name in names}
