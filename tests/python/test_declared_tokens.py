"""Tokens that stand beside tokenizer.json are merged as transformers merges them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tiny_models import LLAMA, llama_tensors, save_llama
from turboquant_native.common.errors import ConvertError
from turboquant_native.convert.tokenizer import tokenizer_of_folder
from turboquant_native.engine.vocabulary import Vocabulary

TEXT = "a<tool>b <call> c<|im_end|>d  <|x|> The quick<pad>"
N_VOCAB = 330


def token(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False, **flags}


DECODER = {
    "1": token("<|im_end|>", special=True),
    "320": token("<tool>", special=True),
    "321": token("<call>", rstrip=True),
    "322": token("<|x|>", lstrip=True, special=True),
}
CASES: dict[str, tuple[dict[str, Any], dict[str, int] | None]] = {
    "decoder": ({"added_tokens_decoder": DECODER, "eos_token": "<|im_end|>"}, None),
    "decoder and a named one": ({"added_tokens_decoder": DECODER, "eos_token": "<|im_end|>", "pad_token": "<pad>"}, None),
    "flags of a known token": ({"added_tokens_decoder": {"1": token("<|im_end|>", rstrip=True, special=True)}}, None),
    "a word becomes special": ({"added_tokens_decoder": {}, "unk_token": "The"}, None),
    "added_tokens.json": ({"eos_token": "<|im_end|>"}, {"<tool>": 320, "<call>": 321, "<|x|>": 322}),
    "added_tokens.json, one named": ({"pad_token": "<call>"}, {"<tool>": 320, "<call>": 321}),
}


def folder_with(tmp_path: Path, config: dict[str, Any], added: dict[str, int] | None) -> Path:
    shape = {**LLAMA, "vocab_size": N_VOCAB}
    folder = save_llama(tmp_path / "model", LLAMA)  # a tokenizer of 320 tokens
    save_llama(tmp_path / "weights", shape, llama_tensors(shape))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps(shape))
    if added is not None:
        (folder / "added_tokens.json").write_text(json.dumps(added))
    return folder


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    folder = folder_with(tmp_path, *CASES[name])
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    data = tokenizer_of_folder(folder, N_VOCAB, LLAMA)
    assert data is not None
    ours = Vocabulary(data.metadata(), N_VOCAB)
    assert ours.encode(TEXT, special=True) == theirs(TEXT, add_special_tokens=False)["input_ids"]
    for i, entry in theirs.added_tokens_decoder.items():
        assert ours.id_of(entry.content) == i and ours.is_control(i) == entry.special, entry
        assert data.keys["tokenizer.ggml.tokens"][i] == entry.content
        assert data.keys["tokenizer.ggml.token_type"][i] == (3 if entry.special else 4)


def test_tokens_beyond_the_embedding_are_left_out(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"added_tokens_decoder": {"320": token("<tool>"), "330": token("<far>")}, "pad_token": "<none>"}, None)
    data = tokenizer_of_folder(folder, 321, LLAMA)
    assert data is not None
    ours = Vocabulary(data.metadata(), 321)
    assert ours.id_of("<tool>") == 320 and ours.id_of("<far>") == ours.id_of("<none>") == -1


def test_an_id_that_is_anothers_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"added_tokens_decoder": {"325": token("<tool>")}}, None)
    with pytest.raises(ConvertError, match=r"token '<tool>' is declared as 325, but tokenizer\.json makes it 320"):
        tokenizer_of_folder(folder, N_VOCAB, LLAMA)
