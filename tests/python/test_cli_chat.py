"""The chat of `tqn run`: conversation and context, slash commands, several lines, Ctrl-C, what a terminal and a pipe show."""

import json
import os
import sys
import threading
import time

import pexpect
import pytest

from turboquant_native import Llama
from turboquant_native.commands.cli import main
from turboquant_native.commands.terminal import lines as reading
from turboquant_native.commands.terminal.answer import Reasoning, show
from turboquant_native.commands.terminal.console import Console, clean, size, table
from turboquant_native.commands.terminal.conversation import Conversation
from turboquant_native.commands.terminal.session import Session

OPTIONS = {"temperature": 0.0, "max_tokens": 8}


class Script:
    """Lines to be read; an exception class among them is raised."""

    def __init__(self, *lines):
        self._lines = list(lines)

    def read(self, prompt):
        if not self._lines:
            raise EOFError
        line = self._lines.pop(0)
        if not isinstance(line, str):
            raise line
        return line


class Echo:
    """In the place of a model: answers with the last message (or stops as it is told), one token a character."""

    def __init__(self, n_ctx=1000):
        self._n_ctx, self.prompts, self.interrupt_after = n_ctx, [], None

    def n_ctx(self):
        return self._n_ctx

    def tokenize(self, text):
        return list(text)

    def create_chat_completion(self, messages, stream=False, max_tokens=None, **options):
        length = sum(len(message["content"]) for message in messages)
        if length > self._n_ctx:
            raise ValueError("does not fit")
        if not stream:
            return {"usage": {"prompt_tokens": length}}
        self.prompts.append([message["content"] for message in messages])
        return self._stream(f"<{messages[-1]['content']}>")

    def _stream(self, text):
        for index, character in enumerate(text):
            if index == self.interrupt_after:
                raise KeyboardInterrupt
            yield {"choices": [{"delta": {"content": character}, "finish_reason": None}]}
        yield {"choices": [{"delta": {}, "finish_reason": "stop"}]}


def talk(llm, *lines, options=OPTIONS, system=None):
    conversation = Conversation(llm, system, dict(options))
    Session(llm, conversation, Console(), lambda text: f"too long: {len(text)}").run(Script(*lines))
    return conversation


def contents(conversation):
    return [message["content"] for message in conversation.messages]


# --- the conversation


def test_a_chat_is_what_the_api_answers(tiny_tqn, capsys):
    with Llama(str(tiny_tqn), n_ctx=128, chat_format="chatml") as llm:
        conversation = talk(llm, "fox", "dog", "/speed", system="Be kind.")
        messages = [{"role": "system", "content": "Be kind."}, *conversation.messages]
        for asked in (2, 4):
            answer = llm.create_chat_completion(messages[:asked], **OPTIONS)["choices"][0]["message"]["content"]
            assert messages[asked]["content"] == answer
    out, err = capsys.readouterr()
    assert out == "".join(message["content"] + "\n" for message in messages if message["role"] == "assistant")
    assert "generation: " in err and "of 128 tokens" in err and "cut after 8 tokens" in err


def test_the_oldest_turns_go_when_the_context_is_full(capsys):
    llm = Echo(n_ctx=100)
    conversation = talk(llm, *(letter * 10 for letter in "abcdefg"), system="S" * 5)
    assert len(conversation.messages) == 14  # nothing is lost
    assert all(prompt[0] == "S" * 5 and sum(map(len, prompt)) <= 100 for prompt in llm.prompts)
    assert [len(prompt) for prompt in llm.prompts] == [2, 4, 6, 8, 4, 6, 8]
    assert llm.prompts[4] == ["S" * 5, "d" * 10, f"<{'d' * 10}>", "e" * 10]
    assert "the context of 100 tokens is full: the oldest 3 turns are no longer sent" in capsys.readouterr().err


def test_a_message_that_does_not_fit_alone_is_refused(capsys):
    llm = Echo(n_ctx=50)
    conversation = talk(llm, "short", "x" * 60, "again")
    assert contents(conversation) == ["short", "<short>", "again", "<again>"]
    assert "too long: 60" in capsys.readouterr().err


@pytest.mark.parametrize("after", [0, 3])
def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(capsys, after):
    llm = Echo()
    llm.interrupt_after = after
    conversation = talk(llm, "hello")
    assert contents(conversation) == ([] if after == 0 else ["hello", "<he"])
    assert "(stopped)" in capsys.readouterr().err


def test_ctrl_c_twice_leaves(capsys):
    conversation = talk(Echo(), KeyboardInterrupt, "one", KeyboardInterrupt, KeyboardInterrupt, "two")
    assert contents(conversation) == ["one", "<one>"]
    assert capsys.readouterr().err.count("once more") == 2


@pytest.mark.parametrize("leaving", ["/bye", "/exit", "/quit"])
def test_leaving(leaving):
    assert contents(talk(Echo(), "one", leaving, "two")) == ["one", "<one>"]


# --- commands


def test_regen_asks_again(capsys):
    llm = Echo()
    conversation = talk(llm, "/regen", "one", "two", "/regen")
    assert contents(conversation) == ["one", "<one>", "two", "<two>"] and llm.prompts[-1] == llm.prompts[-2] == ["one", "<one>", "two"]
    assert "nothing has been answered" in capsys.readouterr().err


def test_a_stopped_regen_keeps_the_old_answer():
    llm = Echo()
    conversation = talk(llm, "one")
    llm.interrupt_after = 0
    Session(llm, conversation, Console(), str).run(Script("/regen"))
    assert contents(conversation) == ["one", "<one>"]


def test_set(capsys):
    conversation = talk(Echo(), "/set temp 0.5", "/set n 20", "/set top-k 3", "/set seed 7", "/set")
    assert {name: conversation.options[name] for name in ("temperature", "max_tokens", "top_k", "seed")} == {
        "temperature": 0.5,
        "max_tokens": 20,
        "top_k": 3,
        "seed": 7,
    }
    assert "temperature 0.5" in capsys.readouterr().err
    refused = {"top_p 2": "top_p", "top_k 1.5": "1.5", "seed 99999999999999999999": "seed", "nothing 1": "temperature", "n": "NAME"}
    for wrong, named in refused.items():
        assert talk(Echo(), f"/set {wrong}").options == OPTIONS
        assert named in capsys.readouterr().err


def test_read_system_clear(tmp_path, capsys):
    text, binary = tmp_path / "notes.txt", tmp_path / "binary"
    text.write_text("Notes é")
    binary.write_bytes(b"\xff\xfe")
    llm = Echo()
    refused = (f"/read {binary}", f"/read {tmp_path}", "/read", "/read /dev/zero")
    talk(llm, f"/read {text}", "Sum up", "/system Be brief", "more", "/clear", "new", *refused)
    assert llm.prompts[0] == ["notes.txt:\nNotes é\n\nSum up"]
    assert llm.prompts[1][0] == "Be brief" and llm.prompts[2] == ["Be brief", "new"]
    err = capsys.readouterr().err
    assert "no UTF-8 text (byte 0)" in err and err.count("no regular file") == 2 and "name a file" in err


def test_save_and_load(tmp_path, capsys):
    path = tmp_path / "chat.json"
    talk(Echo(), "one", f"/save {path}", system="S")
    assert json.loads(path.read_text())["messages"][1] == {"role": "assistant", "content": "<one>"}
    llm = Echo()
    conversation = talk(llm, f"/load {path}", "two")
    assert conversation.system == "S" and llm.prompts == [["S", "one", "<one>", "two"]]
    foreign = '{"format": "tqn-chat", "messages": [{"role": "tool", "content": "x"}]}'
    for damaged in ("{", "[]", '{"format": "tqn-chat"}', foreign, "[" * 9999):
        path.write_text(damaged)
        assert contents(talk(Echo(), "kept", f"/load {path}")) == ["kept", "<kept>"]
        assert f"/load: {path}: " in capsys.readouterr().err


def test_unknown_commands_and_paths(capsys):
    conversation = talk(Echo(), "/what now", "/usr/bin/env is a path", "/help")
    assert contents(conversation)[0] == "/usr/bin/env is a path"
    err = capsys.readouterr().err
    assert "no /what" in err and all(name in err for name in ("/regen", "/clear", "/read", "/set", "/save", "/load", "/bye", '"""'))


# --- input


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["  plain  "], "plain"),
        (['"""one', "two", 'three"""'], "one\ntwo\nthree"),
        (['"""', "one", "", "two", '"""'], "one\n\ntwo"),
        (['"""one line"""'], "one line"),
        (['"""never closed', "end"], "never closed\nend"),
        (["pasted\nlines\nthree"], "pasted\nlines\nthree"),
        (['""""""'], ""),
    ],
)
def test_messages(lines, expected):
    assert reading.message(Script(*lines)) == expected


def test_editing(tmp_path):
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    history = tmp_path / "home" / "history"
    with create_pipe_input() as keys:
        edited = reading.EditedLines(history, ["/regen", "/read"], input=keys, output=DummyOutput())
        keys.send_text("\x1b[200~first\nsecond\nthird\x1b[201~\r")  # a bracketed paste
        assert edited.read("> ") == "first\nsecond\nthird"
        keys.send_text("half a line\x03whole\r")  # Ctrl-C empties the line
        assert edited.read("> ") == "whole"
        keys.send_text("\x03")
        with pytest.raises(KeyboardInterrupt):
            edited.read("> ")
        keys.send_text("\x04")
        with pytest.raises(EOFError):
            edited.read("> ")
        keys.send_text("/reg\t")
        threading.Timer(0.5, keys.send_text, ["\r"]).start()  # completion is not instant
        assert edited.read("> ") == "/regen"
    assert history.stat().st_mode & 0o077 == 0
    with create_pipe_input() as keys:
        again = reading.EditedLines(history, [], input=keys, output=DummyOutput())
        keys.send_text("\x1b[A\x1b[A\r")  # over sessions: the line before the last
        assert again.read("> ") == "whole"


# --- output


def test_reasoning_is_told_apart_wherever_the_pieces_break():
    text = "\n<think>a < b</thin> c</think>\n\nThe answer <think>"
    for width in range(1, len(text)):
        split = Reasoning()
        parts = [split.feed(text[i : i + width]) for i in range(0, len(text), width)] + [split.finish()]
        assert ("".join(part[0] for part in parts), "".join(part[1] for part in parts)) == ("a < b</thin> c", "The answer <think>")
    for plain in ("<thin", "<this>", "", " x"):
        split = Reasoning()
        parts = [split.feed(piece) for piece in plain] + [split.finish()]
        assert "".join(part[1] for part in parts) == plain


def _chunks(*deltas):
    return iter([{"choices": [{"delta": delta}]} for delta in deltas] + [{"choices": [{"delta": {}, "finish_reason": "stop"}]}])


class Terminal(list):
    """A stream that says it is a terminal."""

    def write(self, text):
        self.append(text)

    def flush(self):
        pass

    def isatty(self):
        return True


def test_what_a_terminal_shows(monkeypatch):
    deltas = ({"reasoning_content": "hm"}, {"content": "\x1b[31mred\x07"}, {"content": " é"})
    shown = {}
    for name, environment in (("color", {}), ("plain", {"NO_COLOR": "1"})):
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm")
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setattr(sys, "stdout", Terminal())
        assert show(Console(), _chunks(*deltas), "reading").text == "\x1b[31mred\x07 é"
        shown[name] = "".join(sys.stdout)
    assert shown == {"color": "\x1b[2mhm\x1b[0m\n\n[31mred é\n", "plain": "(thinking) hm\n\n(answer) [31mred é\n"}


def test_a_pipe_gets_the_answer_and_nothing_else(capsys):
    assert show(Console(), _chunks({"content": "<think>hm</think>\n\n"}, {"content": "yes"}), "reading").text == "yes"
    assert capsys.readouterr() == ("yes\n", "")


def test_console_helpers():
    assert clean("a\x1b[2J\tb\r\nc\x9b") == "a[2J\tb\nc"
    assert [size(n) for n in (0, 999, 1000, 70_500_000, 4_096_000_000)] == ["0 B", "999 B", "1 kB", "70.5 MB", "4.1 GB"]
    rows = [("a", "1 MB", "somewhere far away")]
    assert table(("n", "s", "from"), rows) == "n  s     from\na  1 MB  somewhere far away"
    assert max(map(len, table(("n", "s", "from"), rows, 20).splitlines())) == 20


def test_chat_in_a_pipe(tiny_tqn, capsys, monkeypatch):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("fox\n/bye\ndog\n"))
    assert main(["chat", str(tiny_tqn), "-n", "5", "--temp", "0", "--chat-format", "chatml"]) == 0
    out, err = capsys.readouterr()
    with Llama(str(tiny_tqn), n_ctx=256, chat_format="chatml") as llm:
        answer = llm.create_chat_completion([{"role": "user", "content": "fox"}], temperature=0, max_tokens=5)
    assert out == answer["choices"][0]["message"]["content"] + "\n" and "context of 256 tokens" in err


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1", "LC_ALL": "C", "PYTHONUTF8": "0"}, {"TERM": "dumb"}])
def test_run_at_a_terminal(tiny_tqn, own_home, environment):
    command = ["-m", "turboquant_native", "run", str(tiny_tqn), "-n", "5", "--temp", "0", "--chat-format", "chatml"]
    environment = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "TQN_HOME": str(own_home), **environment}
    child = pexpect.spawn(sys.executable, command, env=environment, dimensions=(30, 60), timeout=60, encoding="latin-1")
    try:
        child.expect("/help")
        child.expect(">")
        time.sleep(0.3)  # the line editor takes the terminal
        child.send("fox\r")
        child.expect("cut after 5 tokens")
        child.expect(">")
        time.sleep(0.3)
        child.sendintr()
        child.expect("once more")
        child.expect(">")
        time.sleep(0.3)
        child.sendintr()
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0
    finally:
        child.close(force=True)
