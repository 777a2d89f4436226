"""Files written by earlier releases mean what they meant (tests/data/make_v1.py made them, without the library's decoder)."""

from pathlib import Path

import numpy as np
import pytest

from turboquant_native import _core
from turboquant_native.convert.inspection import describe, verify

DATA = Path(__file__).parents[1] / "data"
EPSILON = float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module")
def meaning() -> dict[str, np.ndarray]:
    with np.load(DATA / "v1.npz") as archive:
        return dict(archive)


def test_version_1_is_whole() -> None:
    result = verify(DATA / "v1.tqn.gguf")
    assert result.ok and result.checksummed == result.tensors
    assert {tensor.type for tensor in describe(DATA / "v1.tqn.gguf").tensors} == {"F32", "TQN1", "TQN2", "TQN3", "TQN4", "TQN6", "TQN8"}


def test_version_1_weights(meaning: dict[str, np.ndarray]) -> None:
    file = _core.GgufFile(DATA / "v1.tqn.gguf")
    names = [name for name in meaning if name.endswith(".weight")]
    assert sorted(names) == sorted(file.quantized())
    for name in names:
        expected = meaning[name]
        # A rotation of n columns in float32: each value is a sum of n terms whose squares sum to the row's; a rounding or two per term.
        bound = 2 * expected.shape[1] * EPSILON * np.linalg.norm(expected, axis=1, keepdims=True) + EPSILON
        assert (np.abs(file.dequantize(name) - expected) <= bound).all(), name


def test_version_1_logits(meaning: dict[str, np.ndarray]) -> None:
    """The float path: float32 arithmetic over two layers against float64."""
    context = _core.Context(_core.Model(str(DATA / "v1.tqn.gguf"), precision="f32"), n_ctx=32)
    logits = context.eval(meaning["tokens"].astype(np.int32), 0, logits="all")
    np.testing.assert_allclose(logits, meaning["logits"], rtol=0, atol=1e-4 * np.abs(meaning["logits"]).max())
