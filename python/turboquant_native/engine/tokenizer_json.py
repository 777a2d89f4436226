"""A tokenizer.json that may come from anybody, made harmless before the library that runs it sees it.

The `tokenizers` library trusts its input: a padding to 2 * 10**9 tokens, a character map with a false length, or replacements that double
the text forty times abort the process. What is checked here is structure and sizes; conversions also try every tokenizer in a process of
its own.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..common.errors import ConvertError

Component = dict[str, Any]

_SECTIONS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_LISTS = ("normalizers", "pretokenizers", "processors", "decoders")  # where a Sequence keeps its parts
_MAX_PARTS, _MAX_DEPTH, _MAX_GROWTH, _MAX_TEMPLATE = 64, 8, 256, 64
_ADDING = {"TemplateProcessing", "BertProcessing", "RobertaProcessing"}  # post-processors that add tokens


class TokenizerError(ValueError):
    """A tokenizer that cannot be used; the message says why."""


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Whatever the library raises inside, a Rust panic included (no Exception), becomes a TokenizerError."""
    try:
        yield
    except (TokenizerError, ConvertError):
        raise
    except Exception as error:
        raise TokenizerError(f"{what}: {error}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{what}: {error}") from error


def parsed(serialized: str) -> Component:
    """The JSON object; TokenizerError where it is none."""
    try:
        description = json.loads(serialized)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"not JSON: {error}") from None
    if not isinstance(description, dict) or not isinstance(description.get("model"), dict):
        raise TokenizerError("not a tokenizer: no object with a model")
    return description


def compact(description: Component) -> str:
    """Without indentation, which is a third of a tokenizer.json."""
    return json.dumps(description, ensure_ascii=False, separators=(",", ":"))


def made_harmless(description: Component, n_vocab: int) -> bool:
    """Checks a parsed tokenizer and changes it in place; whether it was changed.

    Truncation and padding go: they would cut or pad prompts silently. Tokens that have no row among the model's n_vocab go: their text is
    then made of ordinary tokens. Raises TokenizerError for sizes and structures that would bring the library down.
    """
    for section in _SECTIONS:
        _check_section(section, description.get(section), n_vocab)
    changed = False
    for setting in ("truncation", "padding"):
        if description.get(setting) is not None:
            description[setting], changed = None, True
    return _cut(description, n_vocab) or changed


# --- sizes and structure -----------------------------------------------------------------------------------------------------------------


def parts_of(section: Any, depth: int = 0) -> Iterator[Component]:
    """The components of a section, those inside sequences too; TokenizerError where they are nested without end."""
    if not isinstance(section, dict):
        return
    if not isinstance(section.get("type", ""), str):
        raise TokenizerError("a component's type is no text")
    if depth > _MAX_DEPTH:
        raise TokenizerError(f"sequences are nested more than {_MAX_DEPTH} deep")
    yield section
    for name in _LISTS:
        inner = section.get(name)
        for part in inner if isinstance(inner, list) else ():
            yield from parts_of(part, depth + 1)


def _check_section(name: str, section: Any, n_vocab: int) -> None:
    growth, adding = 1.0, 0
    for count, part in enumerate(parts_of(section), 1):
        if count > _MAX_PARTS:
            raise TokenizerError(f"{name} has more than {_MAX_PARTS} parts")
        growth *= max(1.0, _growth(name, part))
        adding += part.get("type") in _ADDING
        _check_part(name, part, n_vocab)
    if growth > _MAX_GROWTH:
        raise TokenizerError(f"{name} may make a text {growth:.3g} times longer, expected at most {_MAX_GROWTH}")
    if adding > 1:
        raise TokenizerError(f"{name} adds tokens in {adding} places, expected one")


def _growth(name: str, part: Component) -> float:
    """How many times longer a component may make a text, at most."""
    kind = part.get("type")
    if kind == "ByteLevel" and name in ("normalizer", "pre_tokenizer"):
        return 2.0
    if kind == "Prepend":
        return 1.0 + _size(part.get("prepend", ""))
    if kind == "Replace":
        pattern = part.get("pattern")
        literal = pattern.get("String") if isinstance(pattern, dict) else None
        return _size(part.get("content", "")) / (max(1, _size(literal)) if isinstance(literal, str) else 1)
    return 1.0


def _check_part(name: str, part: Component, n_vocab: int) -> None:
    kind, pattern = part.get("type"), part.get("pattern")
    if kind in ("Split", "Replace") and isinstance(pattern, dict) and "" in (pattern.get("String"), pattern.get("Regex")):
        raise TokenizerError(f"{name}: {kind} has an empty pattern")
    if kind == "Precompiled":
        _check_character_map(part.get("precompiled_charsmap"))
    if kind == "FixedLength" and part.get("length") == 0:
        raise TokenizerError(f"{name}: FixedLength has the length 0")
    if kind == "TemplateProcessing":
        _check_template(part, n_vocab)
    if kind in ("BertProcessing", "RobertaProcessing"):
        for end in ("sep", "cls"):
            token = part.get(end)
            _check_ids(f"{kind}'s {end}", token[1:2] if isinstance(token, list) else None, n_vocab)


def _check_character_map(encoded: Any) -> None:
    """SentencePiece's: the size of a table of 32-bit numbers, the table, then texts."""
    try:
        data = base64.b64decode(encoded, validate=True) if isinstance(encoded, str) else b""
    except (binascii.Error, ValueError):
        data = b""
    size = int.from_bytes(data[:4], "little")
    if encoded and (len(data) < 4 or size % 4 or size > len(data) - 4):
        raise TokenizerError(f"normalizer: the precompiled character map of {len(data)} bytes is damaged: it says {size} bytes of table")


def _check_template(part: Component, n_vocab: int) -> None:
    special = part.get("special_tokens")
    for form in ("single", "pair"):
        pieces = part.get(form)
        if not isinstance(pieces, list) or len(pieces) > _MAX_TEMPLATE or not all(isinstance(piece, dict) for piece in pieces):
            raise TokenizerError(f"post_processor: the template {form!r} is no list of at most {_MAX_TEMPLATE} pieces")
        names = [piece["SpecialToken"].get("id") for piece in pieces if isinstance(piece.get("SpecialToken"), dict)]
        for name in names:
            entry = special.get(name) if isinstance(special, dict) and isinstance(name, str) else None
            if not isinstance(entry, dict):
                raise TokenizerError(f"post_processor: the template's token {name!r} is not among its special tokens")
            _check_ids(f"post_processor's token {name!r}", entry.get("ids"), n_vocab)


def _check_ids(what: str, ids: Any, n_vocab: int) -> None:
    if not isinstance(ids, list) or len(ids) > _MAX_TEMPLATE or not all(type(i) is int and 0 <= i < n_vocab for i in ids):
        raise TokenizerError(f"{what} has ids outside the model's {n_vocab} tokens")


# --- tokens beyond the model's ------------------------------------------------------------------------------------------------------------


def _cut(description: Component, n_vocab: int) -> bool:
    """Takes away tokens whose ids are n_vocab or more; whether there were any."""
    model, added = description["model"], description.get("added_tokens")
    vocab, changed = model.get("vocab"), False
    if added is not None and not (isinstance(added, list) and all(isinstance(token, dict) for token in added)):
        raise TokenizerError("added_tokens is no list of objects")
    if isinstance(added, list):
        kept = [token for token in added if not _is_beyond(token.get("id"), n_vocab)]
        changed = len(kept) < len(added)
        description["added_tokens"] = kept
    if isinstance(vocab, list) and len(vocab) > n_vocab:  # Unigram: the place is the id
        model["vocab"], changed = vocab[:n_vocab], True
    elif isinstance(vocab, dict) and any(_is_beyond(i, n_vocab) for i in vocab.values()):
        model["vocab"], changed = {text: i for text, i in vocab.items() if not _is_beyond(i, n_vocab)}, True
        if isinstance(model.get("merges"), list):
            model["merges"] = [merge for merge in model["merges"] if _is_possible(merge, model)]
    return changed


def _is_beyond(token: Any, n_vocab: int) -> bool:
    return isinstance(token, int) and token >= n_vocab


def _is_possible(merge: Any, model: Component) -> bool:
    """Whether both sides of a merge and what it makes are still tokens."""
    sides = merge.split(" ", 1) if isinstance(merge, str) else merge
    if not isinstance(sides, list) or len(sides) != 2 or not all(isinstance(side, str) for side in sides):
        return False
    prefix = model.get("continuing_subword_prefix") or ""
    return all(text in model["vocab"] for text in (sides[0], sides[1], sides[0] + sides[1][len(prefix) :]))


# --- how much text a token can stand for --------------------------------------------------------------------------------------------------

_KEEPING = {"NFC", "Prepend", "Replace", "ByteLevel", "Split", "Digits", "Metaspace", "Sequence", "Punctuation"}
_COMPOSITION = 4  # NFC makes one character of several, whose bytes were at most so many times as many


@dataclass(frozen=True)
class TextBound:
    """How few tokens a text can have.

    Attributes:
        bytes_per_token: the most bytes of text that one token can stand for.
        dropped: bytes that the vocabulary does not have and the library leaves out.
        strips: some tokens take the white space beside them, any length of it.
    """

    bytes_per_token: int
    dropped: bytes
    strips: bool

    def least_tokens(self, text: str) -> int:
        """A lower bound, found in a pass over the text."""
        kept = ("".join(text.split()) if self.strips else text).encode().translate(None, self.dropped)
        return len(kept) // self.bytes_per_token


def text_bound(description: Component, alphabet: dict[str, int]) -> TextBound | None:
    """The bound of a tokenizer; None where it may drop text or fold any length of it into one token.

    alphabet: what character stands for which byte in a byte-level vocabulary.
    """
    model, added = description["model"], description.get("added_tokens") or []
    vocab = model.get("vocab")
    if model.get("type", "BPE") != "BPE" or not isinstance(vocab, dict) or not vocab:
        return None
    parts = [part for section in ("normalizer", "pre_tokenizer") for part in parts_of(description.get(section))]
    if any(part.get("type") not in _KEEPING or part.get("behavior") == "Removed" or _shrinks(part) for part in parts):
        return None
    byte_level = any(part.get("type") == "ByteLevel" for part in parts) and not model.get("unk_token")
    if not byte_level and not (model.get("byte_fallback") is True and all(f"<0x{i:02X}>" in vocab for i in range(256))):
        return None
    dropped = bytes(byte for character, byte in alphabet.items() if character not in vocab) if byte_level else b""
    longest = max(len(text) if byte_level else _size(text) for text in vocab)
    longest = max([1, longest, *(_size(token.get("content")) for token in added)])
    composes = any(part.get("type") == "NFC" for part in parts)
    strips = any(token.get("lstrip") or token.get("rstrip") for token in added)
    return TextBound(longest * (_COMPOSITION if composes else 1), dropped, strips)


def _shrinks(part: Component) -> bool:
    if part.get("type") != "Replace":
        return False
    pattern = part.get("pattern")
    literal = pattern.get("String") if isinstance(pattern, dict) else None
    return not isinstance(literal, str) or _size(part.get("content")) < _size(literal)


def _size(text: Any) -> int:
    """UTF-8 bytes."""
    return len(str(text).encode("utf-8", "replace"))
