"""Tokenizers from strangers: what would bring a process down is refused, what would cut or pad prompts is taken away."""

import base64
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from tiny_models import LLAMA, TEXT, gguf_tokenizer_keys, llama_tensors, save_llama, train_bpe, write_gguf
from turboquant_native import Llama
from turboquant_native._core import FormatError, GgufFile
from turboquant_native.common.errors import ConvertError
from turboquant_native.convert import tokenizer_trial
from turboquant_native.convert.conversion import Options, make_plan, write_model
from turboquant_native.convert.sources import open_source
from turboquant_native.convert.tokenizer import merges_of_scores, rebuild, tokenizer_of_folder, tokenizer_of_gguf
from turboquant_native.engine.tokenizer_json import TokenizerError, compact, guarded, made_harmless, parsed, text_bound
from turboquant_native.engine.vocabulary import Vocabulary

PLAIN = json.loads(train_bpe().to_str())
PADDING = {
    "strategy": {"Fixed": 2 * 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "x",
}  # fmt: skip
TRUNCATION = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 5}


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(name: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", name: list(parts)}


def nested(depth: int) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "NFC"}
    for _ in range(depth):
        part = sequence("normalizers", part)
    return part


def character_map(data: bytes) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


def template(ids: list[int], special: bool = True, count: int = 1) -> dict[str, Any]:
    single = [{"SpecialToken": {"id": "x", "type_id": 0}}] * count + [{"Sequence": {"id": "A", "type_id": 0}}]
    tokens = {"x": {"id": "x", "ids": ids, "tokens": ["x"] * len(ids)}} if special else {}
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": tokens}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "replacements that double": ({"normalizer": sequence("normalizers", *[replace({"String": "a"}, "aa")] * 40)}, "times longer"),
    "a decoder's": ({"decoder": sequence("decoders", *[replace({"String": "a"}, "aa")] * 40)}, "times longer"),
    "one by a megabyte": ({"normalizer": replace({"String": "a"}, "x" * 10**6)}, "times longer"),
    "prefixes": ({"normalizer": sequence("normalizers", *[{"type": "Prepend", "prepend": "a" * 10_000}] * 50)}, "times longer"),
    "bytes of bytes": ({"normalizer": sequence("normalizers", *[{"type": "ByteLevel"}] * 40)}, "times longer"),
    "many parts": ({"normalizer": sequence("normalizers", *[{"type": "NFC"}] * 100)}, "more than 64 parts"),
    "deep": ({"normalizer": nested(50)}, "nested more than"),
    "a table without end": ({"normalizer": character_map(b"\xf0\xff\xff\xff" + bytes(64))}, "character map of 68 bytes is damaged"),
    "a table cut short": ({"normalizer": character_map(b"\1")}, "character map of 1 bytes is damaged"),
    "no table": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}}, "damaged"),
    "an empty pattern": ({"normalizer": replace({"String": ""}, "b")}, "empty pattern"),
    "an empty split": (
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": ""}, "behavior": "Isolated", "invert": False}},
        "empty pattern",
    ),
    "pieces of 0": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "length 0"),
    "a token of no template": ({"post_processor": template([1], special=False)}, "not among its special tokens"),
    "a long template": ({"post_processor": template([1], count=1000)}, "at most 64 pieces"),
    "ids beyond": ({"post_processor": template([320])}, "outside the model's 320 tokens"),
    "two templates": ({"post_processor": sequence("processors", template([1]), template([1]))}, "in 2 places"),
    "ends beyond": ({"post_processor": {"type": "BertProcessing", "sep": ["s", 9999], "cls": ["c", 1]}}, "sep has ids outside"),
    "no model": ({"model": 1}, "no object with a model"),
    "no tokens": ({"added_tokens": [1]}, "no list of objects"),
}


def folder_with(tmp_path: Path, **changes: Any) -> Path:
    folder = save_llama(tmp_path / "model")
    (folder / "tokenizer.json").write_text(json.dumps({**PLAIN, **changes}))
    return folder


def metadata_with(**changes: Any) -> dict[str, Any]:
    return {"tokenizer.huggingface.json": json.dumps({**PLAIN, **changes})}


@pytest.mark.parametrize("name", REFUSED)
def test_what_aborts_is_refused_at_both_ends(tmp_path: Path, name: str) -> None:
    changes, words = REFUSED[name]
    with pytest.raises(ConvertError, match=words) as caught:
        tokenizer_of_folder(folder_with(tmp_path, **changes), 320, LLAMA)
    assert "tokenizer.json: not a readable tokenizer" in str(caught.value)
    with pytest.raises(FormatError, match=words):
        Vocabulary(metadata_with(**changes), 320)


@pytest.mark.parametrize("setting", [{"padding": PADDING}, {"truncation": TRUNCATION}, {"truncation": {**TRUNCATION, "stride": 0}}])
def test_padding_and_truncation_are_taken_away(tmp_path: Path, setting: dict[str, Any]) -> None:
    """Many files have them; they belong to somebody's training run."""
    plain = Vocabulary(metadata_with(), 320).encode(TEXT)
    assert len(plain) > 3 and Vocabulary(metadata_with(**setting), 320).encode(TEXT) == plain
    data = tokenizer_of_folder(folder_with(tmp_path, **setting), 320, LLAMA)
    assert data is not None
    stored = json.loads(data.json)
    assert stored["padding"] is None and stored["truncation"] is None
    keys = {**gguf_tokenizer_keys(train_bpe(), "smollm"), **metadata_with(**setting)}
    again = tokenizer_of_gguf(keys)
    assert again is not None and json.loads(again.json)["padding"] is None


def test_a_panic_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    """A Rust panic is no Exception; the library prints it, too, which a conversion's trial elsewhere keeps from the terminal."""
    bad = {**PLAIN["model"], "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}  # the merge makes no token
    with pytest.raises(FormatError, match=r"tokenizer\.huggingface\.json: not readable"):
        Vocabulary(metadata_with(model=bad, added_tokens=[]), 320)
    with pytest.raises(KeyboardInterrupt), guarded("x"):
        raise KeyboardInterrupt
    with pytest.raises(TokenizerError, match="x: y"), guarded("x"):
        raise RuntimeError("y")


def test_a_crash_in_the_trial_costs_nothing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The second line: what the checks do not know aborts, panics or runs without end in another process."""
    for changes, words in (
        ({"padding": PADDING}, "brought its process down"),
        ({"truncation": TRUNCATION}, "stride"),
    ):
        with pytest.raises(TokenizerError, match=words):
            tokenizer_trial.try_out(json.dumps({**PLAIN, **changes}))
    assert capfd.readouterr().err == ""


def test_a_failing_tokenizer_is_named_at_convert(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = folder_with(tmp_path, model={**PLAIN["model"], "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}, added_tokens=[])
    with pytest.raises(ConvertError, match=r"tokenizer\.json: not a readable tokenizer"):
        open_source(str(folder))
    assert "panicked" not in capfd.readouterr().err


def test_a_text_that_the_tokenizer_cannot_take() -> None:
    unknown = {**PLAIN["model"], "unk_token": "<none>", "vocab": {"a": 0}, "merges": []}
    words = Vocabulary({**metadata_with(model=unknown, pre_tokenizer=None, added_tokens=[]), "tokenizer.ggml.add_bos_token": False}, 320)
    assert words.encode("a") == [0]
    with pytest.raises(ValueError, match="the model's tokenizer failed on a text"):
        words.encode("b")


def test_a_long_prompt_is_refused_before_it_is_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    words = Vocabulary(metadata_with(), 320)
    longest = max(map(len, PLAIN["model"]["vocab"]))
    n_ctx = 64
    with pytest.raises(ValueError, match=rf"at least {10_000_000 // max(longest, 13)} tokens.* does not fit a context of 64"):
        words.check_length("a" * 10_000_000, n_ctx)
    for text in (TEXT, "a" * (n_ctx * longest), "<|endoftext|>" * n_ctx):
        words.check_length(text, n_ctx)  # may fit
        assert words._bound is not None and words._bound.least_tokens(text) <= len(words.encode(text, special=True))


@pytest.mark.parametrize(
    ("changes", "bounded"),
    [
        ({}, True),
        ({"normalizer": {"type": "NFC"}}, True),
        ({"normalizer": {"type": "NFKC"}}, False),
        ({"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}}, False),
        ({"normalizer": replace({"Regex": " +"}, " ")}, False),
        ({"normalizer": replace({"String": "  "}, " ")}, False),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "added_tokens": []}, False),
    ],
)
def test_tokenizers_that_drop_text_have_no_bound(changes: dict[str, Any], bounded: bool) -> None:
    words = Vocabulary(metadata_with(**changes), 320)
    assert (words._bound is not None) is bounded


def test_white_space_beside_a_stripping_token_counts_nothing() -> None:
    added = [{**token, "rstrip": True} for token in PLAIN["added_tokens"]]
    words = Vocabulary(metadata_with(added_tokens=added), 320)
    text = "<|im_end|>" + " " * 100_000
    assert len(words.encode(text, special=True)) == 1
    words.check_length(text, 64)


# --- tokens beyond the embedding


def test_tokens_beyond_the_embedding_are_ordinary_text(tmp_path: Path) -> None:
    n_vocab = 318
    tokenizer = Tokenizer.from_str(json.dumps(PLAIN))
    tokenizer.add_special_tokens(["<|extra|>"])
    full = json.loads(tokenizer.to_str())
    beyond = [text for text, i in full["model"]["vocab"].items() if i >= n_vocab]
    assert len(beyond) == 2
    words = Vocabulary({"tokenizer.huggingface.json": json.dumps(full)}, n_vocab)
    for text in ("<|extra|>", TEXT, *(bytes(words._alphabet[c] for c in piece).decode("utf-8", "ignore") for piece in beyond)):
        ids = words.encode(text, special=True)
        assert max(ids, default=0) < n_vocab and words.decode(ids).decode() == text
    assert words.id_of("<|extra|>") == -1
    folder = save_llama(tmp_path / "model", {**LLAMA, "vocab_size": n_vocab}, llama_tensors({**LLAMA, "vocab_size": n_vocab}))
    (folder / "tokenizer.json").write_text(json.dumps(full))
    data = tokenizer_of_folder(folder, n_vocab, LLAMA)
    assert data is not None and len(data.keys["tokenizer.ggml.tokens"]) == n_vocab
    assert json.loads(data.json)["added_tokens"] == PLAIN["added_tokens"]


def test_grammars_work_with_a_longer_tokenizer() -> None:
    pytest.importorskip("llguidance")
    import numpy as np

    from turboquant_native.engine.grammar import LlamaGrammar

    words = Vocabulary({**metadata_with(), "tokenizer.ggml.eos_token_id": 1}, 300)
    processor = LlamaGrammar.from_regex("abc").processor(words, 0)
    logits = processor(np.empty(0, np.intc), np.zeros(300, np.float32))
    allowed = {words.piece(int(token)) for token in np.flatnonzero(np.isfinite(logits))}
    assert logits.shape == (300,) and b"a" in allowed and all(b"abc".startswith(piece) for piece in allowed)


# --- what a GGUF file says


def test_a_megabyte_long_piece_is_refused() -> None:
    with pytest.raises(ConvertError, match="token 1 has 1000000 characters, expected at most 256"):
        merges_of_scores({"a": 0, "a" * 10**6: 1}, [0.0, 0.0])
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "=" * 5000]
    keys = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": pieces, "tokenizer.ggml.token_type": [2, 3] + [6] * 256 + [1, 4],
        "tokenizer.ggml.scores": [0.0] * len(pieces), "tokenizer.ggml.add_space_prefix": False,
    }  # fmt: skip
    assert rebuild(keys).encode("a" + "=" * 5000 + "a").ids == [258, 259, 258]  # a user's token may be long


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer.ggml.pre", ["smollm"]),
        ("tokenizer.ggml.pre", 7),
        ("tokenizer.ggml.model", 1.5),
        ("tokenizer.ggml.tokens", "abc"),
        ("tokenizer.ggml.token_type", 4),
        ("tokenizer.ggml.merges", {"a": "b"}),
        ("tokenizer.ggml.bos_token_id", "0"),
        ("tokenizer.ggml.bos_token_id", float("inf")),
        ("tokenizer.ggml.eos_token_id", [1]),
        ("tokenizer.ggml.eos_token_ids", 1),
        ("tokenizer.ggml.eos_token_ids", ["a"]),
        ("tokenizer.ggml.add_bos_token", "yes"),
        ("tokenizer.ggml.add_eos_token", 2),
        ("tokenizer.chat_template", [1]),
        ("tokenizer.chat_template.x" + "y" * 70_000, "{{ x }}"),
        ("tokenizer.huggingface.json", 1),
        ("tokenizer.huggingface.json", "{"),
    ],
)
def test_gguf_tokenizer_fields_of_a_wrong_type(key: str, value: Any) -> None:
    with pytest.raises(ConvertError) as caught:
        tokenizer_of_gguf({**gguf_tokenizer_keys(train_bpe(), "smollm"), key: value}, 320, "m.gguf")
    assert key[:30].removeprefix("tokenizer.chat_template.") in str(caught.value) or "template" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", {"bos_token": ["x"]}),
        ("tokenizer_config.json", {"eos_token": {"content": 1}}),
        ("tokenizer_config.json", {"add_bos_token": "yes"}),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": "a"}}),
        ("tokenizer_config.json", {"chat_template": 7}),
        ("tokenizer_config.json", {"chat_template": [1]}),
        ("tokenizer_config.json", {"chat_template": [{"name": "x" * 300, "template": "a"}]}),
        ("tokenizer_config.json", {"chat_template": [{"name": "x"}, {"name": "y", "template": 1}]}),
        ("tokenizer_config.json", {"chat_template": "\ud800"}),
        ("tokenizer_config.json", []),
        ("added_tokens.json", {"x": "1"}),
        ("generation_config.json", 3),
        ("generation_config.json", {"eos_token_id": ["</s>"]}),
        ("chat_template.json", []),
    ],
)
def test_files_beside_a_tokenizer_of_a_wrong_kind(tmp_path: Path, file: str, content: Any) -> None:
    folder = save_llama(tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    if file != "tokenizer_config.json":
        (folder / "tokenizer_config.json").unlink()
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ConvertError, match=file):
        open_source(str(folder))


# --- a file that is loaded


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer.ggml.bos_token_id", "0"),
        ("tokenizer.ggml.eos_token_id", float("inf")),
        ("tokenizer.ggml.eot_token_id", [1, 2]),
        ("tokenizer.ggml.eom_token_id", True),
        ("tokenizer.ggml.eos_token_ids", ["x"]),
        ("tokenizer.ggml.eos_token_ids", 7),
        ("tokenizer.ggml.add_bos_token", 1),
        ("tokenizer.ggml.add_eos_token", "no"),
        ("tokenizer.huggingface.json", 5),
    ],
)
def test_metadata_of_a_wrong_type_names_its_key(key: str, value: Any) -> None:
    with pytest.raises(FormatError, match=key.replace(".", r"\.")):
        Vocabulary({**metadata_with(), key: value}, 320)


def test_ids_that_no_token_has_are_none() -> None:
    words = Vocabulary({**metadata_with(), "tokenizer.ggml.bos_token_id": 2**32 - 1, "tokenizer.ggml.eos_token_ids": [1, 10**9]}, 320)
    assert words.bos == -1 and words.end_tokens == {1, 2}


def test_a_hostile_file_is_refused_by_llama(tmp_path: Path) -> None:
    """The whole way, in a process that would die."""
    source = open_source(str(save_llama(tmp_path / "model")))
    assert source.tokenizer is not None
    path = tmp_path / "m.gguf"
    bad = json.dumps({**PLAIN, "normalizer": REFUSED["a table without end"][0]["normalizer"], "padding": PADDING})
    write_model(source, make_plan(source, Options(bits=4)), path, extra_metadata={"tokenizer.huggingface.json": bad})
    code = f"from turboquant_native import Llama\ntry:\n    Llama({str(path)!r}, n_ctx=32)\nexcept ValueError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "tokenizer.huggingface.json: normalizer: the precompiled character map" in done.stdout


# --- no tokenizer, and SentencePiece's


def test_a_model_without_a_tokenizer_is_refused_at_the_start(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConvertError, match=r"has no tokenizer\.json and no tokenizer\.model; put the tokenizer"):
        open_source(str(folder))
    assert open_source(str(folder), needs_tokenizer=False).tokenizer is None
    with pytest.raises(ConvertError, match=r"has no tokenizer\.ggml\.tokens"):
        open_source(str(write_gguf(tmp_path / "m.gguf", "llama", LLAMA, llama_tensors())))


def test_sentencepiece_model_gives_the_same_tokens(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join([TEXT] * 20))
    folder = save_llama(tmp_path / "model", {**LLAMA, "vocab_size": 330}, llama_tensors({**LLAMA, "vocab_size": 330}))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "tokenizer"), vocab_size=330, model_type="bpe", byte_fallback=True,
        character_coverage=0.99, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    source = open_source(str(folder))
    assert source.tokenizer is not None
    words = Vocabulary(source.tokenizer.metadata(), 330)
    for text in [TEXT, "Hello world", "a 🚀 b"]:
        assert words.encode(text) == theirs.encode(text)
    assert words.encode("a", add_bos=True)[0] == theirs.bos_id() and words.eos == theirs.eos_id()


@pytest.mark.parametrize("content", [b"", b"\x0a\xff\xff\xff\xff\x0f", b"\xff" * 20, b"\x0a\x03\x0a\x01a"])
def test_a_sentencepiece_model_that_is_none(tmp_path: Path, content: bytes) -> None:
    folder = save_llama(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(content)
    with pytest.raises(ConvertError, match=r"tokenizer\.model: not a readable SentencePiece model"):
        open_source(str(folder))


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside a JSON value."""
    if at:
        yield at
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from _places(value[key], (*at, key))


def test_mutated_tokenizers_raise_nothing_else() -> None:
    small = {**PLAIN["model"], "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    parts = [{"type": "NFC"}, replace({"String": " "}, "_"), {"type": "Prepend", "prepend": "_"}, character_map(bytes(8))]
    whole = {**PLAIN, "model": small, "normalizer": sequence("normalizers", *parts), "post_processor": template([1])}
    strange = [
        None,
        True,
        0,
        -1,
        1.5,
        10**30,
        "",
        "x",
        "\ud800",
        [],
        [1],
        {},
        {"type": ["x"]},
        {"type": "Replace"},
        {"String": 1},
        [[["x"]]],
    ]
    dice, places, alphabet = random.Random(1), list(_places(whole)), Vocabulary(metadata_with(), 320)._alphabet
    refused = 0
    for _ in range(3000):
        changed = json.loads(json.dumps(whole))
        *way, last = dice.choice(places)
        place = changed
        for key in way:
            place = place[key]
        place[last] = dice.choice(strange)
        try:
            description = parsed(json.dumps(changed))
            made_harmless(description, 320)
            bound = text_bound(description, alphabet)
            assert bound is None or bound.least_tokens("a b") <= 3
        except TokenizerError:
            refused += 1
    assert 100 < refused < 2900


def test_the_checks_leave_a_plain_tokenizer_alone() -> None:
    description = parsed(json.dumps(PLAIN))
    assert made_harmless(description, 320) is False and json.loads(compact(description)) == PLAIN


def test_a_sound_file_opens(tiny_tqn: Path) -> None:
    with Llama(str(tiny_tqn), n_ctx=32, verbose=False) as llm:
        assert llm.vocabulary.json == GgufFile(tiny_tqn).metadata["tokenizer.huggingface.json"]
