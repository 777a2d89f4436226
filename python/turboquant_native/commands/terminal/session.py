"""The chat at a terminal: messages, slash commands, Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...engine.sampling import SamplingOptions
from .answer import show
from .console import Console
from .conversation import Conversation, PromptTooLong
from .lines import Lines, message
from .speed import speed_line

_ABBREVIATED = {"temp": "temperature", "n": "max_tokens"}
_WHOLE = ("top_k", "seed", "max_tokens")
_SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "max_tokens", "seed")
_LONGEST_FILE = 1 << 26  # bytes of a text that /read takes
_KEYS = (
    ('"""', "begins and ends a message of several lines"),
    ("Ctrl-C", "stops an answer; twice on an empty line, or Ctrl-D: leaves"),
)


@dataclass(frozen=True)
class Command:
    """A slash command. act: gets what stands behind its name."""

    usage: str
    does: str
    act: Callable[[str], None]


class Session:
    """One conversation of one person with one model.

    Args:
        llm: a `Llama`. too_long: (text) -> what to say about a prompt that does not fit.
    """

    def __init__(self, llm: Any, conversation: Conversation, console: Console, too_long: Callable[[str], str]) -> None:
        self._llm, self._conversation, self._console, self._too_long = llm, conversation, console, too_long
        self._attached: list[str] = []
        self._over = False
        commands = (
            Command("/regen", "answers the last message anew", self._regenerate),
            Command("/clear", "begins a new conversation", self._clear),
            Command("/read FILE", "the file's text goes with the next message", self._read),
            Command("/system [TEXT]", "shows or sets the system message", self._system),
            Command("/set [NAME VALUE]", f"shows or sets {', '.join(_SETTINGS)}", self._set),
            Command("/save FILE", "writes the conversation", self._save),
            Command("/load FILE", "takes up a written conversation", self._load),
            Command("/speed", "tokens a second of the last answer, context used", self._speed),
            Command("/help", "this list", self._help),
            Command("/bye", "leaves, as /exit and /quit do", self._leave),
        )
        self._commands = {command.usage.split()[0]: command for command in commands}
        self._commands |= {"/exit": self._commands["/bye"], "/quit": self._commands["/bye"]}

    def run(self, lines: Lines) -> None:
        """Until the person leaves, or the lines end."""
        interrupted = False
        while not self._over:
            try:
                text = message(lines)
            except EOFError:
                return
            except KeyboardInterrupt:
                if interrupted:
                    return
                interrupted = True
                self._console.note("(Ctrl-C once more or Ctrl-D leaves)")
                continue
            interrupted = False
            if text:
                self._handle(text)

    def _handle(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        if not name.startswith("/") or "/" in name[1:] or "\n" in name:  # a path is no command
            self._ask(text)
        elif name not in self._commands:
            self._console.note(f"there is no {name}; /help lists the commands")
        else:
            try:
                self._commands[name].act(rest.strip())
            except (OSError, ValueError) as error:
                self._console.note(f"{name}: {error}")

    def _ask(self, text: str) -> None:
        whole = "\n\n".join([*self._attached, text])
        first = self._conversation.first
        try:
            parts = self._conversation.ask(whole)
        except PromptTooLong:
            self._console.note(self._too_long(whole))
            return
        except ValueError as error:  # the template refuses, a setting is out of range
            self._console.note(str(error))
            return
        self._attached = []
        if self._conversation.first > first:
            left_out = (self._conversation.first - first) // 2
            self._console.note(f"(the context of {self._llm.n_ctx()} tokens is full: the oldest {left_out} turns are no longer sent)")
        shown = show(self._console, parts, f"reading {len(self._llm.tokenize(whole.encode(errors='replace')))} tokens")
        self._conversation.answered(shown.text, shown.finish_reason is not None)
        if note := ending(shown.finish_reason, self._conversation.options.get("max_tokens"), self._llm):
            self._console.note(note)

    # --- commands ------------------------------------------------------------------------------------------------------------------------

    def _regenerate(self, _: str) -> None:
        taken = self._conversation.take_back()
        if taken is None:
            self._console.note("/regen: nothing has been answered yet")
            return
        if (self._conversation.options.get("seed") or -1) >= 0 or self._conversation.options["temperature"] <= 0:
            self._console.note("(with a fixed seed or temperature 0 the answer stays the same: /set temperature 0.7, /set seed -1)")
        kept = len(self._conversation.messages)
        self._ask(taken[0])
        if len(self._conversation.messages) == kept:  # stopped before its first word: the old answer stays
            self._conversation.messages += [{"role": "user", "content": taken[0]}, {"role": "assistant", "content": taken[1]}]

    def _clear(self, _: str) -> None:
        self._conversation.clear()
        self._attached = []
        self._console.note("(a new conversation)")

    def _read(self, name: str) -> None:
        path = _path(name)
        if not path.is_file():
            raise ValueError(f"{path}: no such file" if not path.exists() else f"{path}: is no regular file")
        if path.stat().st_size > _LONGEST_FILE:
            raise ValueError(f"{path}: {path.stat().st_size} bytes; at most {_LONGEST_FILE} are read")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: is no UTF-8 text (byte {error.start})") from None
        tokens = len(self._llm.tokenize(text.encode()))
        if tokens >= self._llm.n_ctx():
            raise ValueError(f"{path}: {tokens} tokens, the context holds {self._llm.n_ctx()}")
        self._attached.append(f"{path.name}:\n{text}")
        self._console.note(f"({path.name}: {tokens} tokens, sent with your next message)")

    def _system(self, text: str) -> None:
        if text:
            self._conversation.system = text
        self._console.note(f"system: {self._conversation.system or '(none)'}")

    def _set(self, text: str) -> None:
        options = self._conversation.options
        if text:
            name, value = _setting(text)
            options[name] = value
        self._console.note("  ".join(f"{name} {_shown(options.get(name))}" for name in _SETTINGS))

    def _save(self, name: str) -> None:
        path = _path(name)
        if path.exists() and not path.is_file():
            raise ValueError(f"{path}: is no regular file")
        self._conversation.save(path)
        self._console.note(f"(written: {path})")

    def _load(self, name: str) -> None:
        self._conversation.load(_path(name))
        self._console.note(f"({len(self._conversation.messages) // 2} turns)")

    def _speed(self, _: str) -> None:
        self._console.note(f"{speed_line(self._llm.timings)};  context: {self._conversation.used()} of {self._llm.n_ctx()} tokens")

    def _help(self, _: str) -> None:
        for command in dict.fromkeys(self._commands.values()):
            self._console.note(f"{command.usage:18} {command.does}", indent=19)
        for keys, does in _KEYS:
            self._console.note(f"{keys:18} {does}", indent=19)

    def _leave(self, _: str) -> None:
        self._over = True

    def words(self) -> list[str]:
        """The commands' names, for completion."""
        return list(self._commands)


def ending(finish_reason: str | None, max_tokens: int | None, llm: Any) -> str:
    """What to say about how an answer ended; nothing where it was done."""
    if finish_reason is None:
        return "(stopped)"
    if finish_reason != "length":
        return ""
    if max_tokens is not None and 0 <= max_tokens <= llm.timings.generated_tokens + 1:
        return f"(cut after {max_tokens} tokens, the limit of -n / max_tokens)"
    return f"(cut: the context of {llm.n_ctx()} tokens is full; --ctx sets it)"


def _path(name: str) -> Path:
    if not name:
        raise ValueError("name a file")
    return Path(name).expanduser()


def _setting(text: str) -> tuple[str, Any]:
    """Name and value of a setting; ValueError says what is wrong."""
    given, _, value = text.partition(" ")
    name = _ABBREVIATED.get(given, given.replace("-", "_"))
    if name not in _SETTINGS or not value.strip():
        raise ValueError(f"write /set NAME VALUE; the names are {', '.join(_SETTINGS)}")
    try:
        number = int(value) if name in _WHOLE else float(value)
    except ValueError:
        raise ValueError(f"{name} must be a {'whole ' if name in _WHOLE else ''}number, got {value.strip()!r}") from None
    if name in ("seed", "max_tokens"):
        if not -1 <= number < 1 << 63:
            raise ValueError(f"{name} must be -1 (none) or more and below 2**63, got {value.strip()}")
        return name, None if name == "seed" and number < 0 else number
    checked: dict[str, Any] = {name: number}
    SamplingOptions(**checked)  # refuses what is out of range
    return name, number


def _shown(value: Any) -> str:
    return "random" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
