"""The tokenizer of a model to convert, as it goes into the file: a `tokenizers` JSON and the keys that other tools read.

`tokenizer.huggingface.json` is the tokenizer. Beside it stand `tokenizer.ggml.*` (token texts and types, ids of the special tokens, whether
a BOS is put first; `eos_token_ids` lists every token that ends generation), `tokenizer.chat_template` and, for templates beside the
default, `tokenizer.chat_template.NAME` with their names in `tokenizer.chat_templates`.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from ..common.errors import ConvertError
from ..common.files import is_present, read_optional_json, read_text
from ..engine.tokenizer_json import TokenizerError, compact, guarded, made_harmless, parsed
from .fields import FLAG, OBJECT, TEXT, TOKEN_ID_FIELDS, Rule, checked, integer, refused
from .pretokenizers import pre_tokenizer
from .sentencepiece_model import read_sentencepiece
from .tokenizer_trial import try_out

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # GGUF's token types
_SPECIAL_KINDS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "eot": "eot", "eom": "eom"}


@dataclass(frozen=True)
class TokenizerData:
    """What the file keeps of a tokenizer.

    Attributes:
        json: the serialized `tokenizers.Tokenizer`.
        keys: the metadata keys beside it, by full name.
    """

    json: str
    keys: dict[str, Any]

    def metadata(self) -> dict[str, Any]:
        return {**self.keys, "tokenizer.huggingface.json": self.json}


_MAX_PIECE = 256  # characters; SentencePiece's own limit is 16 unless it is trained otherwise
_MAX_TEMPLATE_NAME = 200  # bytes; the name is part of a key
_TOKEN_TEXT = Rule("a text, or an object with a text content", lambda value: _content(value), optional=True)
_TOKENIZER_CONFIG: dict[str, Rule] = {
    **{f"{kind}_token": _TOKEN_TEXT for kind in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")},
    "add_bos_token": FLAG.or_null(),
    "add_eos_token": FLAG.or_null(),
    "added_tokens_decoder": OBJECT.or_null(),
}


def _content(value: Any) -> str:
    return TEXT.accept(value.get("content") if isinstance(value, dict) else value)


def _harmless(origin: str, serialized: str, n_vocab: int) -> dict[str, Any]:
    """A parsed tokenizer.json that the library can be given: checked, and tried out in a process of its own. ConvertError otherwise."""
    try:
        description = parsed(serialized)
        made_harmless(description, n_vocab)
        try_out(compact(description))
    except (TokenizerError, UnicodeEncodeError) as error:
        raise ConvertError(f"{origin}: not a readable tokenizer: {error}") from None
    return description


@contextmanager
def _usable(origin: str) -> Iterator[None]:
    """Whatever the library raises inside becomes a ConvertError."""
    try:
        with guarded("not a readable tokenizer"):
            yield
    except TokenizerError as error:
        raise ConvertError(f"{origin}: {error}") from None


def _unique(ids: Iterable[Any], n_vocab: int) -> list[int]:
    """Each token id once; what is no id of the vocabulary is left out."""
    return list(dict.fromkeys(i for i in ids if type(i) is int and 0 <= i < n_vocab))


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _keys(
    model: str,
    tokens: Sequence[str],
    types: Sequence[int],
    special: dict[str, int | None],
    end_ids: list[int],
    adds: tuple[bool, bool],
    templates: dict[str, str],
) -> dict[str, Any]:
    keys: dict[str, Any] = {"tokenizer.ggml.model": model, "tokenizer.ggml.tokens": list(tokens), "tokenizer.ggml.token_type": list(types)}
    keys |= {f"tokenizer.ggml.{_SPECIAL_KINDS[kind]}_token_id": i for kind, i in special.items() if i is not None}
    if end_ids:
        keys["tokenizer.ggml.eos_token_ids"] = end_ids
    keys["tokenizer.ggml.add_bos_token"] = adds[0]
    if adds[1]:
        keys["tokenizer.ggml.add_eos_token"] = True
    if "default" in templates:
        keys["tokenizer.chat_template"] = templates["default"]
    others = {name: text for name, text in templates.items() if name != "default"}
    if others:
        keys["tokenizer.chat_templates"] = list(others)
    return keys | {f"tokenizer.chat_template.{name}": text for name, text in others.items()}


# --- from a Hugging Face folder ----------------------------------------------------------------------------------------------------------


def _templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name, from tokenizer_config.json or chat_template.json, chat_template.jinja, additional_chat_templates/*.jinja.

    A chat_template.jinja replaces all that the JSON files say, as in transformers: their tool_use is of another time."""
    stored, file = config.get("chat_template"), folder / "tokenizer_config.json"
    if not stored:
        file = folder / "chat_template.json"
        stored = read_optional_json(file).get("chat_template")
    found = checked_templates(str(file), _named_templates(stored, file))
    jinja = folder / "chat_template.jinja"
    if is_present(jinja):
        found = {"default": read_text(jinja)}
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = read_text(path)
    return checked_templates(str(folder), found)


def checked_templates(origin: str, templates: dict[str, Any]) -> dict[str, str]:
    """Templates whose names and texts a file can hold; ConvertError otherwise."""
    for name, text in templates.items():
        if not name.isprintable() or not 0 < len(name.encode("utf-8", "replace")) <= _MAX_TEMPLATE_NAME:
            raise refused(origin, "a template's name", name, f"1 to {_MAX_TEMPLATE_NAME} printable bytes")
        if not isinstance(text, str) or not _is_storable(text):
            raise refused(origin, f"template {name!r}", text, "a text")
    return templates


def _is_storable(text: str) -> bool:
    try:
        return bool(text.encode("utf-8", "surrogateescape")) or True
    except UnicodeEncodeError:
        return False


def _token_with_flags(origin: str, entry: Any, special: bool | None = None) -> AddedToken:
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
        raise refused(origin, "an added token", entry, "an object with a text content")
    flags = {flag: bool(entry[flag]) for flag in ("single_word", "lstrip", "rstrip", "normalized") if flag in entry}
    return AddedToken(entry["content"], special=bool(entry.get("special")) if special is None else special, **flags)


def _declared_tokens(folder: Path, config: dict[str, Any], n_vocab: int) -> list[tuple[int | None, AddedToken]]:
    """Tokens that stand beside tokenizer.json, in the order in which transformers adds them: (id where one is declared, token)."""
    origin = str(folder / "tokenizer_config.json")
    named = [config[f"{kind}_token"] for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask") if config.get(f"{kind}_token")]
    found: dict[int, AddedToken] = {}
    if config.get("added_tokens_decoder") is not None:
        for index, entry in config["added_tokens_decoder"].items():
            if not index.isdecimal():
                raise refused(origin, "added_tokens_decoder: an id", index, "a whole number")
            found[int(index)] = _token_with_flags(f"{origin}: added_tokens_decoder[{index}]", entry)
    else:
        path = folder / "added_tokens.json"
        for text, index in read_optional_json(path).items():
            if type(index) is not int or index < 0:
                raise refused(str(path), repr(text), index, "a whole number")
            found[index] = AddedToken(text, normalized=text not in named, special=text in named)
    declared: list[tuple[int | None, AddedToken]] = [(i, token) for i, token in sorted(found.items()) if i < n_vocab]
    known = {token.content for token in found.values()}
    return declared + [(None, AddedToken(text, special=True)) for text in dict.fromkeys(named) if text not in known]


def _merge_declared(folder: Path, tokenizer: Tokenizer, declared: list[tuple[int | None, AddedToken]], n_vocab: int) -> bool:
    """Adds tokens that tokenizer.json lacks, as transformers does; whether there were any. ConvertError where an id is another's."""
    present = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    missing = [(i, token) for i, token in declared if token.content not in present or (i is not None and present[token.content] != token)]
    added = False
    for declared_id, token in missing:
        if declared_id is None and tokenizer.token_to_id(token.content) is None and tokenizer.get_vocab_size() >= n_vocab:
            continue  # a name for a token that the model does not have
        added = True
        tokenizer.add_tokens([token])
        found = tokenizer.token_to_id(token.content)
        if declared_id is not None and found != declared_id:
            raise ConvertError(f"{folder}: token {token.content!r} is declared as {declared_id}, but tokenizer.json makes it {found}")
    return added


def _named_templates(stored: Any, file: Path) -> dict[str, str]:
    """One template, or several as [{"name", "template"}, ...] or {name: template}; ConvertError names a file that has them otherwise."""
    if not stored:
        return {}
    if isinstance(stored, str):
        return {"default": stored}
    entries = [{"name": name, "template": text} for name, text in stored.items()] if isinstance(stored, dict) else stored
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str) for entry in entries
    ):
        raise ConvertError(f"{file}: chat_template must be a text, or a list of objects with name and template, got {str(stored)[:80]!r}")
    return {entry["name"]: entry["template"] for entry in entries}


def _token_list(tokenizer: Tokenizer, description: dict[str, Any], n_vocab: int) -> tuple[list[str], list[int]]:
    """Texts and GGUF types of ids 0 .. n_vocab - 1; ids that no token has are UNUSED."""
    tokens, types = [f"[PAD{i}]" for i in range(n_vocab)], [UNUSED] * n_vocab
    byte_fallback = bool(description["model"].get("byte_fallback"))
    for text, i in tokenizer.get_vocab(with_added_tokens=True).items():
        if i < n_vocab:
            tokens[i] = text
            types[i] = BYTE if byte_fallback and len(text) == 6 and text.startswith("<0x") else NORMAL
    for entry in description.get("added_tokens", ()):
        if entry["id"] < n_vocab:
            types[entry["id"]] = CONTROL if entry.get("special") else USER_DEFINED
    return tokens, types


def tokenizer_of_folder(folder: Path, n_vocab: int, model_config: dict[str, Any]) -> TokenizerData | None:
    """The tokenizer of a Hugging Face folder, from tokenizer.json or SentencePiece's tokenizer.model; None where it has neither."""
    path = folder / "tokenizer.json"
    config_path = folder / "tokenizer_config.json"
    config = checked(str(config_path), _TOKENIZER_CONFIG, read_optional_json(config_path))
    if is_present(path):
        serialized = read_text(path)
    elif is_present(folder / "tokenizer.model"):
        path = folder / "tokenizer.model"
        with _usable(str(path)):
            serialized = rebuild(read_sentencepiece(path)).to_str()
    else:
        return None
    description = _harmless(str(path), serialized, n_vocab)
    with _usable(str(path)):
        tokenizer = Tokenizer.from_str(compact(description))
        changed = _merge_declared(folder, tokenizer, _declared_tokens(folder, config, n_vocab), n_vocab)
    generation_path = folder / "generation_config.json"
    generation = checked(str(generation_path), TOKEN_ID_FIELDS, read_optional_json(generation_path))

    def special(kind: str) -> int | None:
        text = config.get(f"{kind}_token")
        found = tokenizer.token_to_id(text) if text else None
        stored = [*_as_list(generation.get(f"{kind}_token_id")), *_as_list(model_config.get(f"{kind}_token_id"))]
        return next(iter(_unique([found, *stored], n_vocab)), None)

    ids = {kind: special(kind) for kind in ("bos", "eos", "unk", "pad")}
    ends = [ids["eos"], *_as_list(generation.get("eos_token_id")), *_as_list(model_config.get("eos_token_id"))]
    with _usable(str(path)):
        adds = _adds(tokenizer, ids["bos"], ids["eos"])
    wanted = (adds[0] if config.get("add_bos_token") is None else config["add_bos_token"], adds[1] or bool(config.get("add_eos_token")))
    wanted = (wanted[0] and ids["bos"] is not None, wanted[1] and ids["eos"] is not None)
    if wanted != adds:
        changed, tokenizer.post_processor = True, _template(tokenizer, ids["bos"] if wanted[0] else None, ids["eos"] if wanted[1] else None)
    if changed:
        description = _harmless(str(path), tokenizer.to_str(), n_vocab)
    tokens, types = _token_list(tokenizer, description, n_vocab)
    byte_level = "ByteLevel" in json.dumps(description.get("decoder")) or "ByteLevel" in json.dumps(description.get("pre_tokenizer"))
    kind, templates = "gpt2" if byte_level else "llama", _templates(folder, config)
    return TokenizerData(compact(description), _keys(kind, tokens, types, ids, _unique(ends, n_vocab), wanted, templates))


def _adds(tokenizer: Tokenizer, bos: int | None, eos: int | None) -> tuple[bool, bool]:
    """Whether the tokenizer itself puts a BOS before and an EOS after a text."""
    ids = tokenizer.encode("a").ids
    return bos is not None and ids[:1] == [bos], eos is not None and ids[-1:] == [eos]


def _template(tokenizer: Tokenizer, bos: int | None, eos: int | None) -> processors.PostProcessor:
    """A post-processor that adds a BOS before, an EOS after, or neither."""
    before, after = ([tokenizer.id_to_token(i)] if i is not None else [] for i in (bos, eos))
    named = [(tokenizer.id_to_token(i), i) for i in dict.fromkeys((bos, eos)) if i is not None]
    return processors.TemplateProcessing(single=[*before, "$A", *after], special_tokens=named)


# --- from a GGUF file --------------------------------------------------------------------------------------------------------------------


def _byte_level_bpe(metadata: dict[str, Any], vocab: dict[str, int]) -> Tokenizer:
    family = pre_tokenizer(metadata.get("tokenizer.ggml.pre", "default"))
    merges = [tuple(merge.split(" ", 1)) for merge in _list(metadata, "merges", str, ())]
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=family.whole_words))
    except Exception as error:  # the library raises bare Exception
        raise ConvertError(f"tokenizer.ggml.merges is not usable: {error}") from None
    if (normalizer := family.normalizer()) is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = family.build()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def merges_of_scores(vocab: dict[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The merges that SentencePiece's BPE would do, best score first: every pair of pieces that makes a piece.

    ConvertError for a piece so long that its cuts, each of them as long, would take for ever.
    """
    ranked = []
    for piece, i in vocab.items():
        if len(piece) > _MAX_PIECE:
            raise ConvertError(f"token {i} has {len(piece)} characters, expected at most {_MAX_PIECE} in a SentencePiece vocabulary")
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                ranked.append((-scores[i], vocab[left], vocab[right], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]


def _sentencepiece_bpe(metadata: dict[str, Any], vocab: dict[str, int], types: Sequence[int]) -> Tokenizer:
    """SentencePiece as `tokenizers` does it: spaces become U+2581, unknown characters fall back to bytes."""
    # a user's token is found whole, so that a long one needs no merges
    mergeable = {text: i for text, i in vocab.items() if types[i] == NORMAL or (types[i] == USER_DEFINED and len(text) <= _MAX_PIECE)}
    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None:
        raise ConvertError("GGUF tokenizer 'llama' has no tokenizer.ggml.scores")
    unknown = next((text for text, i in vocab.items() if types[i] == UNKNOWN), None)
    merges = merges_of_scores(mergeable, _list(metadata, "scores", float, ()))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    spaces = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces]) if prefix else spaces
    steps: list[decoders.Decoder] = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if prefix else []))
    return tokenizer


def _add_special_tokens(tokenizer: Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Control and user-defined tokens are found in a text before anything else, as they stand."""
    control = [
        AddedToken(text, special=True, normalized=False) for text, kind in zip(tokens, types, strict=True) if kind in (CONTROL, UNKNOWN)
    ]
    plain = [AddedToken(text, special=False, normalized=False) for text, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED]
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(plain)


def _list(metadata: dict[str, Any], key: str, kind: type, default: Sequence[Any]) -> list[Any]:
    """An array of metadata; ConvertError where it holds something else."""
    found = metadata.get(f"tokenizer.ggml.{key}", default)
    found = found.tolist() if hasattr(found, "tolist") else found
    if not isinstance(found, list | tuple) or not all(isinstance(item, kind) for item in found):
        raise ConvertError(f"tokenizer.ggml.{key} is not an array of {kind.__name__}")
    return list(found)


def rebuild(metadata: dict[str, Any]) -> Tokenizer:
    """A `tokenizers.Tokenizer` from tokenizer.ggml.*; ConvertError names what is not supported."""
    model = metadata.get("tokenizer.ggml.model")
    tokens = _list(metadata, "tokens", str, ())
    types = _list(metadata, "token_type", int, [NORMAL] * len(tokens))
    scores = _list(metadata, "scores", float, [0.0] * len(tokens))
    for key, found in (("token_type", types), ("scores", scores)):
        if len(found) != len(tokens):
            raise ConvertError(f"tokenizer.ggml.{key} has {len(found)} entries for {len(tokens)} tokens")
    vocab = {text: i for i, text in enumerate(tokens)}
    if model == "gpt2":
        tokenizer = _byte_level_bpe(metadata, vocab)
    elif model == "llama":
        tokenizer = _sentencepiece_bpe(metadata, vocab, types)
    else:
        raise ConvertError(f"GGUF tokenizer {model!r} is not supported (supported: gpt2, llama)")
    _add_special_tokens(tokenizer, tokens, types)
    ends = [adds_bos(metadata), bool(metadata.get("tokenizer.ggml.add_eos_token", False))]
    ids = [_end_id(metadata, kind, len(tokens)) if adds else None for kind, adds in zip(("bos", "eos"), ends, strict=True)]
    if any(i is not None for i in ids):
        tokenizer.post_processor = _template(tokenizer, *ids)
    return tokenizer


def _end_id(metadata: dict[str, Any], kind: str, n_tokens: int) -> int:
    key = f"tokenizer.ggml.{kind}_token_id"
    token = metadata.get(key)
    if type(token) is not int or not 0 <= token < n_tokens:
        raise ConvertError(f"{key} is {token!r}, of {n_tokens} tokens")
    return token


def adds_bos(metadata: dict[str, Any]) -> bool:
    """Whether a GGUF file's tokenizer puts a BOS first, with llama.cpp's assumptions where the file does not say."""
    if "tokenizer.ggml.bos_token_id" not in metadata:
        return False
    if "tokenizer.ggml.add_bos_token" in metadata:
        return bool(metadata["tokenizer.ggml.add_bos_token"])
    if metadata.get("tokenizer.ggml.model") == "gpt2":
        return pre_tokenizer(metadata.get("tokenizer.ggml.pre", "default")).adds_bos
    return True


_GGUF_FIELDS: dict[str, Rule] = {
    **{f"tokenizer.ggml.{name}_token_id": integer(0, 2**32 - 1) for name in _SPECIAL_KINDS.values()},
    **{f"tokenizer.ggml.{name}": FLAG for name in ("add_bos_token", "add_eos_token", "add_space_prefix")},
    **{f"tokenizer.ggml.{name}": TEXT for name in ("model", "pre")},
}


def tokenizer_of_gguf(metadata: dict[str, Any], n_vocab: int | None = None, origin: str = "GGUF metadata") -> TokenizerData | None:
    """The tokenizer of a GGUF file's metadata; None where it has none. n_vocab: rows of the embedding; None: as many as tokens."""
    if "tokenizer.ggml.tokens" not in metadata:
        return None
    metadata = checked(origin, _GGUF_FIELDS, metadata)
    tokens = _list(metadata, "tokens", str, ())
    types = _list(metadata, "token_type", int, [NORMAL] * len(tokens))
    n_vocab = len(tokens) if n_vocab is None else n_vocab
    stored = metadata.get("tokenizer.huggingface.json")
    if stored is not None and not isinstance(stored, str):
        raise refused(origin, "tokenizer.huggingface.json", stored, "a text")
    with _usable(origin):
        serialized = stored or rebuild(metadata).to_str()
    description = _harmless(f"{origin}: tokenizer.huggingface.json" if stored else origin, serialized, n_vocab)
    stored_ids = {kind: metadata.get(f"tokenizer.ggml.{name}_token_id") for kind, name in _SPECIAL_KINDS.items()}
    special = {kind: next(iter(_unique([i], len(tokens))), None) for kind, i in stored_ids.items()}
    ends = _unique([special["eos"], special["eot"], special["eom"], *_list(metadata, "eos_token_ids", int, ())], len(tokens))
    prefix = "tokenizer.chat_template."
    templates = {key.removeprefix(prefix): text for key, text in metadata.items() if key.startswith(prefix)}
    if "tokenizer.chat_template" in metadata:
        templates["default"] = metadata["tokenizer.chat_template"]
    adds = (adds_bos(metadata), bool(metadata.get("tokenizer.ggml.add_eos_token", False)) and special["eos"] is not None)
    model = str(metadata.get("tokenizer.ggml.model"))
    return TokenizerData(compact(description), _keys(model, tokens, types, special, ends, adds, checked_templates(origin, templates)))
