"""The tokenizer of a model to convert, as it goes into the file: a `tokenizers` JSON and the keys that other tools read.

`tokenizer.huggingface.json` is the tokenizer. Beside it stand `tokenizer.ggml.*` (token texts and types, ids of the special tokens, whether
a BOS is put first; `eos_token_ids` lists every token that ends generation), `tokenizer.chat_template` and, for templates beside the
default, `tokenizer.chat_template.NAME` with their names in `tokenizer.chat_templates`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from ..common.errors import ConvertError
from .pretokenizers import pre_tokenizer

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


def _compact(serialized: str) -> str:
    """Without the indentation, which is a third of a tokenizer.json."""
    return json.dumps(json.loads(serialized), ensure_ascii=False, separators=(",", ":"))


def _unique(ids: Iterable[Any], n_vocab: int) -> list[int]:
    """Each token id once; what is no id of the vocabulary is left out."""
    return list(dict.fromkeys(i for i in ids if isinstance(i, int) and 0 <= i < n_vocab))


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _keys(
    model: str,
    tokens: Sequence[str],
    types: Sequence[int],
    special: dict[str, int | None],
    end_ids: list[int],
    add_bos: bool,
    templates: dict[str, str],
) -> dict[str, Any]:
    keys: dict[str, Any] = {"tokenizer.ggml.model": model, "tokenizer.ggml.tokens": list(tokens), "tokenizer.ggml.token_type": list(types)}
    keys |= {f"tokenizer.ggml.{_SPECIAL_KINDS[kind]}_token_id": i for kind, i in special.items() if i is not None}
    if end_ids:
        keys["tokenizer.ggml.eos_token_ids"] = end_ids
    keys["tokenizer.ggml.add_bos_token"] = add_bos
    if "default" in templates:
        keys["tokenizer.chat_template"] = templates["default"]
    others = {name: text for name, text in templates.items() if name != "default"}
    if others:
        keys["tokenizer.chat_templates"] = list(others)
    return keys | {f"tokenizer.chat_template.{name}": text for name, text in others.items()}


# --- from a Hugging Face folder ----------------------------------------------------------------------------------------------------------


def _optional_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConvertError(f"{path}: cannot be read: {error}") from None
    return content if isinstance(content, dict) else {}


def _templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name, from tokenizer_config.json or chat_template.json, chat_template.jinja, additional_chat_templates/*.jinja."""
    stored, file = config.get("chat_template"), folder / "tokenizer_config.json"
    if not stored:
        file = folder / "chat_template.json"
        stored = _optional_json(file).get("chat_template")
    found = _named_templates(stored, file)
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        found["default"] = jinja.read_text(encoding="utf-8")
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = path.read_text(encoding="utf-8")
    return found


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
    """The tokenizer of a Hugging Face folder; None where it has no tokenizer.json."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    serialized = path.read_text(encoding="utf-8")
    try:
        tokenizer = Tokenizer.from_str(serialized)
    except Exception as error:  # the library raises bare Exception
        raise ConvertError(f"{path}: not a readable tokenizer: {error}") from None
    description = json.loads(serialized)
    config = _optional_json(folder / "tokenizer_config.json")
    generation = _optional_json(folder / "generation_config.json")

    def special(kind: str) -> int | None:
        text = config.get(f"{kind}_token")
        text = text.get("content") if isinstance(text, dict) else text
        found = tokenizer.token_to_id(text) if text else None
        stored = [*_as_list(generation.get(f"{kind}_token_id")), *_as_list(model_config.get(f"{kind}_token_id"))]
        return next(iter(_unique([found, *stored], n_vocab)), None)

    ids = {kind: special(kind) for kind in ("bos", "eos", "unk", "pad")}
    ends = [ids["eos"], *_as_list(generation.get("eos_token_id")), *_as_list(model_config.get("eos_token_id"))]
    starts_with_bos = ids["bos"] is not None and tokenizer.encode("a").ids[:1] == [ids["bos"]]
    tokens, types = _token_list(tokenizer, description, n_vocab)
    byte_level = "ByteLevel" in json.dumps(description.get("decoder")) or "ByteLevel" in json.dumps(description.get("pre_tokenizer"))
    add_bos = config.get("add_bos_token")
    return TokenizerData(
        _compact(serialized),
        _keys(
            "gpt2" if byte_level else "llama",
            tokens,
            types,
            ids,
            _unique(ends, n_vocab),
            starts_with_bos if add_bos is None else bool(add_bos),
            _templates(folder, config),
        ),
    )


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
    """The merges that SentencePiece's BPE would do, best score first: every pair of pieces that makes a piece."""
    ranked = []
    for piece, i in vocab.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                ranked.append((-scores[i], vocab[left], vocab[right], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]


def _sentencepiece_bpe(metadata: dict[str, Any], vocab: dict[str, int], types: Sequence[int]) -> Tokenizer:
    """SentencePiece as `tokenizers` does it: spaces become U+2581, unknown characters fall back to bytes."""
    mergeable = {text: i for text, i in vocab.items() if types[i] in (NORMAL, USER_DEFINED)}
    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None:
        raise ConvertError("GGUF tokenizer 'llama' has no tokenizer.ggml.scores")
    unknown = next((text for text, i in vocab.items() if types[i] == UNKNOWN), None)
    model = models.BPE(vocab=vocab, merges=merges_of_scores(mergeable, scores), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
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
    if adds_bos(metadata):
        bos_id = int(metadata["tokenizer.ggml.bos_token_id"])
        if bos_id >= len(tokens):
            raise ConvertError(f"tokenizer.ggml.bos_token_id is {bos_id}, of {len(tokens)} tokens")
        bos = tokens[bos_id]
        tokenizer.post_processor = processors.TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, bos_id)])
    return tokenizer


def adds_bos(metadata: dict[str, Any]) -> bool:
    """Whether a GGUF file's tokenizer puts a BOS first, with llama.cpp's assumptions where the file does not say."""
    if "tokenizer.ggml.bos_token_id" not in metadata:
        return False
    if "tokenizer.ggml.add_bos_token" in metadata:
        return bool(metadata["tokenizer.ggml.add_bos_token"])
    if metadata.get("tokenizer.ggml.model") == "gpt2":
        return pre_tokenizer(metadata.get("tokenizer.ggml.pre", "default")).adds_bos
    return True


def tokenizer_of_gguf(metadata: dict[str, Any]) -> TokenizerData | None:
    """The tokenizer of a GGUF file's metadata; None where it has none."""
    if "tokenizer.ggml.tokens" not in metadata:
        return None
    stored = metadata.get("tokenizer.huggingface.json")
    serialized = stored if stored else rebuild(metadata).to_str()
    tokens = metadata["tokenizer.ggml.tokens"]
    stored_ids = {kind: metadata.get(f"tokenizer.ggml.{name}_token_id") for kind, name in _SPECIAL_KINDS.items()}
    special = {kind: next(iter(_unique([i], len(tokens))), None) for kind, i in stored_ids.items()}
    ends = _unique([special["eos"], special["eot"], special["eom"], *metadata.get("tokenizer.ggml.eos_token_ids", [])], len(tokens))
    prefix = "tokenizer.chat_template."
    templates = {key.removeprefix(prefix): text for key, text in metadata.items() if key.startswith(prefix)}
    if "tokenizer.chat_template" in metadata:
        templates["default"] = metadata["tokenizer.chat_template"]
    types = metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    model = str(metadata.get("tokenizer.ggml.model"))
    return TokenizerData(_compact(serialized), _keys(model, tokens, types, special, ends, adds_bos(metadata), templates))
