"""Text to tokens and back, in bytes: the tokenizer that a model file carries under `tokenizer.huggingface.json`."""

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

# Texts of tokens that end a turn, in the families whose metadata names only one of them.
_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<|end_of_role|>")


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


class Vocabulary:
    """The tokenizer of one model.

    Token pieces are bytes, so that a character cut between tokens survives; concatenated pieces are the text.

    Args:
        metadata: a model file's metadata (`GgufFile.metadata`).
        n_vocab: rows of the model's output; token ids beyond the tokenizer's own have an empty piece.
    Raises ValueError where the file carries no usable tokenizer.
    """

    def __init__(self, metadata: dict[str, Any], n_vocab: int) -> None:
        source = metadata.get("tokenizer.huggingface.json")
        if not source:
            raise ValueError("the model file carries no tokenizer (key tokenizer.huggingface.json); convert it again")
        try:
            self._special = Tokenizer.from_str(source)  # control tokens in a text are themselves
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"tokenizer.huggingface.json is not readable: {error}") from error
        self.json: str = source
        self.n_vocab = n_vocab
        added = self._special.get_added_tokens_decoder()
        self._added: dict[int, str] = {token: entry.content for token, entry in added.items()}
        self._control = {token for token, entry in added.items() if entry.special}
        self._decoders = _decoder_types(self._special.decoder)
        self._pieces: dict[int, bytes] = {}
        self.bos = self._id(metadata, "bos")
        self.eos = self._id(metadata, "eos")
        self.end_tokens = self._find_end_tokens(metadata)
        self.add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", self._template_starts_with_bos())) and self.bos >= 0

    @cached_property
    def _plain(self) -> Tokenizer:
        """Control tokens in a text are just text. Made when first asked for: parsing the JSON is most of a model's loading time."""
        tokenizer = Tokenizer.from_str(self.json)
        tokenizer.encode_special_tokens = True
        return tokenizer

    @staticmethod
    def _id(metadata: dict[str, Any], kind: str) -> int:
        return int(metadata.get(f"tokenizer.ggml.{kind}_token_id", -1))

    def _find_end_tokens(self, metadata: dict[str, Any]) -> frozenset[int]:
        """Every token that ends generation: eos, eot, eom and their known spellings."""
        found = {self._id(metadata, kind) for kind in ("eos", "eot", "eom")}
        found |= {int(token) for token in metadata.get("tokenizer.ggml.eos_token_ids", ())}
        found |= {token for token, content in self._added.items() if content in _END_OF_TURN}
        return frozenset(token for token in found if token >= 0)

    def _template_starts_with_bos(self) -> bool:
        return self._special.encode("a", add_special_tokens=True).ids[:1] == [self.bos]

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
        if "ByteLevel" in self._decoders:
            return bytes(self._alphabet[character] for character in text)
        if "ByteFallback" in self._decoders and len(text) == 6 and text.startswith("<0x"):
            return bytes([int(text[3:5], 16)])
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
        ids: list[int] = (self._special if special else self._plain).encode(text, add_special_tokens=False).ids
        if add_bos and self.add_bos and ids[:1] != [self.bos]:
            ids.insert(0, self.bos)
        return ids

    def decode(self, tokens: Iterable[int], special: bool = False, previous: Sequence[int] | None = None) -> bytes:
        """The bytes of tokens; control tokens only with `special`.

        A SentencePiece tokenizer puts a space before a text's first word; it is removed unless `previous` tokens came before.
        """
        ids = list(tokens)
        text = b"".join(self.piece(token) for token in ids if special or token not in self._control)
        opens = not previous and ("Strip" in self._decoders or "Metaspace" in self._decoders)
        return text[1:] if opens and text.startswith(b" ") else text
