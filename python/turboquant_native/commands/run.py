"""`tqn run`: a chat at a terminal; with a prompt, or from a pipe, one answer."""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import model_arguments
from .model_arguments import Opened
from .terminal.answer import show
from .terminal.console import Console, size
from .terminal.conversation import Conversation, prompt_length
from .terminal.session import Session, ending
from .terminal.speed import speed_line, speeds

EXAMPLES = """
  tqn run model.tqn.gguf                       chat
  tqn run model.tqn.gguf "Why is the sky blue?"
  tqn run org/name                             from the hub
  cat notes.txt | tqn run model.tqn.gguf "Summarize this:"
  tqn run model.tqn.gguf --raw -p "Once upon a time" -n 64
  tqn run model.tqn.gguf --fit-only --ctx 32768
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    add_chat_arguments(parser)
    parser.add_argument("words", nargs="*", metavar="PROMPT", help="what to answer; piped text follows it (default: chat)")
    parser.add_argument("-p", "--prompt", help="the same; standard input is not read then")
    parser.add_argument(
        "--raw", action="store_true", help="continue the prompt as it stands (default where the model has no chat template)"
    )
    parser.add_argument("--chat", action="store_true", help="answer through the chat template (default where the model has one)")
    parser.add_argument("--echo", action=argparse.BooleanOptionalAction, default=False, help="with --raw: also print the prompt (no)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of streaming")


def add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    """What `run` and `chat` share."""
    model_arguments.add_arguments(parser)
    parser.add_argument("--system", metavar="TEXT", help="system message (default: the template's)")


def take_words(args: argparse.Namespace, words: Sequence[str]) -> None:
    """Words of the prompt that stood behind options."""
    args.words = [*args.words, *words]


def run(args: argparse.Namespace) -> int:
    """Runs the command; errors are exceptions."""
    if args.raw and (args.chat or args.system):
        raise ValueError("--raw knows no chat template: leave out --chat and --system")
    if args.words and args.prompt is not None:
        raise ValueError("give the prompt once, as words or with -p")
    if args.fit_only:
        return model_arguments.print_fit(args, args.json)
    prompt = _prompt(args)
    console = Console()
    with model_arguments.open_model(args, console) as opened:
        if prompt is None:
            return converse(opened, console)
        return _answer_once(opened, console, prompt)


def _prompt(args: argparse.Namespace) -> str | None:
    """The one prompt to answer, None for a chat."""
    if args.prompt is not None:
        return str(args.prompt)
    given = " ".join(args.words)
    if not given:
        return None if sys.stdin.isatty() and not args.json else _standard_input()
    return f"{given}\n\n{piped}" if _is_piped() and (piped := _standard_input()).strip() else given


def _is_piped() -> bool:
    """Whether standard input is a pipe or a file, not a terminal or /dev/null."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _standard_input() -> str:
    """The text there, whatever the locale says; ValueError where it is not UTF-8."""
    if not hasattr(sys.stdin, "buffer"):
        return sys.stdin.read()
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is no UTF-8 text: byte 0x{data[error.start]:02x} at position {error.start}") from None


def _answer_once(opened: Opened, console: Console, prompt: str) -> int:
    args, llm = opened.args, opened.llm
    raw = args.raw or not (args.chat or opened.has_template())
    if raw and args.system:
        raise ValueError(f"--system: {opened.file.path} has no chat template; --chat-format chatml names one")
    tokens = len(llm.tokenize(prompt.encode(errors="replace"), special=True)) if raw else prompt_length(llm, _messages(args, prompt))
    if tokens >= llm.n_ctx():
        raise ValueError(opened.too_long(prompt))
    if args.json:
        print(json.dumps({**_call(llm, prompt, args, raw, stream=False), "timings": speeds(llm.timings)}))
        return 0
    parts = _call(llm, prompt, args, raw, stream=True)  # wrong arguments raise here, before anything is shown
    if raw and args.echo:
        console.write(prompt)
    shown = show(console, parts, f"reading {tokens} tokens")
    if note := ending(shown.finish_reason, args.max_tokens, llm):
        console.note(note)
    if shown.finish_reason is None:
        return 130
    console.note(speed_line(llm.timings))
    opened.record_speed()
    return 0


def _messages(args: argparse.Namespace, prompt: str) -> list[dict[str, str]]:
    opening = [{"role": "system", "content": args.system}] if args.system else []
    return [*opening, {"role": "user", "content": prompt}]


def _call(llm: Any, prompt: str, args: argparse.Namespace, raw: bool, stream: bool) -> Any:
    given = model_arguments.options(args)
    if raw:
        return llm.create_completion(prompt, stream=stream, **given)
    return llm.create_chat_completion(_messages(args, prompt), stream=stream, **given)


def converse(opened: Opened, console: Console) -> int:
    """The chat, until the person leaves."""
    from ..api.store import home
    from .terminal.lines import open_lines

    args, llm = opened.args, opened.llm
    if not opened.has_template():
        raise ValueError(f"{opened.file.path}: has no chat template; --chat-format chatml names one, --raw -p TEXT continues a text")
    conversation = Conversation(llm, args.system, model_arguments.options(args))
    name = Path(opened.file.path).name
    console.note(f"{name}: {size(opened.file.weight_bytes)}, context of {llm.n_ctx()} tokens. /help lists the commands.")
    session = Session(llm, conversation, console, opened.too_long)
    session.run(open_lines(home() / "history", session.words()))
    opened.record_speed()
    return 0
