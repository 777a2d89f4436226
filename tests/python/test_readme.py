"""README's commands after `make demo`: options that exist, files that the demo makes."""

import re
import shlex
from pathlib import Path

import pytest

from turboquant_native.commands.cli import _parsed

ROOT = Path(__file__).parents[2]


def commands() -> list[list[str]]:
    """The `tqn` commands of the section, without comments, split into words; $M replaced."""
    text = (ROOT / "README.md").read_text()
    lines = [line for line in text.split("## After `make demo`")[1].split("\n## ")[0].splitlines() if line.startswith("    ")]
    model = next(found[1] for line in lines if (found := re.search(r"M=(\S+)", line)))
    parts = (words for line in lines for words in _split(line.replace("$M", model)))
    return [words for words in parts if words and words[0] == "tqn"]


def _split(line: str) -> list[list[str]]:
    words = shlex.shlex(line, posix=True, punctuation_chars=";")
    words.whitespace_split = True
    out: list[list[str]] = [[]]
    for word in words:
        if word.strip(";"):
            out[-1].append(word)
        else:
            out.append([])
    return out


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_is_understood(words: list[str]) -> None:
    assert _parsed(words[1:]).verb == words[1]


def test_files_are_those_of_the_demo() -> None:
    assert len(commands()) >= 10
    makefile = (ROOT / "Makefile").read_text()
    folder, bits = (re.search(rf"^{name} ?[:?]= ?(\S+)", makefile, re.M) for name in ("MODEL_DIR", "BITS"))
    assert folder and bits
    made = {f"{folder[1]}/{name}" for name in ("smollm2.gguf", f"smollm2-{bits[1]}bit.tqn.gguf")}
    named = {word for words in commands() for word in words if word.startswith(".")}
    assert named == made
