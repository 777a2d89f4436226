"""One matrix: outliers, rotation seeds, error feedback, and what a quantized file decodes to."""

from pathlib import Path

import numpy as np
import pytest

from tiny_models import LLAMA, save_llama
from turboquant_native import _core
from turboquant_native.commands import convert as convert_hf_to_tq
from turboquant_native.convert import quantize
from turboquant_native.convert.conversion import Options, make_plan, write_model
from turboquant_native.convert.feedback import block_feedback, times_definite_inverse, times_inverse, upper_factor
from turboquant_native.convert.quantize import ErrorFeedback, MatrixSpec, input_site, quantize_matrix, rotation_seed, take_outliers
from turboquant_native.convert.sources import open_source

# Mean squared error of the formats on N(0, 1) (docs/format.md); a few per cent more on small matrices, whose tails vary.
DISTORTION = {1: 0.2765, 2: 0.0702, 3: 0.0184, 4: 0.0054, 6: 0.00066}


def random_matrix(n_out: int, n_in: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n_out, n_in)).astype(np.float32)


@pytest.mark.parametrize("bits", DISTORTION)
def test_relative_error_is_the_formats(bits: int) -> None:
    w = random_matrix(192, 144)
    result = quantize_matrix(w, MatrixSpec(bits, seed=3))
    relative = float(np.sum((result.dequantize() - w) ** 2) / np.sum(w**2))
    assert 0.9 * DISTORTION[bits] < relative < 1.1 * DISTORTION[bits]
    assert result.squared_error == pytest.approx(relative * np.sum(w**2), rel=1e-3)


def test_outliers_are_the_largest_and_exact() -> None:
    w = random_matrix(64, 96)
    w[3, 7], w[60, 95] = 100, -50
    rest, outliers = take_outliers(w, 10 / w.size)
    assert outliers is not None and outliers.val.size == 10 and outliers.ptr[-1] == 10
    kept = np.sort(np.abs(outliers.val))
    assert kept[-2:].tolist() == [50, 100] and np.abs(rest).max() <= kept[0] * (1 + 2**-10)
    rows = np.repeat(np.arange(64), np.diff(outliers.ptr))
    assert (rest[rows, outliers.col] == 0).all()
    np.testing.assert_allclose(rest[rows, outliers.col] + outliers.val, w[rows, outliers.col], rtol=2**-11)
    assert np.count_nonzero(rest != w) == 10


def test_outliers_weighted_by_columns() -> None:
    w, weight = np.ones((8, 8), np.float32), np.ones(8, np.float32)
    weight[5] = 9
    _, outliers = take_outliers(w, 8 / w.size, weight)
    assert outliers is not None and (outliers.col == 5).all()


def test_outliers_weighted_by_rows() -> None:
    w, weight = np.ones((8, 8), np.float32), np.ones(8, np.float32)
    weight[5] = 9
    _, outliers = take_outliers(w, 8 / w.size, row_weight=weight)
    assert outliers is not None and np.diff(outliers.ptr).tolist() == [0, 0, 0, 0, 0, 8, 0, 0]


@pytest.mark.parametrize("w", [np.zeros((64, 8), np.float32), np.full((64, 8), 1e6, np.float32)])
def test_no_outliers_where_none_can_be_stored(w: np.ndarray) -> None:
    assert take_outliers(w, 0.1)[1] is None


def test_equal_weights_give_exactly_the_count() -> None:
    _, outliers = take_outliers(np.ones((16, 16), np.float32), 0.1)
    assert outliers is not None and outliers.val.size == 26  # round(25.6)


def test_sites_and_seeds() -> None:
    assert input_site("blk.3.attn_v.weight") == input_site("blk.3.attn_k.weight") == "blk.3.attn_q"
    assert input_site("blk.3.ffn_up.weight") == "blk.3.ffn_gate" and input_site("blk.3.ffn_up.7.weight") == "blk.3.ffn_gate.7"
    assert input_site("blk.3.attn_output.weight") == "blk.3.attn_output" and input_site("output.weight") == "output"
    shared = {rotation_seed(f"blk.3.{name}.weight") for name in ("ffn_gate.0", "ffn_up.0", "ffn_gate.7", "ffn_gate_shexp", "ffn_up_shexp")}
    assert len(shared) == 1
    names = ("blk.3.attn_q", "blk.3.attn_output", "blk.3.ffn_gate", "blk.3.ffn_down", "blk.4.attn_q", "token_embd", "output")
    assert len({rotation_seed(f"{name}.weight") for name in names}) == len(names)
    assert rotation_seed("blk.3.attn_q.weight", seed=1) != rotation_seed("blk.3.attn_q.weight")


def test_error_feedback_lowers_the_loss() -> None:
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((400, 12)) @ rng.standard_normal((12, 48)) + 0.1 * rng.standard_normal((400, 48))).astype(np.float32)
    h, w = (x.T @ x / 400).astype(np.float32), random_matrix(128, 48, seed=2)

    def loss(result: np.ndarray) -> float:
        return float(np.sum(((result - w) @ x.T) ** 2))

    plain = quantize_matrix(w, MatrixSpec(3, seed=5)).dequantize()
    feedback = quantize_matrix(w, MatrixSpec(3, seed=5), h).dequantize()
    assert loss(feedback) < 0.5 * loss(plain)


def test_columns_with_strong_inputs_are_rounded_first(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((400, 64)) @ rng.standard_normal((64, 64)) * np.geomspace(0.1, 10, 64)).astype(np.float32)
    h, w = x.T @ x / 400, random_matrix(128, 64, seed=2)

    def loss() -> float:
        return float(np.sum(((quantize_matrix(w, MatrixSpec(2, seed=None), h).dequantize() - w) @ x.T) ** 2))

    strongest_first = loss()
    monkeypatch.setattr(quantize, "_rounding_order", lambda hessian: (np.arange(16, dtype=np.int32), np.arange(64)))
    assert strongest_first < 0.8 * loss()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_quantized_file_decodes_to_what_was_rounded(tmp_path: Path, bits: int) -> None:
    source = open_source(str(save_llama(tmp_path / "model")))
    plan = make_plan(source, Options(bits=bits, outliers=0.01))
    summary = write_model(source, plan, tmp_path / "out.gguf")
    file = _core.GgufFile(str(tmp_path / "out.gguf"))
    for name in ("blk.0.attn_k.weight", "blk.1.ffn_down.weight"):
        w, spec = source.read(name), next(tensor.spec for tensor in plan if tensor.name == name)
        assert spec is not None
        ours = quantize_matrix(w, spec).dequantize()
        np.testing.assert_allclose(file.dequantize(name), ours, atol=1e-5 * np.abs(w).max())
    assert sum(tensor.bytes for tensor in plan) <= summary.file_bytes


def test_planned_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    source = open_source(str(save_llama(tmp_path / "model")))
    plan = make_plan(source, Options(bits=3, outliers=0.01))
    write_model(source, plan, tmp_path / "out.gguf")
    file = _core.GgufFile(str(tmp_path / "out.gguf"))
    sizes = {name: file.data(name).nbytes for name, _, _ in file.tensors()}
    for tensor in plan:
        stored = sum(size for name, size in sizes.items() if name == tensor.name or name.startswith(f"{tensor.name}.tqn"))
        assert stored == tensor.bytes, tensor.name


def test_conversion_is_deterministic_and_resumable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_llama(tmp_path / "model", {**LLAMA, "num_hidden_layers": 1})
    whole, parts = tmp_path / "whole.gguf", tmp_path / "parts.gguf"
    assert convert_hf_to_tq.main([str(folder), str(whole), "--effort", "none", "--quiet"]) == 0
    source = open_source(str(folder))
    plan, rounded = make_plan(source, Options()), []

    def stops_after_three(name: str, w: np.ndarray, spec: MatrixSpec, progress: object) -> object:
        if len(rounded) == 3:
            raise KeyboardInterrupt
        rounded.append(name)
        return quantize_matrix(w, spec)

    with pytest.raises(KeyboardInterrupt):
        write_model(source, plan, parts, rounder=stops_after_three, resume=True)
    assert not parts.exists()
    again: list[str] = []

    def counts(name: str, w: np.ndarray, spec: MatrixSpec, progress: object) -> object:
        again.append(name)
        return quantize_matrix(w, spec)

    write_model(source, plan, parts, rounder=counts, resume=True)
    assert not set(again) & set(rounded) and parts.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "parts.gguf", "whole.gguf"]


@pytest.mark.parametrize(("n", "rank"), [(4, 4), (8, 3), (48, 48), (516, 40), (1028, 1028)])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_feedback_by_lapack_is_the_cores(n: int, rank: int, scale: float) -> None:
    """Also where the Hessian is singular, and where its blocks of rows do not come out even."""
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n, rank)) * np.exp(rng.standard_normal((n, 1)))
    hessian = np.asarray(x @ x.T / rank * scale, np.float32)
    for damping in (0.03, 1e-4):
        np.testing.assert_allclose(block_feedback(hessian, damping), _core.feedback(hessian, damping, 1), rtol=1e-5, atol=1e-6)


def test_hessians_without_a_factor_are_refused() -> None:
    for bad, message in ((np.full((4, 4), np.nan), "finite"), (-np.eye(4), "not negative"), (1e6 * (1 - np.eye(4)), "semidefinite")):
        with pytest.raises(ValueError, match=message):
            block_feedback(bad.astype(np.float32), 0.03)
    assert not block_feedback(np.zeros((8, 8), np.float32), 0.03).any()


@pytest.mark.parametrize(("rows", "n"), [(1, 1), (3, 4), (7, 127), (5, 128), (2, 129), (40, 516)])
@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_solutions_for_factors_and_definite_matrices(rows: int, n: int, scale: float) -> None:
    """Against the product: what is left over is a few rounding errors of float32 for each of n terms."""
    rng = np.random.default_rng(n)
    x = rng.standard_normal((rows, n), dtype=np.float32)
    root = rng.standard_normal((n, n + 8)) * np.exp(rng.standard_normal((n, 1)))
    h = np.asarray(scale * (root @ root.T / n + 0.2 * np.trace(root @ root.T) / n**2 * np.eye(n)), np.float32)
    factor = upper_factor(h, 0.03).astype(np.float32)
    for solution, matrix in ((times_inverse(x, factor), factor), (times_definite_inverse(x, h), h)):
        assert solution.dtype == np.float32 and solution.shape == x.shape
        size = np.abs(solution).astype(np.float64) @ np.abs(matrix) + np.abs(x)
        assert (np.abs(solution.astype(np.float64) @ matrix - x) <= 20 * np.sqrt(n) * 2.0**-24 * size).all()


def test_what_rounding_made_indefinite_is_solved_in_general() -> None:
    h = np.diag(np.array([2, -1, 4], np.float32))
    np.testing.assert_allclose(times_definite_inverse(np.ones((1, 3), np.float32), h), [[0.5, -1, 0.25]])


def test_feedback_that_matrices_of_a_site_share_gives_each_the_same_codes() -> None:
    rng = np.random.default_rng(4)
    x = (rng.standard_normal((300, 64)) * np.geomspace(1, 20, 64)).astype(np.float32)
    hessian, spec = x.T @ x / 300, MatrixSpec(3, 9, damping=0.03)
    shared = ErrorFeedback.of(hessian, spec)
    for n_out in (1, 65):
        w = rng.standard_normal((n_out, 64)).astype(np.float32)
        own, other = quantize_matrix(w, spec, hessian), quantize_matrix(w, spec, hessian, feedback=shared)
        assert np.array_equal(own.packed.codes, other.packed.codes)
        assert not np.array_equal(own.packed.codes, quantize_matrix(w, spec).packed.codes)
