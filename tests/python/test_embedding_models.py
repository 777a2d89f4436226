"""Embedding models: what sentence-transformers' files, tokenizers and GGUF say reaches the vectors, as transformers computes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from tiny_models import LLAMA, TEXT, gguf_tokenizer_keys, llama_tensors, save_llama, train_bpe, write_gguf
from turboquant_native import Llama
from turboquant_native.common.errors import ConvertError
from turboquant_native.convert.conversion import Options, make_plan, write_model
from turboquant_native.convert.pooling import NORMALIZE_KEY, embedding_keys_of_folder
from turboquant_native.convert.sources import open_source
from turboquant_native.convert.tokenizer import tokenizer_of_gguf
from turboquant_native.engine.vocabulary import Vocabulary

TEXTS = ["The quick brown fox", "naïve café 12345", "a"]
EOS = 1


def with_eos(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <|im_end|>", special_tokens=[("<|im_end|>", EOS)])
    tokenizer.save(str(folder / "tokenizer.json"))


def sentence_transformer(folder: Path, pooling: dict[str, Any], normalize: bool) -> Path:
    save_llama(folder, {**LLAMA, "architectures": ["LlamaModel"], "tie_word_embeddings": False}, llama_tensors())
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), *([("Normalize", "2_Normalize")] if normalize else [])]
    described = [{"idx": i, "type": f"sentence_transformers.models.{kind}", "path": path} for i, (kind, path) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(described))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def converted(folder: Path, target: Path) -> Path:
    source = open_source(str(folder))
    write_model(source, make_plan(source, Options(outtype="f32")), target)
    return target


POOLINGS = {
    "last": ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, lambda hidden: hidden[-1]),
    "cls": ({"pooling_mode_cls_token": True, "word_embedding_dimension": 48}, lambda hidden: hidden[0]),
    "mean": ({"pooling_mode": "mean"}, lambda hidden: hidden.mean(axis=0)),
}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kind", POOLINGS)
def test_vectors_equal_transformers(tmp_path: Path, kind: str, normalize: bool) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pooling, pool = POOLINGS[kind]
    folder = sentence_transformer(tmp_path / "model", pooling, normalize)
    with_eos(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    with Llama(str(converted(folder, tmp_path / "m.gguf")), n_ctx=64, precision="f32", embedding=True, verbose=False) as llm:
        for text in TEXTS:
            ids = tokenizer(text)["input_ids"]
            assert ids[-1] == EOS and llm.vocabulary.encode_document(text) == ids
            with torch.no_grad():
                expected = pool(model(torch.tensor([ids])).last_hidden_state[0].numpy())
            if normalize:
                expected = expected / np.linalg.norm(expected)
            np.testing.assert_allclose(llm.embed(text), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    with Llama(str(tmp_path / "m.gguf"), n_ctx=64, embedding=True, pooling_type=2, verbose=False) as llm:  # asked for: the first token
        first = np.array(llm.embed(TEXTS[0]))
    assert (np.abs(first - expected).max() > 0.01) or kind == "cls"


def test_the_end_survives_truncation(tmp_path: Path) -> None:
    folder = sentence_transformer(tmp_path / "model", POOLINGS["last"][0], True)
    with_eos(folder)
    with Llama(str(converted(folder, tmp_path / "m.gguf")), n_ctx=16, embedding=True, verbose=False) as llm:
        assert llm.embed(TEXT, return_count=True)[1] == 16
        ids, own = llm.vocabulary.encode_document(TEXT, limit=16), llm.vocabulary.encode(TEXT)
        assert ids == [*own[:15], EOS]


def test_what_an_embedding_file_keeps(tmp_path: Path) -> None:
    source = open_source(str(sentence_transformer(tmp_path / "model", POOLINGS["last"][0], True)))
    assert source.metadata()["llama.pooling_type"] == 3 and source.metadata()[NORMALIZE_KEY] is True
    plain = open_source(str(save_llama(tmp_path / "plain")))
    assert "llama.pooling_type" not in plain.metadata() and NORMALIZE_KEY not in plain.metadata()


def test_gguf_pooling_and_eos(tmp_path: Path) -> None:
    keys = gguf_tokenizer_keys(train_bpe(), "smollm")
    keys |= {"tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": EOS, "tokenizer.ggml.add_bos_token": True}
    keys |= {"tokenizer.ggml.add_eos_token": True, "pooling_type": 3}
    source = open_source(str(write_gguf(tmp_path / "m.gguf", "llama", LLAMA, llama_tensors(), keys)))
    assert source.metadata()["llama.pooling_type"] == 3 and source.tokenizer is not None
    words = Vocabulary(source.tokenizer.metadata(), 320)
    own = words.encode("fox")
    assert words.encode_document("fox") == [0, *own, EOS]
    assert words.encode("fox", add_bos=True) == [0, *own]  # a prompt must not end
    again = tokenizer_of_gguf(source.tokenizer.metadata())
    assert again is not None and again.keys["tokenizer.ggml.add_eos_token"] is True
    with pytest.raises(ConvertError, match=r"llama\.pooling_type is 5, expected a whole number from 0 to 4"):
        open_source(str(write_gguf(tmp_path / "r.gguf", "llama", LLAMA, llama_tensors(), {**keys, "pooling_type": 5})))
    with pytest.raises(ConvertError, match=r"llama\.pooling_type is 4 \(rank\), but there is no cls\.output\.weight"):
        open_source(str(write_gguf(tmp_path / "r.gguf", "llama", LLAMA, llama_tensors(), {**keys, "pooling_type": 4})))


def test_add_eos_token_of_a_folder(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "model")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_bos_token": True, "add_eos_token": True})
    )
    source = open_source(str(folder))
    assert source.tokenizer is not None
    words = Vocabulary(source.tokenizer.metadata(), 320)
    assert words.encode_document("fox") == [0, *words.encode("fox"), 1] and words.add_bos and words.add_eos


@pytest.mark.parametrize(
    ("pooling", "message"),
    [
        ({"pooling_mode_max_tokens": True}, "the pooling mode is 'max_tokens', expected one of mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "'cls_token and mean_tokens'"),
        ({"pooling_mode_cls_token": "yes"}, "pooling_mode_cls_token is 'yes', expected true or false"),
    ],
)
def test_poolings_that_are_not_there(tmp_path: Path, pooling: dict[str, Any], message: str) -> None:
    with pytest.raises(ConvertError, match=message):
        embedding_keys_of_folder(sentence_transformer(tmp_path / "model", pooling, False))


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({}, "expected a list of objects"),
        ([{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}], "the module 'Dense' is not supported"),
        ([{"type": "sentence_transformers.models.Pooling", "path": "../1_Pooling"}], "the path of Pooling is"),
        ([{"type": "sentence_transformers.models.Pooling", "path": "none"}], "no such file"),
    ],
)
def test_modules_that_are_not_there(tmp_path: Path, modules: Any, message: str) -> None:
    folder = sentence_transformer(tmp_path / "model", {}, False)
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ConvertError, match=message):
        open_source(str(folder))
