"""Calibrated conversion on a tiny model: statistics, targets, budgets, resuming, hard inputs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tiny_models import LLAMA, llama_tensors, save_llama
from turboquant_native import _core
from turboquant_native.calibrate import quantizer
from turboquant_native.calibrate import request as requests
from turboquant_native.calibrate import text as calibration_text
from turboquant_native.calibrate.quantizer import Quantizer
from turboquant_native.calibrate.request import Effort, Request
from turboquant_native.calibrate.rounding import SequentialRounder, Settings, SiteStatistics, relative_error
from turboquant_native.calibrate.sensitivity import SensitivityMeter
from turboquant_native.calibrate.text import default_windows
from turboquant_native.calibrate.widths import WidthChooser
from turboquant_native.commands import convert as convert_hf_to_tq
from turboquant_native.common.errors import ConvertError
from turboquant_native.common.progress import Stopwatch
from turboquant_native.convert.conversion import Options, bits_per_weight, make_plan, write_model
from turboquant_native.convert.quantize import MatrixSpec, quantize_matrix
from turboquant_native.convert.sources import open_source

_FULL_EFFORTS = requests.EFFORTS


@pytest.fixture(autouse=True)
def little_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "EFFORTS", {"fast": Effort(6, 3), "max": Effort(6, 3, verify=True)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("model") / "tied")


def convert(model: Path, out: Path, request: Request | None = None, options: Options | None = None) -> Quantizer:
    source = open_source(str(model), None, None)
    request = request or Request(effort="fast", seq_len=32)
    options = options or (Options() if request.has_budget else Options(bits=3, embed_bits=4))
    run = Quantizer(source, out, options, request, threads=1)
    run.run(overwrite=True)
    return run


def test_target_is_the_least_squares_solution() -> None:
    """With the whole correction and no damping the target is the regression of W x + r on x'."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 12)).astype(np.float32)
    changed = (x + 0.3 * rng.standard_normal(x.shape)).astype(np.float32)
    residual = rng.standard_normal((400, 5)).astype(np.float32)
    w = rng.standard_normal((5, 12)).astype(np.float32)
    statistics = SiteStatistics()
    for part in np.split(np.arange(400), 4):
        statistics.add(changed[part], x[part], residual[part])
    target = statistics.target(w, Settings(cross=1, residual=1, correction_damping=0))
    expected = np.linalg.lstsq(changed.astype(np.float64), x.astype(np.float64) @ w.T + residual, rcond=None)[0].T
    np.testing.assert_allclose(target, expected, rtol=2e-4, atol=2e-4)  # float32 sums of 400 products


def test_equal_inputs_leave_the_matrix_alone() -> None:
    x = np.random.default_rng(1).standard_normal((64, 8)).astype(np.float32)
    w = np.eye(8, dtype=np.float32)
    statistics = SiteStatistics()
    statistics.add(x, x, np.zeros((64, 8), np.float32))
    np.testing.assert_allclose(statistics.target(w, Settings()), w, atol=1e-6)


def test_calibration_beats_plain_rounding_under_the_hessian() -> None:
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((512, 64)) @ rng.standard_normal((64, 64)) * np.geomspace(1, 30, 64)).astype(np.float32)
    w, hessian = rng.standard_normal((96, 64)).astype(np.float32), x.T @ x / 512
    spec = MatrixSpec(3, 7)
    errors = [relative_error(w, quantize_matrix(w, spec, h).dequantize(), hessian) for h in (None, hessian)]
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e25])
@pytest.mark.parametrize("rank", [1, 8])
def test_hard_hessians(scale: float, rank: int) -> None:
    """Zero, singular, tiny and huge statistics, with dead channels: finite weights, no worse than half the energy."""
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((40, rank)) @ rng.standard_normal((rank, 32))).astype(np.float32) * np.float32(np.sqrt(scale))
    x[:, 5:9] = 0
    statistics = SiteStatistics()
    statistics.add(x, x)
    w = rng.standard_normal((3, 32)).astype(np.float32)
    target = statistics.target(w, Settings())
    result = quantize_matrix(target, MatrixSpec(4, 1, damping=0.03), statistics.hessian).dequantize()
    assert np.isfinite(result).all()
    assert np.square(result - w).sum() < 0.5 * np.square(w).sum()


def test_one_row_matrix() -> None:
    w = np.linspace(-1, 1, 32, dtype=np.float32)[None]
    assert quantize_matrix(w, MatrixSpec(4, 1), np.eye(32, dtype=np.float32)).dequantize().shape == (1, 32)


@pytest.mark.parametrize("own_text", [True, False])
def test_a_model_whose_activations_overflow_is_refused(tmp_path: Path, own_text: bool) -> None:
    tensors = llama_tensors()
    tensors["model.layers.1.post_attention_layernorm.weight"][:] = 1e38
    model = save_llama(tmp_path / "model", tensors=tensors)
    (tmp_path / "text.txt").write_text("the quick brown fox " * 200)
    request = Request(bpw=4, effort="fast", seq_len=32, calib=tmp_path / "text.txt" if own_text else None)
    with pytest.raises(ConvertError, match="not finite"):
        convert(model, tmp_path / "m.gguf", request)
    assert not (tmp_path / "m.gguf").exists()


def test_outliers_are_accounted_for_exactly(folder: Path, tmp_path: Path) -> None:
    run = convert(folder, tmp_path / "m.gguf", options=Options(bits=3, embed_bits=4, outliers=0.01))
    file = _core.GgufFile(tmp_path / "m.gguf")
    sizes = {name: size for name, _, size in file.places()}
    bits = weights = 0
    for name, entry in file.quantized().items():
        table = sum(sizes[f"{name}.tqn_out_{part}"] for part in ("ptr", "col", "val"))
        stored = run.report.tensors[name]
        assert entry["outliers"] == round(0.01 * stored["weights"])
        assert stored["outlier_bits"] * stored["weights"] == pytest.approx(8 * table)
        bits, weights = bits + 8 * table, weights + stored["weights"]
    everything = sum(tensor["weights"] for tensor in run.report.tensors.values())
    assert run.report.outliers["bits_per_weight"] == pytest.approx(bits / everything)
    assert run.report.outliers["fraction"] == pytest.approx(0.01 * weights / everything)


def test_nan_in_activations_is_refused() -> None:
    statistics = SiteStatistics()
    statistics.add(np.full((2, 4), np.nan, np.float32))
    with pytest.raises(ConvertError, match=r"blk\.1\.ffn_down.*not finite"):
        statistics.check("blk.1.ffn_down")


@pytest.mark.parametrize("budget", [{"bpw": 0.5}, {"size": 1000}])
def test_budgets_below_the_smallest_widths_are_refused_at_once(folder: Path, tmp_path: Path, budget: dict[str, float]) -> None:
    with pytest.raises(ConvertError, match=f"--{next(iter(budget))} .* smallest widths"):
        convert(folder, tmp_path / "m.gguf", Request(effort="fast", **budget))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_damaged_plan_is_refused_at_once(folder: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text("{")
    with pytest.raises(ConvertError, match=r"plan\.json"):
        convert(folder, tmp_path / "m.gguf", Request(bpw=4, effort="fast", plan=plan))
    assert list(tmp_path.iterdir()) == [plan]


@pytest.mark.parametrize("bpw", [3.2, 4.0, 6.5])
def test_budget_is_met_and_used(folder: Path, tmp_path: Path, bpw: float) -> None:
    run = convert(folder, tmp_path / "m.gguf", Request(bpw=bpw, effort="fast", seq_len=32))
    file = _core.GgufFile(tmp_path / "m.gguf")
    used = sum(size for name, _, size in file.places() if "attn_k_cache" not in name)  # these are no weights
    weights = open_source(str(folder), None, None).parameters
    assert 0.93 * bpw <= 8 * used / weights <= bpw  # the matrices are small: one step of one of them is up to 7 % of the file
    assert {entry["bits"] for entry in file.quantized().values()} == {t["bits"] for t in run.report.tensors.values() if "bits" in t}
    assert used == sum(tensor["bytes"] for tensor in run.report.tensors.values())  # outliers included


def test_verification_measures_both_plans_and_plain_rounding(folder: Path, tmp_path: Path) -> None:
    run = convert(folder, tmp_path / "m.gguf", Request(bpw=5, effort="max", seq_len=32))
    measured = run.report.candidates
    assert set(measured) == {"allocated", "simple rule"}
    assert run.report.measured_kld == measured[run.report.kept]
    assert run.report.plain_kld is not None and run.report.plain_kld > run.report.measured_kld
    assert _widths(tmp_path / "m.gguf") == {name: tensor["bits"] for name, tensor in run.report.tensors.items() if "bits" in tensor}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("allocated", "simple", "kept"),
    [
        ([0.1, 0.1, 0.1], [0.2, 0.2, 0.2], "allocated"),
        ([0.3, 0.2, 0.1], [0.2, 0.1, 0.0], "simple rule"),
        ([0.3, 0.2, 0.1], [0.1, 0.0, 0.4], "allocated"),  # better by .033 in the mean, which is chance
    ],
)
def test_the_simple_rule_is_kept_where_it_is_clearly_better(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allocated: list[float], simple: list[float], kept: str
) -> None:
    """Then its widths are in the file; only the allocation's own file has the allocation's predictions."""
    losses = iter([allocated, simple])
    monkeypatch.setattr(Quantizer, "_measure", lambda *_: np.array(next(losses)))
    monkeypatch.setattr(Quantizer, "_measure_plain", lambda *_: 0.7)
    plan = tmp_path / "plan.json"
    run = convert(folder, tmp_path / "m.gguf", Request(bpw=5, effort="max", seq_len=32, plan=plan))
    assert run.report.kept == kept
    assert _widths(tmp_path / "m.gguf") == {name: entry["bits"] for name, entry in json.loads(plan.read_text()).items()}
    assert run.report.measured_kld == pytest.approx(np.mean(simple if kept == "simple rule" else allocated))
    assert (run.report.predicted_kld is not None) == (kept == "allocated")
    assert ("kept: the simple rule's" in run.report.text()) == (kept == "simple rule")
    assert "by plain rounding 0.7" in run.report.text()


def test_the_simple_rule_keeps_outliers_that_were_asked_for(folder: Path, tmp_path: Path) -> None:
    source = open_source(str(folder), None, None)
    request = Request(bpw=5, effort="max", auto_outliers=False)
    plan = WidthChooser(source, Options(outliers=0.01), request).simple_rule(0)
    assert {tensor.spec.outliers for tensor in plan if tensor.spec is not None} == {0.01}
    assert bits_per_weight(plan) <= 5


def test_a_finished_run_that_left_its_folder_behind_can_be_repeated(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, request = tmp_path / "m.gguf", Request(bpw=5, effort="max", seq_len=32)
    remove = shutil.rmtree

    def killed(path: Path, **options: bool) -> None:
        if out.exists():
            raise ZeroDivisionError
        remove(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(quantizer.shutil, "rmtree", killed)
        with pytest.raises(ZeroDivisionError):
            convert(folder, out, request)
    first = out.read_bytes()
    convert(folder, out, request)
    assert out.read_bytes() == first and not list(tmp_path.glob(".*"))


def test_no_room_for_the_comparison_does_not_cost_the_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = quantizer.write_model

    def full(source: object, plan: object, target: Path, **options: object) -> object:
        if target.name == "plain.gguf":
            raise ConvertError("not enough disk space")
        return write(source, plan, target, **options)

    monkeypatch.setattr(quantizer, "write_model", full)
    run = convert(folder, tmp_path / "m.gguf", Request(bpw=5, effort="max", seq_len=32))
    assert run.report.plain_kld is None and "by plain rounding" not in run.report.text() and (tmp_path / "m.gguf").exists()


def _widths(path: Path) -> dict[str, int]:
    return {name: entry["bits"] for name, entry in _core.GgufFile(path).quantized().items()}


def test_by_default_a_conversion_is_verified() -> None:
    assert not _FULL_EFFORTS["fast"].verify and _FULL_EFFORTS[Request.effort].verify and _FULL_EFFORTS["max"].verify


def test_an_unfinished_run_with_other_widths_leaves_no_trace(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(bits=3, embed_bits=16)  # no embedding to round: the first layer looks for states
    convert(folder, tmp_path / "whole.gguf", options=options)
    with monkeypatch.context() as patch:
        patch.setattr(SequentialRounder, "_keep", _then_fail(SequentialRounder._keep, 2))
        with pytest.raises(ZeroDivisionError):
            convert(folder, tmp_path / "m.gguf", options=Options(bits=2, embed_bits=2))
    convert(folder, tmp_path / "m.gguf", options=options)
    assert (tmp_path / "m.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def _then_fail(method, after: int):
    calls = 0

    def wrapped(self, *args):
        nonlocal calls
        calls += 1
        method(self, *args)
        if calls == after:
            raise ZeroDivisionError

    return wrapped


def test_stopwatch_counts_inner_work_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 6.0, 10.0, 20.0])
    monkeypatch.setattr("turboquant_native.common.progress.time.monotonic", lambda: next(clock))
    watch = Stopwatch()
    with watch("passes"), watch("products"):  # from 0 to 6, from 1 to 3
        pass
    with watch("passes"):  # from 10 to 20
        pass
    assert watch.seconds == {"products": 2.0, "passes": 14.0}


def test_size_is_never_exceeded(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "m.gguf", Request(size=90_000, effort="fast", seq_len=32))
    assert 60_000 < (tmp_path / "m.gguf").stat().st_size <= 90_000


def test_report_holds_what_was_measured(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "m.gguf", Request(bpw=4, effort="fast", seq_len=32))
    report = json.loads((tmp_path / "m.gguf.quant.json").read_text())
    assert set(report["seconds"]) == {"reference", "text", "sensitivity", "key statistics", "rounding (allocated)", "measuring"}
    assert report["measured_kld"] > 0 and report["predicted_kld"] > 0
    packed = [tensor for tensor in report["tensors"].values() if "bits" in tensor]
    assert len(packed) == 15 and all(tensor["relative_error"] > 0 for tensor in packed)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("tied", [True, False])
def test_killed_runs_go_on_to_the_identical_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool) -> None:
    model = save_llama(tmp_path / "model", {**LLAMA, "tie_word_embeddings": tied})
    convert(model, tmp_path / "whole.gguf")
    calls = 0
    call = SequentialRounder.__call__

    class Killed(Exception):
        pass

    def fail(after: int):
        count = 0

        def wrapped(self, name, *args):
            nonlocal count, calls
            calls += 1
            if (count := count + 1) > after:
                raise Killed
            return call(self, name, *args)

        return wrapped

    for after in (1, 3, 6):  # in the embedding's wake, inside the first layer, in the second
        monkeypatch.setattr(SequentialRounder, "__call__", fail(after))
        with pytest.raises(Killed):
            convert(model, tmp_path / "parts.gguf")
    monkeypatch.setattr(SequentialRounder, "__call__", call)
    run = convert(model, tmp_path / "parts.gguf")
    assert calls > 10
    assert (tmp_path / "parts.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert all(tensor["relative_error"] is not None for tensor in run.report.tensors.values() if "bits" in tensor and tied)


# Converts argv[1] to argv[2], and kills its own process before the argv[3]-th step that leaves something on the disk or encodes a matrix.
SUICIDE = """
import os, pathlib, signal, sys
from turboquant_native.calibrate import rounding as calibrate, text as calibration_text, quantizer, request as requests
from turboquant_native.convert import container
from turboquant_native.commands import convert as convert_hf_to_tq
from turboquant_native.common import journal

requests.EFFORTS["normal"] = requests.Effort(24, 8, verify=True)
left = int(sys.argv[3])

def deadly(step):
    def wrapped(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*args, **kwargs)
    return wrapped

pathlib.Path.replace = deadly(pathlib.Path.replace)
os.replace = deadly(os.replace)
container._Spool._write = deadly(container._Spool._write)
calibrate.quantize_matrix = deadly(calibrate.quantize_matrix)
journal.Journal.put = deadly(journal.Journal.put)
calibration_text._SLOTS = 4
sys.exit(convert_hf_to_tq.main([*sys.argv[1:3], "--bpw", "4.5", "--threads", "1", "--quiet"]))
"""


def test_kill_9_at_many_moments_leaves_a_run_that_ends_with_the_identical_file(folder: Path, tmp_path: Path) -> None:
    def run(out: Path, steps: int) -> int:
        command = [sys.executable, "-c", SUICIDE, str(folder), str(out), str(steps)]
        return subprocess.run(command, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}).returncode

    assert run(tmp_path / "whole.gguf", -1) == 0
    parts, kills = tmp_path / "parts.gguf", 0
    while (code := run(parts, 1 + 4 * kills)) != 0:
        assert code == -signal.SIGKILL and not parts.exists()
        kills += 1
    assert kills >= 5
    assert parts.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.gguf{end}" for name in ("whole", "parts") for end in ("", ".quant.json")}


def test_sensitivities_go_on_at_the_layer_they_were_in(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(bpw=4, effort="fast", seq_len=32)
    whole = convert(folder, tmp_path / "whole.gguf", request)
    measure, measured = SensitivityMeter._measure_group, []

    def fails_in_the_second(self, group: range, *args):
        measured.append(group.start)
        if len(measured) == 2:
            raise ZeroDivisionError
        return measure(self, group, *args)

    monkeypatch.setattr(SensitivityMeter, "_measure_group", fails_in_the_second)
    with pytest.raises(ZeroDivisionError):
        convert(folder, tmp_path / "m.gguf", request)
    run = convert(folder, tmp_path / "m.gguf", request)
    assert measured == [0, 1, 1]
    assert run.report.layer_kld == whole.report.layer_kld and len(run.report.layer_kld) == 2
    assert (tmp_path / "m.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_layers_measured_together_share_their_cost(folder: Path, tmp_path: Path) -> None:
    """And one pass with noise in all layers says what they cost together: the more, the narrower they are."""
    source = open_source(str(folder), None, None)
    plan = make_plan(source, Options(bits=3))
    write_model(source, make_plan(source, Options(outtype="f32")), tmp_path / "f32.gguf")
    model = _core.Model(str(tmp_path / "f32.gguf"), precision="f32", threads=1)
    windows = default_windows(model, 6, 32, seed=0)
    names = [tensor.name for tensor in plan if tensor.spec is not None]
    layers = [name for name in names if name.startswith("blk.")]
    found = {}
    for adjacent in (1, 2):
        meter = SensitivityMeter(source, model, windows[:4], windows[4:], adjacent=adjacent)
        found[adjacent] = meter.measure(names, tmp_path / f"checkpoint{adjacent}")
        assert set(found[adjacent].matrices) == set(names) and min(found[adjacent].matrices.values()) > 0
        assert sum(found[adjacent].matrices[name] for name in layers) == pytest.approx(sum(found[adjacent].layers.values()))
    both = [meter.measure_embeddings(["token_embd.weight"], dict.fromkeys(layers, bits)) for bits in (2, 4)]
    assert both[0].together == pytest.approx(sum(found[2].layers.values()), rel=1e-3)  # the same noise, in one pass
    assert both[1].together is not None and 0 < both[1].together < 0.5 * both[0].together
    assert both[0].matrices == {"token_embd.weight": pytest.approx(found[2].matrices["token_embd.weight"])}
    model.close()


def test_a_cache_serves_other_files_and_leaves_alone_what_else_is_in_its_folder(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "letter.txt").write_text("not ours")
    first = convert(folder, tmp_path / "a.gguf", Request(bpw=5, effort="fast", seq_len=32, cache=cache))
    kept = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    second = convert(folder, tmp_path / "b.gguf", Request(bpw=4, effort="fast", seq_len=32, cache=cache))
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == kept
    assert second.report.layer_kld == first.report.layer_kld
    convert(folder, tmp_path / "b.gguf", Request(bpw=4, effort="fast", seq_len=32, cache=cache), Options(seed=1))
    assert (cache / "letter.txt").read_text() == "not ours" and set(kept) < set(cache.rglob("*"))


def test_running_processes_share_a_cache(folder: Path, tmp_path: Path) -> None:
    cache, request = tmp_path / "cache", ["--effort", "fast", "--bpw", "4.5", "--threads", "1", "--quiet"]
    command = [sys.executable, "-m", "turboquant_native.commands.convert", str(folder)]
    outs = [tmp_path / f"{i}.gguf" for i in range(3)]
    runs = [subprocess.Popen([*command, str(out), *request, "--calib-cache", str(cache)]) for out in outs]
    assert [run.wait() for run in runs] == [0, 0, 0]
    assert len({out.read_bytes() for out in outs}) == 1
    assert not [path for path in cache.rglob("*") if "partial" in path.name]


def test_same_seed_same_file_other_seed_other_file(folder: Path, tmp_path: Path) -> None:
    options = Options(bits=2, embed_bits=4)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        convert(folder, tmp_path / f"{name}.gguf", options=replace(options, seed=seed))
    a, b, c = ((tmp_path / f"{name}.gguf").read_bytes() for name in "abc")
    assert a == b != c


def test_plan_is_written_and_read(folder: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    convert(folder, tmp_path / "a.gguf", Request(bpw=4, plan=plan, effort="fast", seq_len=32))
    stored = json.loads(plan.read_text())
    stored["blk.0.attn_v.weight"]["bits"] = 8
    plan.write_text(json.dumps(stored))
    convert(folder, tmp_path / "b.gguf", Request(plan=plan, effort="fast", seq_len=32))
    widths = {name: entry["bits"] for name, entry in _core.GgufFile(tmp_path / "b.gguf").quantized().items()}
    assert widths == {name: entry["bits"] for name, entry in stored.items()}


@pytest.mark.parametrize("content", ["[]", '{"x.weight": {"bits": 3}}', '{"blk.0.attn_v.weight": {"bits": 5}}', "not json"])
def test_bad_plans_are_named(folder: Path, tmp_path: Path, content: str) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(content)
    with pytest.raises(ConvertError, match=r"plan\.json"):
        convert(folder, tmp_path / "m.gguf", Request(plan=plan, effort="fast", seq_len=32))


def test_dead_channels_and_zero_matrices(tmp_path: Path) -> None:
    tensors = llama_tensors()
    tensors["model.layers.0.input_layernorm.weight"][:7] = 0
    tensors["model.layers.1.mlp.up_proj.weight"][:] = 0  # the feed-forward block's inner activations are all zero
    model = save_llama(tmp_path / "model", tensors=tensors)
    convert(model, tmp_path / "m.gguf")
    up = _core.GgufFile(tmp_path / "m.gguf").dequantize("blk.1.ffn_up.weight")
    assert not up.any()


def test_calibration_files(folder: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("the quick brown fox " * 200)
    (texts / "b.jsonl").write_text('{"text": "jumps over"}\n"the lazy dog"\n')
    convert(folder, tmp_path / "m.gguf", Request(calib=texts, effort="fast", seq_len=32))
    (texts / "b.jsonl").write_text('{"title": 1}\n')
    with pytest.raises(ConvertError, match=r"b\.jsonl: line 1"):
        convert(folder, tmp_path / "m.gguf", Request(calib=texts, effort="fast", seq_len=32))
    with pytest.raises(ConvertError, match="no such file"):
        convert(folder, tmp_path / "m.gguf", Request(calib=tmp_path / "missing", effort="fast", seq_len=32))


@pytest.mark.parametrize("budget", [{"bpw": 4.5}, {"size": 60000}])
def test_a_dry_run_shows_an_estimate_and_after_a_measurement_the_plan(folder: Path, tmp_path: Path, budget: dict[str, float]) -> None:
    request = Request(effort="fast", seq_len=32, cache=tmp_path / "cache", **budget)  # type: ignore[arg-type]

    def preview() -> str:
        return Quantizer(open_source(str(folder), None, None), tmp_path / "m.gguf", Options(), request).preview()

    first = preview()
    assert "an estimate" in first and "ends of the stack higher" in first and not list(tmp_path.iterdir())
    found = re.search(r"reach from ([\d.]+) MB, ([\d.]+) bits per weight to ([\d.]+) MB, ([\d.]+)", first)
    assert found
    for bits, size in ((1, found[2]), (8, found[4])):
        plan = make_plan(open_source(str(folder), None, None), Options(bits=bits, embed_bits=bits))
        assert float(size) == pytest.approx(bits_per_weight(plan), abs=1e-3)
    run = convert(folder, tmp_path / "m.gguf", request)
    second = preview()
    assert "sensitivities that an earlier run measured" in second
    for name, entry in run.report.tensors.items():
        row = next(line for line in second.splitlines() if line.startswith(f"{name} "))
        assert entry["type"] in row.split() and f"{entry['bytes']:,}" in row.split()


def test_dry_runs_of_given_widths_and_of_budgets_that_are_too_small(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert_hf_to_tq.main([str(folder), "--dry-run", "--effort", "fast", "--bits", "3"]) == 0
    printed = capsys.readouterr().out
    assert "TQN3" in printed and "an estimate: nothing is measured yet" not in printed
    assert convert_hf_to_tq.main([str(folder), "--dry-run", "--bpw", "0.5", "--effort", "fast"]) == 1
    assert "smallest widths" in capsys.readouterr().err


def test_fast_text_is_drawn_from_the_model_at_8_bits(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a run with text of the user's own nothing but probes is drawn, so that no file at 8 bits is made; no run leaves one."""
    assert _FULL_EFFORTS["fast"].samples_at_8_bits and not _FULL_EFFORTS["normal"].samples_at_8_bits
    monkeypatch.setitem(requests.EFFORTS, "fast", Effort(6, 3, samples_at_8_bits=True))
    drawn_from: list[set[int]] = []

    def sample(model, *rest):
        drawn_from.append({entry["bits"] for entry in model.file.quantized().values()})
        return calibration_text.sample(model, *rest)

    monkeypatch.setattr(quantizer, "sample", sample)
    texts = tmp_path / "text.txt"
    texts.write_text("words and more words " * 500)
    for calib in (None, texts):
        convert(folder, tmp_path / "m.gguf", Request(effort="fast", seq_len=32, calib=calib))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "m.gguf.quant.json", "text.txt"]
    assert drawn_from == [{8}, set()]
