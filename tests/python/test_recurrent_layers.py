"""Models with recurrent layers: results do not depend on how a prompt is cut, states can be saved, kept and returned to."""

from pathlib import Path

import numpy as np
import pytest

from turboquant_native import _core
from turboquant_native.convert.conversion import Options, make_plan, write_model
from turboquant_native.convert.sources import open_source

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

N = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(
        "qwen3_5_text", vocab_size=96, hidden_size=48, intermediate_size=80, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=128, linear_num_key_heads=2, linear_key_head_dim=12,
        linear_num_value_heads=4, linear_value_head_dim=20,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("recurrent")
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=["f32", "int8"])
def model(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> _core.Model:
    source, out = open_source(str(folder), needs_tokenizer=False), tmp_path_factory.mktemp("model") / "out.gguf"
    write_model(source, make_plan(source, Options(bits=4)), out)
    return _core.Model(str(out), threads=2, precision=request.param)


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(5).integers(2, 96, N).astype(np.int32)


def test_cuts_of_a_prompt_do_not_show(model: _core.Model, tokens: np.ndarray) -> None:
    """The recurrence is the same to the bit; matrices and attention round sums by the number of rows in the float path."""
    results = []
    for cuts in ([N], [1] * N, [3, 20, 1, 16]):
        ctx, at = _core.Context(model, n_ctx=64), 0
        for n in cuts:
            logits = ctx.eval(tokens[at : at + n], at)
            at += n
        results.append(logits)
    for logits in results[1:]:
        assert np.isfinite(logits).all()
        np.testing.assert_allclose(logits, results[0], atol=1e-4, rtol=0)
        print("cuts differ by", np.abs(logits - results[0]).max())


def test_a_slot_starts_anew_returns_and_moves(model: _core.Model, tokens: np.ndarray) -> None:
    ctx = _core.Context(model, n_ctx=64, n_slots=2)
    ctx.eval(tokens[:20], 0)
    kept, saved = ctx.snapshot(0), ctx.save(0, 20)
    expected = ctx.eval(tokens[20:], 20)
    assert np.isfinite(expected).all()
    with pytest.raises(_core.UnsupportedError, match="recurrent"):
        ctx.rewind(0, 10)
    ctx.restore(0, kept)
    np.testing.assert_array_equal(ctx.eval(tokens[20:], 20), expected)
    ctx.restore(0, kept)
    ctx.eval(tokens[:7], 20)  # another text, then back
    ctx.restore(0, kept)
    np.testing.assert_array_equal(ctx.eval(tokens[20:], 20), expected)
    other = _core.Context(model, n_ctx=64)
    other.load(0, saved)
    np.testing.assert_array_equal(other.eval(tokens[20:], 20), expected)
    ctx.eval(tokens[:20], 0)  # from the beginning again: nothing is left of before
    np.testing.assert_array_equal(ctx.eval(tokens[20:], 20), expected)
