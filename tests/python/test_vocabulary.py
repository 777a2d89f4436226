"""Token pieces as bytes, for the kinds of tokenizers that models have, against the tokenizers library's own decoding."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers

from tiny_models import TEXT, train_bpe
from turboquant_native.engine.streaming import TextStream
from turboquant_native.engine.vocabulary import Vocabulary

TEXTS = ["The quick brown fox", " leading and trailing ", "naïve café 我想 🚀", "unknown: ß∂ƒ 한국", "a\n\n  b\t", "12345"]


def sentencepiece(prefix: bool) -> Tokenizer:
    """Like Llama 2's (with the space before the first word) or Gemma's (without): BPE on characters, bytes for the unknown ones."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    space = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space] if prefix else [space])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefix else parts)
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    description = tokenizer.to_str()
    merged = Tokenizer.from_str(description)
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *bytes_])}
    for token in sorted(merged.get_vocab(), key=merged.get_vocab().get):
        vocab.setdefault(token, len(vocab))
    data = json.loads(description)
    data["model"]["vocab"] = vocab
    data["added_tokens"] = [{**token, "id": vocab[token["content"]]} for token in data["added_tokens"]]
    return Tokenizer.from_str(json.dumps(data))


def vocabulary(tokenizer: Tokenizer, **metadata) -> Vocabulary:
    keys = {"tokenizer.huggingface.json": tokenizer.to_str(), **{f"tokenizer.ggml.{key}": value for key, value in metadata.items()}}
    return Vocabulary(keys, tokenizer.get_vocab_size() + 3)


KINDS = {"byte level": train_bpe, "sentencepiece": lambda: sentencepiece(True), "gemma": lambda: sentencepiece(False)}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys(), scope="module")
def tokenizer(request) -> Tokenizer:
    return request.param()


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_is_the_librarys(tokenizer, text):
    words = vocabulary(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert words.encode(text.encode()) == ids
    assert words.decode(ids).decode() == tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_add_up(tokenizer, text):
    """A continuation keeps its leading space, and a stream of single tokens gives whole characters."""
    words = vocabulary(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    stream = TextStream()
    streamed = "".join(stream.push(words.piece(token)) for token in ids) + stream.finish()
    assert streamed in (text, " " + text)  # the space before a text's first word is part of its piece
    assert b"".join(words.decode([token], previous=[5]) for token in ids).decode() == streamed


def test_control_tokens():
    tokenizer = train_bpe()
    tokenizer.add_special_tokens([AddedToken("<|tool|>", special=True)])
    tokenizer.add_tokens([AddedToken("visible", special=False)])
    words = vocabulary(tokenizer, bos_token_id=0, eos_token_id=1, eot_token_id=2)
    tool, shown = words.id_of("<|tool|>"), words.id_of("visible")
    assert words.encode("a<|tool|>visible", special=True)[-2:] == [tool, shown]
    assert tool not in words.encode("a<|tool|>visible") and words.encode("a<|tool|>visible")[-1] == shown
    assert words.decode([tool, shown]) == b"visible" and words.decode([tool], special=True) == b"<|tool|>"
    assert words.end_tokens == {1, 2} and words.id_of("nothing") == -1


def test_bos_is_added_once_and_only_where_the_model_wants_it():
    tokenizer = train_bpe()
    wants = vocabulary(tokenizer, bos_token_id=0, add_bos_token=True)
    assert wants.encode("a", add_bos=True)[0] == 0 and wants.encode("a", add_bos=False)[0] != 0
    assert wants.encode("<|im_start|>a", add_bos=True, special=True).count(0) == 1
    assert vocabulary(tokenizer, bos_token_id=0, add_bos_token=False).encode("a", add_bos=True)[0] != 0
    assert vocabulary(tokenizer, bos_token_id=0).encode("a", add_bos=True)[0] != 0


def test_ends_are_found_by_their_usual_names():
    assert vocabulary(train_bpe()).end_tokens == {1, 2}  # <|im_end|> and <|endoftext|>
    tokenizer = train_bpe()
    tokenizer.add_special_tokens(["<|end|>"])
    assert vocabulary(tokenizer).end_tokens == {1, 2, tokenizer.token_to_id("<|end|>")}
    tokenizer.add_special_tokens(["<|channel|>", "<|return|>"])
    assert vocabulary(tokenizer).end_tokens == {1, 2}  # where answers are several messages, it ends only one


def test_ids_without_a_piece():
    words = vocabulary(train_bpe())
    assert words.piece(words.n_vocab - 1) == b""  # rows of the model beyond the tokenizer's words
    for token in (-1, words.n_vocab):
        with pytest.raises(ValueError, match=str(token)):
            words.piece(token)


def test_files_without_a_tokenizer():
    with pytest.raises(ValueError, match=r"tokenizer\.huggingface\.json"):
        Vocabulary({}, 10)
    with pytest.raises(ValueError, match=r"tokenizer\.huggingface\.json: not JSON"):
        Vocabulary({"tokenizer.huggingface.json": "{"}, 10)
