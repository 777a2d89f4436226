"""`tqn run`: one prompt, one answer, and how fast it was."""

import argparse
import json
import sys
from typing import Any

from . import sampling_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    sampling_arguments.add_arguments(parser, temperature=0.8, max_tokens=128)
    parser.add_argument("-p", "--prompt", help="the text to continue (default: standard input)")
    parser.add_argument("--chat", action="store_true", help="the prompt is a user's message, answered through the chat template")
    parser.add_argument("--system", help="system message, with --chat")
    parser.add_argument("--no-echo", action="store_true", help="print only what is generated")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of streaming")


def run(args: argparse.Namespace) -> int:
    """Runs the command; errors are exceptions."""
    prompt = _standard_input() if args.prompt is None else args.prompt
    with sampling_arguments.open_model(args) as llm:
        if args.json:
            print(json.dumps({**_call(llm, prompt, args, stream=False), "timings": speeds(llm.timings)}))
            return 0
        parts = _call(llm, prompt, args, stream=True)  # wrong arguments raise here, before anything is shown
        if not args.chat and not args.no_echo:
            print(prompt, end="", flush=True)
        for part in parts:
            choice = part["choices"][0]
            print(choice.get("text") or choice.get("delta", {}).get("content") or "", end="", flush=True)
        print(flush=True)
        print(speed_line(llm.timings), file=sys.stderr)
    return 0


def _standard_input() -> str:
    """The text there, whatever the locale says; ValueError where it is not UTF-8."""
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is no UTF-8 text: byte 0x{data[error.start]:02x} at position {error.start}") from None


def _call(llm: Any, prompt: str, args: argparse.Namespace, stream: bool) -> Any:
    options = sampling_arguments.options(args)
    if not args.chat:
        return llm.create_completion(prompt, stream=stream, **options)
    messages = [{"role": "system", "content": args.system}] if args.system else []
    return llm.create_chat_completion([*messages, {"role": "user", "content": prompt}], stream=stream, **options)


def speeds(timings: Any) -> dict[str, float]:
    """Counts, seconds and tokens/s of the last completion."""
    return {
        "prompt_tokens": timings.prompt_tokens,
        "prompt_seconds": timings.prompt_seconds,
        "prompt_tokens_per_second": _rate(timings.prompt_tokens, timings.prompt_seconds),
        "generated_tokens": timings.generated_tokens,
        "generation_seconds": timings.generation_seconds,
        "generation_tokens_per_second": _rate(timings.generated_tokens, timings.generation_seconds),
    }


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 else 0.0


def speed_line(timings: Any) -> str:
    """The same for people."""
    rates = speeds(timings)
    return (
        f"prompt: {timings.prompt_tokens} tokens, {rates['prompt_tokens_per_second']:.1f} tokens/s;  "
        f"generation: {timings.generated_tokens} tokens, {rates['generation_tokens_per_second']:.1f} tokens/s"
    )
