"""The differentiable student: its forward is the engine's float path, for every architecture and every way that a weight is stored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from architecture_cases import ALL, TOLERANCE, Case, References, convert  # noqa: E402
from turboquant_native import _core  # noqa: E402
from turboquant_native.convert.sources import open_source  # noqa: E402
from turboquant_native.train.network import Network  # noqa: E402
from turboquant_native.train.rotation import rotate, signs, unrotate  # noqa: E402
from turboquant_native.train.weights import PackedWeight, of_file, of_source  # noqa: E402

CPU = torch.device("cpu")
# Architectures with an operation that the student does not have.
UNKNOWN = ("qwen35", "qwen35moe", "qwen3next", "gemma4")  # of Gemma 4: per-layer embeddings, shared caches, a router's own input


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> References:
    return References(tmp_path_factory)


def engine_logits(path: Path, tokens: np.ndarray, n_ctx: int = 128) -> np.ndarray:
    return _core.Context(_core.Model(str(path), threads=1, precision="f32"), n_ctx=n_ctx).eval(tokens, 0, logits="all")


def student_logits(path: Path, tokens: np.ndarray, weights: Any = None, **options: Any) -> np.ndarray:
    model = _core.Model(str(path), threads=1, precision="f32")
    network = Network(model, weights or of_file(model.file, CPU, torch.float32), 128, torch.float32, **options)
    with torch.no_grad():
        logits = network.logits(network.hidden(torch.from_numpy(tokens[None].astype(np.int64))))
    return logits[0].numpy()


def is_refused(case: Case, path: Path) -> bool:
    """Whether the graph has what the student does not know; then it says so."""
    try:
        _core.graph(_core.Model(str(path), threads=1, precision="f32"), 128)
    except _core.UnsupportedError as error:
        assert case.gguf in UNKNOWN and "does not know" in str(error), case.name
        return True
    return False


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """float32 sums in another order, as between the engine and transformers."""
    assert np.abs(theirs).max() > 0.1
    assert np.abs(ours - theirs).max() <= TOLERANCE * max(1.0, float(np.abs(theirs).max()))


@ALL
def test_the_student_is_the_engine(case: Case, references: References, tmp_path: Path) -> None:
    """Packed layers with outliers; what a width forbids to pack stays F16; past any window."""
    reference = references.of(case)
    path = convert(reference.folder, tmp_path / "out.gguf", bits=3, outliers=0.02)
    if not is_refused(case, path):
        assert_same(student_logits(path, reference.tokens), engine_logits(path, reference.tokens))


@ALL
def test_the_teacher_is_the_source(case: Case, references: References, tmp_path: Path) -> None:
    """Weights of the source under the graph of the quantized file."""
    reference = references.of(case)
    path = convert(reference.folder, tmp_path / "out.gguf", bits=3)
    if is_refused(case, path):
        return
    teacher = of_source(open_source(str(reference.folder), needs_tokenizer=False), CPU, torch.float32)
    assert_same(student_logits(path, reference.tokens, teacher), reference.logits)


@pytest.mark.parametrize("bits", _core.FORMATS)
@pytest.mark.parametrize("outliers", [0.0, 0.01])
def test_weights_are_those_of_the_file(tiny_llama_dir: Path, tmp_path: Path, bits: int, outliers: float) -> None:
    file = _core.GgufFile(convert(tiny_llama_dir, tmp_path / "out.gguf", bits=bits, embed_bits=bits, outliers=outliers))
    for name in file.quantized():
        weight = PackedWeight(file, name, CPU, torch.float32)
        stored = file.dequantize(name)
        with torch.no_grad():
            whole = weight.product(torch.eye(weight.n_in)).T.numpy()
            rows = weight.rows(torch.tensor([0, weight.n_out - 1])).numpy()
        bound = 1e-5 * float(np.abs(stored).max())
        assert np.abs(whole - stored).max() <= bound and np.abs(rows - stored[[0, -1]]).max() <= bound


@pytest.mark.parametrize("width", [4, 12, 60, 576, 2 * 2048 + 4, 6144])
def test_rotation_is_the_engines(width: int) -> None:
    w, seed = np.random.default_rng(width).standard_normal((3, width)).astype(np.float32), 12345
    d = signs(width, seed)
    assert set(d.tolist()) <= {-1.0, 1.0}
    np.testing.assert_allclose(rotate(torch.from_numpy(w), d).numpy(), _core.rotate_rows(w, seed), atol=2e-5)
    np.testing.assert_allclose(unrotate(torch.from_numpy(w), d).numpy(), _core.rotate_rows(w, seed, inverse=True), atol=2e-5)


def test_saving_memory_changes_nothing(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """Values, and the gradients of everything that learns."""
    path = convert(tiny_llama_dir, tmp_path / "out.gguf", bits=2, embed_bits=16, outliers=0.01)
    model = _core.Model(str(path), threads=1)
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, 320, (2, 20)))
    found = []
    for saves_memory in (False, True):
        weights = of_file(model.file, CPU, torch.float32)
        network = Network(model, weights, 20, torch.float32, saves_memory)
        network.logits(network.hidden(tokens)).log_softmax(-1)[..., 7].sum().backward()
        found.append({(each.name, each.kind): each.tensor.grad for each in weights.learned()})
    assert {kind for _, kind in found[0]} == {"scales", "norms", "dense", "outliers"}
    for key, gradient in found[0].items():
        assert gradient is not None and gradient.abs().max() > 0, key
        torch.testing.assert_close(found[1][key], gradient, msg=str(key))


def test_gradients_are_those_of_finite_differences(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """Of one number of each kind, by central differences of the engine's own arithmetic in the student."""
    path = convert(tiny_llama_dir, tmp_path / "out.gguf", bits=3, embed_bits=16, outliers=0.01)
    model = _core.Model(str(path), threads=1)
    weights = of_file(model.file, CPU, torch.float32)
    network = Network(model, weights, 20, torch.float32)
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, 320, (1, 20)))

    def loss() -> Any:
        return network.logits(network.hidden(tokens)).log_softmax(-1)[..., 7].mean()

    loss().backward()
    for learned in {each.kind: each for each in weights.learned()}.values():
        gradient, flat, step = learned.tensor.grad.reshape(-1), learned.tensor.data.reshape(-1), 1e-2 * learned.unit
        place = int(gradient.abs().argmax())
        with torch.no_grad():
            flat[place] += step
            above = float(loss())
            flat[place] -= 2 * step
            below = float(loss())
            flat[place] += step
        assert (above - below) / (2 * step) == pytest.approx(float(gradient[place]), rel=0.05, abs=1e-4), learned.name


def test_the_graph_refuses_what_it_cannot_describe(tiny_f32: Path) -> None:
    model = _core.Model(str(tiny_f32), threads=1)
    with pytest.raises(ValueError, match="n_ctx: 0"):
        _core.graph(model, 0)
    with pytest.raises(_core.UnsupportedError, match="several devices"):
        _core.graph(_core.Model(str(tiny_f32), device="cpu*1,cpu*1"), 8)
