"""Tokenizers rebuilt from GGUF metadata against the originals, and what a file keeps of a Hugging Face folder's tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tiny_models import LLAMA, TEXT, gguf_tokenizer_keys, save_llama
from turboquant_native._core import GgufFile
from turboquant_native.common.errors import ConvertError
from turboquant_native.convert.tokenizer import adds_bos, merges_of_scores, rebuild, tokenizer_of_folder, tokenizer_of_gguf

TEXTS = [
    "Hello world's end, they'LL see 3.14159 and 1234567 in 2024.",
    "  leading,   inner    and trailing spaces   ",
    "tabs\tand\n\nnewlines\r\n \n  x",
    "emoji 🚀 👩‍👩‍👧 ✅🦙🦙 done",
    "我想在apple工作1314151天。日本語 한국어 កាន់តែ",
    "naïve café Ünïcödé нещо на Български",
    "code: def f(x): return x**2 // 3  # ----==== '''\"\"\" ...!!!???",
    "<|im_start|>user\nhi <|im_end|> <|im_start|>",
    "camelCaseWords ALLCAPS MixedUP snake_case",
    "",
]
_GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


_DIGITS = {"type": "Digits", "individual_digits": True}
# The pre_tokenizer entries of the models' own tokenizer.json.
ORIGINALS: dict[str, dict[str, Any]] = {
    "gpt-2": _byte_level(True),
    "smollm": _sequence(_DIGITS, _byte_level(True)),
    "llama-bpe": _sequence(_split(_GPT4 % r"\p{N}{1,3}"), _byte_level(False)),
    "qwen2": _sequence(_split(_GPT4 % r"\p{N}"), _byte_level(False)),
    "tekken": _sequence(_split(_TEKKEN), _byte_level(False)),
    "deepseek-coder": _sequence(
        _split("[\r\n]"), _split("\\s?\\p{L}+"), _split("\\s?\\p{P}+"), _split("[一-龥ࠀ-一가-퟿]+"), _DIGITS, _byte_level(False)
    ),
}


def original(pre: str) -> Tokenizer:
    """A tokenizer with that family's pre-tokenizer, trained on a few texts."""
    empty = Tokenizer(models.BPE(ignore_merges=pre in ("llama-bpe", "tekken")))
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    description = json.loads(empty.to_str())
    description["pre_tokenizer"] = ORIGINALS[pre]
    description["decoder"] = _byte_level(True)
    description["normalizer"] = {"type": "NFC"} if pre == "qwen2" else None
    tokenizer = Tokenizer.from_str(json.dumps(description))
    tokenizer.train_from_iterator([TEXT, *TEXTS] * 3, trainer)
    return tokenizer


@pytest.mark.parametrize("pre", ORIGINALS)
def test_rebuilt_bpe_equals_the_original(pre: str) -> None:
    theirs = original(pre)
    ours = rebuild(gguf_tokenizer_keys(theirs, pre))
    for text in [*TEXTS, TEXT * 3]:
        ids = ours.encode(text).ids
        assert ids == theirs.encode(text).ids, text
        assert ours.decode(ids, skip_special_tokens=False) == text


def test_rebuilt_tokenizers_tell_the_families_apart() -> None:
    """The comparison above can fail: one family's rules give other tokens than another's."""
    theirs = original("smollm")
    ours = rebuild(gguf_tokenizer_keys(theirs, "llama-bpe"))
    assert any(ours.encode(text).ids != theirs.encode(text).ids for text in TEXTS)


def test_rebuilt_sentencepiece_equals_the_original(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join([TEXT, *TEXTS] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(tmp_path / "spm"),
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    n = theirs.vocab_size()

    def kind(i: int) -> int:
        return 2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1

    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [theirs.id_to_piece(i) for i in range(n)],
        "tokenizer.ggml.scores": [theirs.get_score(i) for i in range(n)],
        "tokenizer.ggml.token_type": [kind(i) for i in range(n)],
        "tokenizer.ggml.bos_token_id": theirs.bos_id(),
    }
    ours = rebuild(metadata)
    for text in [text for text in TEXTS if text]:
        ids = ours.encode(text).ids
        assert ids[0] == theirs.bos_id() and ids[1:] == theirs.encode(text), text
        assert ours.decode(ids) == text


def test_smollm2_gives_the_tokens_of_llama_cpp(smollm2_gguf: Path) -> None:
    """A real vocabulary; the ids are llama.cpp's."""
    text = "Hello 12345 world's  test\n\n\t x=3.14; 🚀 我想在apple工作 <|im_start|>user\nhi<|im_end|> naïve café   "
    ids = [19556, 216, 33, 34, 35, 36, 37, 905, 506, 216, 1028, 14436, 1792, 45, 35, 30, 33, 36, 43, 15107, 244, 218, 17097, 226, 235]
    ids += [177, 221, 128, 32632, 21949, 36149, 115, 40994, 216, 1, 4093, 198, 6004, 2, 15486, 46494, 37366, 333]
    tokenizer = rebuild(GgufFile(str(smollm2_gguf)).metadata)
    assert tokenizer.encode(text).ids == ids and tokenizer.decode(ids, skip_special_tokens=False) == text


def test_sentencepiece_without_a_space_prefix() -> None:
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "ab", "\u2581ab"]
    types = [2, 3] + [6] * 256 + [1] * 5
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": [0.0] * 258 + [-3.0, -4.0, -5.0, -1.0, -2.0],
        "tokenizer.ggml.add_space_prefix": False,
    }
    tokenizer = rebuild(metadata)
    assert [pieces[i] for i in tokenizer.encode("ab ab").ids] == ["ab", "\u2581ab"]
    assert tokenizer.decode(tokenizer.encode("ab 🚀").ids) == "ab 🚀"
    assert [pieces[i] for i in rebuild({**metadata, "tokenizer.ggml.add_space_prefix": True}).encode("ab").ids] == ["\u2581ab"]


def test_merges_follow_the_scores() -> None:
    vocab = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5}
    assert merges_of_scores(vocab, [0, 0, 0, -2.0, -1.0, -3.0]) == [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c")]


def test_user_defined_tokens_are_found_whole() -> None:
    keys = gguf_tokenizer_keys(original("gpt-2"), "gpt-2")
    keys["tokenizer.ggml.tokens"].append("\n\n\n")
    keys["tokenizer.ggml.token_type"].append(4)
    ids = rebuild(keys).encode("a\n\n\nb").ids
    assert ids[1] == len(keys["tokenizer.ggml.tokens"]) - 1 and len(ids) == 3


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, False),
        ({"tokenizer.ggml.bos_token_id": 1}, True),
        ({"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.add_bos_token": False}, False),
        ({"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2"}, False),
        ({"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe"}, True),
    ],
)
def test_whether_a_bos_is_added(keys: dict[str, Any], expected: bool) -> None:
    assert adds_bos({"tokenizer.ggml.model": "llama", **keys}) is expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "'bert' is not supported"),
        ({"tokenizer.ggml.pre": "unheard-of"}, "'unheard-of' is not known"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "2 entries"),
        ({"tokenizer.ggml.model": "llama"}, "no tokenizer.ggml.scores"),
        ({"tokenizer.ggml.bos_token_id": 10**6, "tokenizer.ggml.add_bos_token": True}, "bos_token_id is 1000000"),
        ({"tokenizer.ggml.merges": ["nothing known"]}, "merges"),
    ],
)
def test_unusable_gguf_tokenizers(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConvertError, match=message):
        rebuild({**gguf_tokenizer_keys(original("gpt-2"), "gpt-2"), **change})


def test_gguf_keys_that_stay() -> None:
    keys = gguf_tokenizer_keys(original("gpt-2"), "gpt-2")
    keys |= {"tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.eot_token_id": 2, "tokenizer.chat_template": "{{ x }}"}
    keys["tokenizer.chat_template.tool_use"] = "{{ y }}"
    data = tokenizer_of_gguf(keys)
    assert data is not None and data.keys["tokenizer.ggml.eos_token_ids"] == [1, 2]
    assert data.keys["tokenizer.chat_template"] == "{{ x }}" and data.keys["tokenizer.chat_template.tool_use"] == "{{ y }}"
    assert tokenizer_of_gguf({}) is None


# --- Hugging Face folders


def folder_keys(folder: Path, n_vocab: int = 320, config: dict[str, Any] = LLAMA) -> dict[str, Any]:
    data = tokenizer_of_folder(folder, n_vocab, config)
    assert data is not None
    return data.keys


def test_vocabulary_is_padded_or_cut_to_the_embedding(tmp_path: Path) -> None:
    folder = save_llama(tmp_path)
    longer = folder_keys(folder, 324)
    assert longer["tokenizer.ggml.tokens"][320:] == ["[PAD320]", "[PAD321]", "[PAD322]", "[PAD323]"]
    assert longer["tokenizer.ggml.token_type"][-1] == 5 and longer["tokenizer.ggml.token_type"][:3] == [3, 3, 3]
    assert folder_keys(folder, 300)["tokenizer.ggml.tokens"] == longer["tokenizer.ggml.tokens"][:300]


def test_special_tokens_from_every_place(tmp_path: Path) -> None:
    folder = save_llama(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    keys = folder_keys(folder, config={**LLAMA, "eos_token_id": 9})
    assert keys["tokenizer.ggml.eos_token_id"] == 1  # tokenizer_config.json's text
    assert keys["tokenizer.ggml.eos_token_ids"] == [1, 2, 7, 9]
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<|endoftext|>"}}))
    keys = folder_keys(folder)
    assert keys["tokenizer.ggml.bos_token_id"] == 2 and keys["tokenizer.ggml.eos_token_id"] == 2


def test_bos_is_added_where_the_template_does(tmp_path: Path) -> None:
    folder = save_llama(tmp_path)
    assert folder_keys(folder)["tokenizer.ggml.add_bos_token"] is False
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    bos = {"id": "<|im_start|>", "ids": [0], "tokens": ["<|im_start|>"]}
    single = [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing", "single": single, "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": bos},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert folder_keys(folder)["tokenizer.ggml.add_bos_token"] is True


def test_chat_templates(tmp_path: Path) -> None:
    folder = save_llama(tmp_path)
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": "one"}, {"name": "rag", "template": "two"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    keys = folder_keys(folder)
    assert keys["tokenizer.chat_template"] == "one" and keys["tokenizer.chat_template.rag"] == "two"
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "three"}))
    assert folder_keys(folder)["tokenizer.chat_template"] == "three"


def test_folder_without_a_tokenizer(tmp_path: Path) -> None:
    assert tokenizer_of_folder(tmp_path, 320, LLAMA) is None
