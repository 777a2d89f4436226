"""Files of this version by earlier releases mean what they meant (tests/data/make_v2.py made them, without the library's decoder)."""

from pathlib import Path

import numpy as np
import pytest

from spec_decoder import decode, random_codebook
from turboquant_native import _core
from turboquant_native.convert.inspection import describe, verify

DATA = Path(__file__).parents[1] / "data"
EPSILON = float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module")
def meaning() -> dict[str, np.ndarray]:
    with np.load(DATA / "v2.npz") as archive:
        return dict(archive)


def test_version_2_is_whole() -> None:
    result = verify(DATA / "v2.tqn.gguf")
    assert result.ok and result.checksummed == result.planes
    assert {tensor.type for tensor in describe(DATA / "v2.tqn.gguf").tensors} == {"F32", "TQN1", "TQN2", "TQN3", "TQN4", "TQN6", "TQN8"}


def test_version_2_weights(meaning: dict[str, np.ndarray]) -> None:
    file = _core.GgufFile(DATA / "v2.tqn.gguf")
    names = [name for name in meaning if name.endswith(".weight")]
    assert sorted(names) == sorted(file.quantized())
    for name in names:
        expected = meaning[name]
        # A rotation of n columns in float32: each value is a sum of n terms whose squares sum to the row's; a rounding or two per term.
        bound = 2 * expected.shape[1] * EPSILON * np.linalg.norm(expected, axis=1, keepdims=True) + EPSILON
        assert (np.abs(file.dequantize(name) - expected) <= bound).all(), name


def test_version_2_logits(meaning: dict[str, np.ndarray]) -> None:
    """The float path: float32 arithmetic over two layers against float64."""
    context = _core.Context(_core.Model(str(DATA / "v2.tqn.gguf"), precision="f32"), n_ctx=32)
    logits = context.eval(meaning["tokens"].astype(np.int32), 0, logits="all")
    np.testing.assert_allclose(logits, meaning["logits"], rtol=0, atol=1e-4 * np.abs(meaning["logits"]).max())


def test_version_1_is_refused(tmp_path: Path) -> None:
    """Format 1 was never released to users: its files are made again."""
    key = b"turboquant.version" + (4).to_bytes(4, "little")
    old = tmp_path / "old.gguf"
    old.write_bytes((DATA / "v2.tqn.gguf").read_bytes().replace(key + (2).to_bytes(4, "little"), key + (1).to_bytes(4, "little")))
    with pytest.raises(RuntimeError, match=r"old.gguf\": turboquant.version is 1; this release reads version 2: convert it again"):
        _core.Model(str(old))


@pytest.mark.parametrize("bits", _core.FORMATS)
def test_a_decoder_written_from_the_specification_agrees(bits: int) -> None:
    random = np.random.default_rng(bits)
    codes = random.integers(0, 256, _core.plane_bytes(70, 12, bits)["codes"], dtype=np.uint8)
    for codebook in (_core.default_codebook(bits)[0], random_codebook(random, bits)):
        np.testing.assert_array_equal(_core.reference_decode(codes, bits, 70, 12, codebook), decode(codes, bits, codebook, 70, 12))
