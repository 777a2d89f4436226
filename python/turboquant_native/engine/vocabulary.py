"""Text to tokens and back, in bytes: the tokenizer that a model file carries under `tokenizer.huggingface.json`."""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from .._core import FormatError
from .tokenizer_json import TokenizerError, compact, guarded, made_harmless, parsed, text_bound

# Texts of tokens that end a turn, in the families whose metadata names only one of them.
_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<|end_of_role|>")


_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
_KINDS = {str: "a text", int: "a whole number", bool: "true or false", list: "a list"}


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's mapping of bytes to printable characters, inverted."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + i): byte for i, byte in enumerate(others)}}


def _decoder_types(decoder: Any) -> set[str]:
    """Names of a decoder's parts; the library shows them in its pickled form (JSON)."""

    def names(description: dict[str, Any]) -> set[str]:
        return {description["type"]}.union(*(names(part) for part in description.get("decoders", ())))

    return names(json.loads(decoder.__getstate__())) if decoder is not None else set()


def _typed(key: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise FormatError(f"metadata key {key} is {str(value)[:60]!r}, expected {_KINDS[kind]}")
    return value


def _value(metadata: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    """A value of the metadata; FormatError names the key where it is of another type."""
    return _typed(key, metadata[key], kind) if key in metadata else default


class Vocabulary:
    """The tokenizer of one model.

    Token pieces are bytes, so that a character cut between tokens survives; concatenated pieces are the text.

    Args:
        metadata: a model file's metadata (`GgufFile.metadata`).
        n_vocab: rows of the model's output; token ids beyond the tokenizer's own have an empty piece.
    Raises ValueError where the file carries no usable tokenizer, FormatError (one too) naming the key whose value is of a wrong type.
    """

    def __init__(self, metadata: dict[str, Any], n_vocab: int) -> None:
        source = _value(metadata, "tokenizer.huggingface.json", str, "")
        if not source:
            raise ValueError("the model file carries no tokenizer (key tokenizer.huggingface.json); convert it again")
        self.n_vocab = n_vocab
        try:
            self.json = self._harmless(source)
            with guarded("not readable"):
                self._special = Tokenizer.from_str(self.json)  # control tokens in a text are themselves
        except TokenizerError as error:
            raise FormatError(f"tokenizer.huggingface.json: {error}") from error
        added = self._special.get_added_tokens_decoder()
        self._added: dict[int, str] = {token: entry.content for token, entry in added.items()}
        self._control = {token for token, entry in added.items() if entry.special}
        self._decoders = _decoder_types(self._special.decoder)
        self._pieces: dict[int, bytes] = {}
        self.bos = self._id(metadata, "bos")
        self.eos = self._id(metadata, "eos")
        self.end_tokens = self._find_end_tokens(metadata)
        add_bos = _value(metadata, "tokenizer.ggml.add_bos_token", bool, None)
        self.add_bos = (self._template_starts_with_bos() if add_bos is None else add_bos) and self.bos >= 0
        self.add_eos = _value(metadata, "tokenizer.ggml.add_eos_token", bool, False) and self.eos >= 0

    def _harmless(self, source: str) -> str:
        description = parsed(source)
        changed = made_harmless(description, self.n_vocab)
        self._bound = text_bound(description, self._alphabet)
        return compact(description) if changed else source

    @cached_property
    def _plain(self) -> Tokenizer:
        """Control tokens in a text are just text. Made when first asked for: parsing the JSON is most of a model's loading time."""
        tokenizer = Tokenizer.from_str(self.json)
        tokenizer.encode_special_tokens = True
        return tokenizer

    def _id(self, metadata: dict[str, Any], kind: str) -> int:
        """-1 where there is none, or where it is none of the model's tokens."""
        token: int = _value(metadata, f"tokenizer.ggml.{kind}_token_id", int, -1)
        return token if token < self.n_vocab else -1

    def _find_end_tokens(self, metadata: dict[str, Any]) -> frozenset[int]:
        """Every token that ends generation: eos, eot, eom and their known spellings."""
        found = {self._id(metadata, kind) for kind in ("eos", "eot", "eom")}
        for token in _value(metadata, "tokenizer.ggml.eos_token_ids", list, []):
            found.add(_typed("tokenizer.ggml.eos_token_ids", token, int))
        # where answers are messages in channels, <|end|> ends only one of them
        goes_on = {"<|end|>"} if {"<|channel|>", "<|return|>"} <= set(self._added.values()) else set()
        found |= {token for token, content in self._added.items() if content in _END_OF_TURN and content not in goes_on}
        return frozenset(token for token in found if 0 <= token < self.n_vocab)

    def _template_starts_with_bos(self) -> bool:
        try:
            return self._ids("a", self._special, add_special_tokens=True)[:1] == [self.bos]
        except ValueError as error:
            raise FormatError(f"tokenizer.huggingface.json: {error}") from error

    @cached_property
    def _alphabet(self) -> dict[str, int]:
        return _byte_level_alphabet()

    def is_control(self, token: int) -> bool:
        """Whether the token is a control token (its text is not part of what a reader sees)."""
        return token in self._control

    def control_token(self, text: str) -> int | None:
        """The control token of this name; None where there is none."""
        token = self.id_of(text)
        return token if token in self._control else None

    def piece(self, token: int) -> bytes:
        """The bytes of one token, control tokens by their name; ValueError outside [0, n_vocab)."""
        if token not in self._pieces:
            if not 0 <= token < self.n_vocab:
                raise ValueError(f"token {token} is outside [0, {self.n_vocab})")
            self._pieces[token] = self._make_piece(token)
        return self._pieces[token]

    def _make_piece(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        text = self._special.id_to_token(token)
        if text is None:
            return b""
        if "ByteLevel" in self._decoders and all(character in self._alphabet for character in text):
            return bytes(self._alphabet[character] for character in text)
        if "ByteFallback" in self._decoders and (byte := _BYTE_TOKEN.fullmatch(text)):
            return bytes([int(byte[1], 16)])
        return text.replace("\u2581", " ").encode()

    def id_of(self, text: str) -> int:
        """The id of a token by its name, -1 when there is none."""
        found = self._special.token_to_id(text)
        return -1 if found is None else int(found)

    def encode(self, text: bytes | str, add_bos: bool = False, special: bool = False) -> list[int]:
        """Token ids of a text.

        Args:
            text: UTF-8; ValueError names the offset of a byte that is not.
            add_bos: put the BOS token first, where the model has one and uses it.
            special: read control tokens' names as those tokens; otherwise they are plain text.
        """
        if isinstance(text, bytes):
            try:
                text = text.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"text is not UTF-8 at byte {error.start}") from error
        else:
            text.encode()  # a lone surrogate: UnicodeEncodeError (a ValueError) says where
        ids = self._ids(text, self._special if special else self._plain)
        if add_bos and self.add_bos and ids[:1] != [self.bos]:
            ids.insert(0, self.bos)
        return ids

    def encode_document(self, text: str, limit: int | None = None) -> list[int]:
        """Token ids of a text to embed: control tokens' names are those tokens, and the tokenizer's own post-processor adds what the model
        was trained with at either end (a BOS, often an EOS). limit: the text's own tokens are cut to make so many in all."""
        own, ids = self._ids(text, self._special), self._ids(text, self._special, add_special_tokens=True)
        n_before = next((i for i in range(len(ids) - len(own) + 1) if ids[i : i + len(own)] == own), 0)
        before, after = ids[:n_before], ids[n_before + len(own) :]
        if self.add_bos and [*before, *own][:1] != [self.bos]:
            before = [self.bos, *before]
        if self.add_eos and [*own, *after][-1:] != [self.eos]:
            after = [*after, self.eos]
        if limit is not None:
            own = own[: max(0, limit - len(before) - len(after))]
        return [*before, *own, *after]

    def encode_pair(self, first: str, second: str) -> list[int]:
        """Token ids of two texts that are scored together, as the tokenizer's own post-processor joins them."""
        with guarded("the model's tokenizer failed on a text"):
            ids: list[int] = self._special.encode(first, second, add_special_tokens=True).ids
        if self.add_bos and ids[:1] != [self.bos]:
            ids.insert(0, self.bos)
        return [*ids, self.eos] if self.add_eos and ids[-1:] != [self.eos] else ids

    def check_length(self, text: str, n_ctx: int) -> None:
        """ValueError where a text certainly has more than n_ctx tokens: ten megabytes are refused before they are tokenized."""
        if self._bound is not None and len(text) > n_ctx and (least := self._bound.least_tokens(text)) > n_ctx:
            raise ValueError(
                f"the text of {len(text)} characters has at least {least} tokens and does not fit a context of {n_ctx} (n_ctx)"
            )

    @staticmethod
    def _ids(text: str, tokenizer: Tokenizer, add_special_tokens: bool = False) -> list[int]:
        with guarded("the model's tokenizer failed on a text"):
            ids: list[int] = tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, tokens: Iterable[int], special: bool = False, previous: Sequence[int] | None = None) -> bytes:
        """The bytes of tokens; control tokens only with `special`.

        A SentencePiece tokenizer puts a space before a text's first word; it is removed unless `previous` tokens came before.
        """
        ids = list(tokens)
        text = b"".join(self.piece(token) for token in ids if special or token not in self._control)
        opens = not previous and ("Strip" in self._decoders or "Metaspace" in self._decoders)
        return text[1:] if opens and text.startswith(b" ") else text
