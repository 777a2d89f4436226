"""The calibrated conversion: reference, text, sensitivities, widths, rounding, measurement - stages that one can see, stop and resume.

Each stage leaves its result in `.NAME.work` beside the target, written under another name and renamed, so that a run killed at any moment
goes on at the stage (and within rounding at the layer and matrix) it was in. The folder goes when the file is complete. What does not
depend on the widths (reference, text, sensitivities) can be kept in a cache folder, for further files of the same model.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..common.errors import ConvertError
from ..common.journal import only_one_process
from ..common.memory import MemoryWatch
from ..common.progress import Journey, Progress
from ..convert.container import CALIBRATION_KEY, CALIBRATION_ROOM, fill_calibration
from ..convert.conversion import Options, Summary, TensorPlan, check_target, fingerprint, make_plan, plain_rounding, plan_table, write_model
from ..convert.sources import Source
from ..evaluate.evaluation import divergence, mean_and_error, normalize
from .end_loss import GradientMeter, check_available, input_sites, token_weights
from .estimate import PROBE_LEN, Estimate, Speed, Work, estimate, reference_type
from .key_statistics import statistics, vectors_of
from .report import ALLOCATED, SIMPLE_RULE, Report
from .request import Request
from .rounding import SequentialRounder, Settings, layer_of
from .sensitivity import NOISE_BITS, Sensitivity, SensitivityMeter
from .text import default_windows, file_windows, sample
from .widths import Decision, WidthChooser, at_width

logger = logging.getLogger(__name__)

_GIVEN = "given"  # a plan, beside ALLOCATED and SIMPLE_RULE
_FREQUENCY_WINDOWS = 4  # of the calibration text, for the tokens' mean probabilities
_INFO_BYTES = 144  # that describe a tensor in a header, about
_VECTOR_BYTES = 320  # likewise, with its checksum and the padding of its data


@dataclass(frozen=True)
class _Built:
    """A complete file: its summary, the matrices' relative errors, and where the time of the rounding went."""

    summary: Summary
    errors: dict[str, float]
    seconds: dict[str, float]


class Quantizer:
    """One calibrated conversion of `source` to `target`."""

    def __init__(
        self,
        source: Source,
        target: Path,
        options: Options,
        request: Request,
        *,
        threads: int = 0,
        quiet: bool = True,
        device: str = "cpu",
    ) -> None:
        self._source, self._target, self._options, self._request = source, target, options, request
        self._threads, self._quiet, self._device = threads, quiet, device
        self._work = target.with_name(f".{target.name}.work")
        self._effort = request.work
        self._widths = WidthChooser(source, options, request)
        self._decision: Decision | None = None
        self._built: dict[str, _Built] = {}
        self._weights: dict[str, NDArray[np.float32]] = {}
        self._frequency: NDArray[np.float32] | None = None
        self._of_keys: dict[str, NDArray[np.float32]] = {}
        self._journey: Journey | None = None
        context = int(source.hyperparameters.get("context_length", request.seq_len))
        seq_len = min(request.seq_len, self._effort.seq_len, context)
        settings = Settings(windows=self._effort.windows, seq_len=seq_len, seed=options.seed)
        self._settings = replace(settings, **request.tuning)  # type: ignore[arg-type]
        s = self._settings
        shared = fingerprint(source, _stamps(request.calib), s.seq_len, s.seed, asdict(self._effort))
        self._key = fingerprint(source, shared, asdict(s), _core.FORMAT_VERSION, request.hessian, request.cache_statistics)
        self._shared = self._work if request.cache is None else request.cache / shared[:16]
        self.report = Report({**asdict(request), **asdict(self._settings), "plan": None, "calib": str(request.calib or "default")})

    def run(self, overwrite: bool = False) -> Summary:
        """All stages; the file appears when it is complete. ConvertError, OSError."""
        start = time.monotonic()
        check_target(self._source, self._target, overwrite)
        self._check_request()
        self._begin()
        self._open_work()
        with MemoryWatch() as memory:
            plan, sensitivity, built = self._stages()
        built = replace(built, summary=replace(built.summary, seconds=time.monotonic() - start, peak_bytes=memory.peak))
        self._report(plan, sensitivity, built)
        self._write_plan(plan)
        self._finish(self._file_of(plan))
        return built.summary

    def _stages(self) -> tuple[list[TensorPlan], Sensitivity, _Built]:
        """The best file, which lies in the work folder, its plan, and what that follows from."""
        model = self._stage("reference", self._reference)
        tokens, probes = self._stage("text", lambda: self._texts(model))
        sensitivity = self._stage("sensitivity", lambda: self._sensitivity(model, tokens, probes))
        if self._needs_frequency:
            self._frequency = self._cached("frequency", lambda: self._frequencies(model, tokens))
        if self._request.hessian == "end-loss":
            self._weights = self._stage("gradients", lambda: self._token_weights(model, tokens))
        self._of_keys = self._stage("key statistics", lambda: self._key_statistics(model, tokens))
        plans = {label: _in_order(plan) for label, plan in self._plans(sensitivity).items()}
        best = self._build_best(plans, model, tokens, probes, sensitivity)
        if self._effort.verify:
            self.report.plain_kld = self._stage("plain rounding", partial(self._measure_plain, plans[best], model, probes))
        model.close()
        return plans[best], sensitivity, self._built[best]

    def _begin(self) -> None:
        """Says what it will take, and refuses what this machine cannot hold."""
        estimate = self.estimate()
        estimate.check(self._target.parent, self._request.effort, already=sum(file.stat().st_size for file in self._work.glob("*")))
        if not self._quiet:
            print(estimate.text(), file=sys.stderr)
        self._journey = Journey({stage.name: stage.seconds for stage in estimate.stages}, self._quiet)

    def estimate(self) -> Estimate:
        """Of the time, memory and disk that `run` takes on this machine."""
        plan = self._widths.simple_rule(self._header_bytes()) if self._widths.chooses else self._widths.given()
        asked = Work(
            self._effort,
            self._settings.windows,
            self._settings.seq_len,
            samples_text=self._request.calib is None,
            chooses=self._widths.chooses,
            chooses_embeddings=bool(self._widths.open_embeddings()),
            counts_tokens=self._needs_frequency,
            gradients=self._request.hessian == "end-loss",
            key_statistics=self._request.cache_statistics != "none",
        )
        return estimate(self._source, plan, asked, Speed.measure(self._threads))

    @property
    def _needs_frequency(self) -> bool:
        """Whether outliers may be kept in the output matrix, where tokens count by their frequency."""
        return (self._widths.chooses and self._request.auto_outliers) or self._options.outliers > 0 or self._request.plan is not None

    def _finish(self, built: Path) -> None:
        """The complete file takes its place, with what was measured of it in its header."""
        fill_calibration(built, {"kld": self.report.measured_kld, "effort": self._request.effort})
        built.replace(self._target)
        (self._work / "key").unlink()  # what a kill leaves of the folder from here on is of no use
        shutil.rmtree(self._work)
        if self._journey is not None:
            self._journey.close()

    def preview(self) -> str:
        """The table of tensors and sizes, as far as they are known without measuring the model, and the estimate of time, memory and disk;
        nothing is written. ConvertError."""
        self._check_request()
        return f"{self._preview_plan()}\n{self.estimate().text()}"

    def _preview_plan(self) -> str:
        if not self._widths.chooses:
            table = plan_table(self._source, self._widths.given())
            names = ", ".join(tensor.name for tensor in self._widths.open_embeddings())
            return f"{table}\n{names}: the width is chosen by measured loss, so it will differ" if names else table
        smallest, largest = (f"{size / 1e6:.2f} MB, {8 * size / self._source.parameters:.3f}" for size in self._widths.reach())
        reach = f"the widths reach from {smallest} bits per weight to {largest}"
        sensitivity, header = self._stored_sensitivity(), self._header_bytes()
        if sensitivity is None:
            plan = self._widths.simple_rule(header)
            note = "an estimate: nothing is measured yet, so these are the widths of a simple rule (the ends of the stack higher)"
        else:
            frequency = np.load(self._shared / "frequency.npy") if self._needs_frequency else None
            decision = self._widths.allocate(sensitivity, frequency, header)
            plan = decision.plan
            note = f"widths by sensitivities that an earlier run measured; predicted KL divergence {decision.predicted_kld:.4f}"
        return f"{plan_table(self._source, plan)}\n{reach}\n{note}"

    def _check_request(self) -> None:
        """Refuses at once what no calibration could fulfil."""
        if self._request.hessian == "end-loss":
            check_available(self._source)
        self._widths.check()

    def _plans(self, sensitivity: Sensitivity) -> dict[str, list[TensorPlan]]:
        """What to build, by a name for each."""
        if not self._widths.chooses:
            return {_GIVEN: self._widths.with_embeddings(sensitivity) if self._widths.open_embeddings() else self._widths.given()}
        self._decision = self._widths.allocate(sensitivity, self._frequency, self._header_bytes())
        plans = {ALLOCATED: self._decision.plan}
        if self._effort.verify:
            plans[SIMPLE_RULE] = self._widths.simple_rule(self._header_bytes())
        return plans

    def _write_plan(self, plan: Sequence[TensorPlan]) -> None:
        """Into the file that --plan names, where the budget decided."""
        if self._request.plan is None or not self._widths.chooses:
            return
        free = {tensor.name for tensor in self._widths.allocatable()}
        specs = {tensor.name: tensor.spec for tensor in plan if tensor.spec is not None and tensor.name in free}
        decision = {name: {"bits": spec.bits, "outliers": spec.outliers} for name, spec in specs.items()}
        _write_whole(self._request.plan, json.dumps(decision, indent=1).encode())

    def _header_bytes(self) -> int:
        """Of the file beside the source's tensors: the reference's header, as it is or is going to be, and the statistics of keys."""
        keys = [shape[0] for name, shape in self._source.shapes.items() if name.endswith("attn_k.weight")]
        vectors = vectors_of(self._request.cache_statistics) * sum(4 * width + _VECTOR_BYTES for width in keys)
        return self._reference_header_bytes() + vectors

    def _reference_header_bytes(self) -> int:
        if self._reference_path.exists():
            return int(_core.GgufFile(str(self._reference_path)).data_offset)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "header.gguf"
            write_model(self._source, [], path)
            return int(_core.GgufFile(str(path)).data_offset) + _INFO_BYTES * len(self._source.shapes)

    # --- the work folder

    def _open_work(self) -> None:
        """Keeps an earlier run's results only when they came from the same model, text and settings."""
        if not self._continues():
            shutil.rmtree(self._work, ignore_errors=True)
            self._work.mkdir()
            _write_whole(self._work / "key", self._key.encode())
        self._shared.mkdir(parents=True, exist_ok=True)

    def _continues(self) -> bool:
        """Whether the work folder is of a run with the same results."""
        stored = self._work / "key"
        return stored.exists() and stored.read_text() == self._key

    @property
    def _reference_path(self) -> Path:
        return (self._request.cache or self._work) / f"reference-{fingerprint(self._source)[:16]}.gguf"

    def _cached(self, name: str, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        path = self._shared / f"{name}.npy"
        with only_one_process(path):
            if not path.exists():
                partial = self._shared / f"{name}.partial.npy"
                np.save(partial, make())
                partial.replace(path)
        array: NDArray[Any] = np.load(path)
        return array

    def _stage(self, name: str, work: Callable[[], Any]) -> Any:
        start = time.monotonic()
        if self._journey is not None:
            self._journey.at(name, 0.0)
        result = work()
        if self._journey is not None:
            self._journey.at(name, 1.0)
        self.report.seconds[name] = self.report.seconds.get(name, 0.0) + time.monotonic() - start
        return result

    def _progress(self, total: int, stage: str, unit: str) -> Progress:
        return Progress(total, stage, self._quiet, unit=unit, journey=self._journey)

    # --- stages

    def _reference(self) -> Any:
        """The model unquantized, in a file of our own that the engine runs."""
        path = self._reference_path
        with only_one_process(path):
            if not path.exists():
                plan = make_plan(self._source, Options(outtype=reference_type(self._source.parameters)))
                write_model(self._source, plan, path, resume=True, quiet=self._quiet, title="reference", journey=self._journey)
        return _core.Model(str(path), precision="f32", threads=self._threads)

    def _texts(self, model: Any) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The calibration text and the held-out probes, both (windows, seq_len)."""
        names = ("tokens", "probes")
        sampler = model if all((self._shared / f"{name}.npy").exists() for name in names) else self._sampler(model)
        try:
            tokens = self._cached("tokens", lambda: self._tokens(sampler))
            length = min(PROBE_LEN, self._settings.seq_len)
            return tokens, self._cached("probes", lambda: sample(sampler, self._effort.probes, length, self._settings.seed + 1))
        finally:
            if sampler is not model:
                sampler.close()
            self._eight_bits_path.unlink(missing_ok=True)

    def _sampler(self, model: Any) -> Any:
        """The model where and as it generates fastest: on the GPU asked for, if it has the memory, else as the effort says."""
        if self._device == "cpu":
            return self._at_eight_bits() if self._effort.samples_at_8_bits and self._request.calib is None else model
        try:
            return _core.Model(str(self._reference_path), device=self._device, precision="f32", threads=self._threads)
        except (_core.UnsupportedError, MemoryError, RuntimeError) as error:
            logger.warning("%s cannot hold the unquantized model, text is sampled on the CPU: %s", self._device, error)
            return model

    @property
    def _eight_bits_path(self) -> Path:
        return self._work / "8-bit.gguf"

    def _at_eight_bits(self) -> Any:
        """The model rounded to 8 bits and run with int8 activations: it generates more than twice as fast, and its text is as good."""
        plan = make_plan(self._source, Options(bits=8))
        write_model(self._source, plan, self._eight_bits_path, rounder=plain_rounding(self._threads), overwrite=True)
        return _core.Model(str(self._eight_bits_path), precision="int8", threads=self._threads)

    def _tokens(self, model: Any) -> NDArray[np.int32]:
        windows, seq_len = self._settings.windows, self._settings.seq_len
        if self._request.calib is not None:
            return file_windows(model, self._request.calib, windows, seq_len)
        checkpoint = self._shared / "tokens.partial"
        with self._progress(windows, "text", "windows") as progress:
            tokens = default_windows(model, windows, seq_len, self._settings.seed, progress.advance_to, checkpoint)
        checkpoint.unlink(missing_ok=True)
        return tokens

    def _key_statistics(self, model: Any, tokens: NDArray[np.int32]) -> dict[str, NDArray[np.float32]]:
        with self._progress(int(model.config["n_layers"]), "key statistics", "layers") as progress:
            return statistics(model, tokens, self._request.cache_statistics, progress.advance_to)

    def _token_weights(self, model: Any, tokens: NDArray[np.int32]) -> dict[str, NDArray[np.float32]]:
        """Of every site, by the gradient of the model's loss."""
        checkpoint, sites = self._shared / "gradients.partial", input_sites(model)

        def measure() -> NDArray[np.float32]:
            meter = GradientMeter(self._source, self._options.seed, sites)
            meter.check_agrees(_logits(model, tokens[0]), tokens[0])
            with self._progress(len(tokens), "gradients", "windows") as progress:
                return meter.measure(tokens, checkpoint, progress.advance_to)

        squares = self._cached("gradients", measure)
        checkpoint.unlink(missing_ok=True)
        return token_weights(squares, self._settings.gradient_power, [site.name for site in sites])

    @staticmethod
    def _frequencies(model: Any, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """(n_vocab,) mean probability of every token: an error of its logit costs KL divergence in proportion."""
        few = tokens[:: max(1, len(tokens) // _FREQUENCY_WINDOWS)]
        return np.mean([np.exp(_logprobs(model, window[None])).mean(axis=0) for window in few], axis=0, dtype=np.float32)

    def _sensitivity(self, model: Any, tokens: NDArray[np.int32], probes: NDArray[np.int32]) -> Sensitivity:
        """Of all matrices where a budget chooses their widths, of embedding and output where only theirs are open, else what the output
        matrix sees, where that is rounded."""
        if not self._widths.chooses and not any(tensor.is_embedding and tensor.spec for tensor in self._widths.given()):
            return Sensitivity()
        path = self._sensitivity_path
        with only_one_process(path):
            if not path.exists():
                self._measure_sensitivity(path, model, tokens, probes[: self._effort.sensitivity_probes])
        return self._read_sensitivity(path)

    @property
    def _sensitivity_path(self) -> Path:
        if not self._widths.open_embeddings():
            return self._shared / f"sensitivity_{self._widths.chooses}.json"
        widths = sorted(self._layer_widths().items())
        return self._shared / f"sensitivity_{fingerprint(self._source, widths)[:16]}.json"

    def _layer_widths(self) -> dict[str, int]:
        """Name -> bits of the layers' matrices, as they are given."""
        return {tensor.name: tensor.spec.bits for tensor in self._widths.given() if tensor.spec is not None and not tensor.is_embedding}

    def _read_sensitivity(self, path: Path) -> Sensitivity:
        stored = json.loads(path.read_text())
        layers = {int(layer): cost for layer, cost in stored["layers"].items()}
        return Sensitivity(stored["matrices"], layers, stored["together"], np.load(self._shared / "output_hessian.npy"))

    def _stored_sensitivity(self) -> Sensitivity | None:
        """Of all matrices, where this or an earlier run has left it complete."""
        path = self._sensitivity_path
        complete = path.exists() and (not self._needs_frequency or (self._shared / "frequency.npy").exists())
        return self._read_sensitivity(path) if complete and (self._request.cache or self._continues()) else None

    def _measure_sensitivity(self, path: Path, model: Any, tokens: NDArray[np.int32], probes: NDArray[np.int32]) -> None:
        """Into the file `path`, and what the output matrix sees beside it."""
        checkpoint = path.with_suffix(".partial")
        few = np.ascontiguousarray(tokens[:: max(1, len(tokens) // self._effort.sensitivity_windows)])
        meter = SensitivityMeter(self._source, model, few, probes, self._options.seed, self._effort.adjacent)
        with self._progress(int(model.config["n_layers"]), "sensitivity", "layers") as progress:
            if embeddings := self._widths.open_embeddings():
                names = [tensor.name for tensor in embeddings]
                found = meter.measure_embeddings(names, self._layer_widths(), progress.advance_to)
            else:
                names = [tensor.name for tensor in self._widths.allocatable()] if self._widths.chooses else []
                found = meter.measure(names, checkpoint, progress.advance_to)
        assert found.output_hessian is not None
        hessian = found.output_hessian
        self._cached("output_hessian", lambda: hessian)
        figures = {"matrices": found.matrices, "layers": found.layers, "together": found.together}
        _write_whole(path, json.dumps(figures).encode())
        checkpoint.unlink(missing_ok=True)

    def _build_best(
        self,
        plans: dict[str, list[TensorPlan]],
        model: Any,
        tokens: NDArray[np.int32],
        probes: NDArray[np.int32],
        sensitivity: Sensitivity,
    ) -> str:
        """Makes the file of every plan in the work folder; the name of the best."""
        measured: dict[str, NDArray[np.float64]] = {}
        for label, plan in plans.items():
            path = self._file_of(plan)
            done = path.with_suffix(".done")
            if not (done.exists() and path.exists()):
                built = self._stage(f"rounding ({label})", partial(self._write, path, model, tokens, plan, sensitivity, label))
                _write_whole(done, json.dumps(asdict(built)).encode())
            stored = json.loads(done.read_text())
            self._built[label] = _Built(**{**stored, "summary": Summary(**{**stored["summary"], "path": str(self._target)})})
            measured[label] = self._stage("measuring", partial(self._measure, path, model, probes))
            self.report.candidates[label] = float(measured[label].mean())
        best = next(iter(plans))
        if len(plans) > 1 and _is_clearly_less(measured[SIMPLE_RULE], measured[ALLOCATED]):
            best = SIMPLE_RULE
        self.report.kept, self.report.measured_kld = best, self.report.candidates[best]
        if best == ALLOCATED and self._decision is not None:
            self.report.predicted_kld, self.report.outlier_gains = self._decision.predicted_kld, self._decision.outlier_gains
        return best

    def _file_of(self, plan: list[TensorPlan]) -> Path:
        """In the work folder, where an interrupted run may have made files of other plans."""
        return self._work / f"{fingerprint(self._source, repr(plan))[:16]}.gguf"

    def _write(
        self, path: Path, model: Any, tokens: NDArray[np.int32], plan: list[TensorPlan], sensitivity: Sensitivity, label: str
    ) -> _Built:
        specs = {tensor.name: tensor.spec for tensor in plan if tensor.spec is not None}
        settings = json.dumps([asdict(self._settings), (self._work / "key").read_text()])
        states = path.with_suffix(".states")
        states.mkdir(exist_ok=True)
        rounder = SequentialRounder(
            self._source,
            model,
            tokens,
            self._settings,
            specs,
            states,
            sensitivity.output_hessian,
            self._frequency,
            self._threads,
            self._weights,
        )
        summary = write_model(
            self._source,
            plan,
            path,
            rounder=rounder,
            overwrite=True,
            resume=True,
            quiet=self._quiet,
            extra_metadata={CALIBRATION_KEY: CALIBRATION_ROOM},
            further=self._of_keys,
            settings=settings,
            title=f"rounding ({label})",
            journey=self._journey,
        )
        shutil.rmtree(states)
        return _Built(summary, rounder.errors, rounder.watch.seconds)

    def _measure_plain(self, plan: list[TensorPlan], model: Any, probes: NDArray[np.int32]) -> float | None:
        """KL divergence where every weight of a plan is rounded for itself; None where that says nothing or the disk has no room for it."""
        if not any(tensor.spec for tensor in plan):
            return None
        path = self._work / "plain.gguf"
        rounder = plain_rounding(self._threads)
        try:
            write_model(
                self._source,
                plan,
                path,
                rounder=rounder,
                overwrite=True,
                resume=True,
                quiet=self._quiet,
                title="plain rounding",
                journey=self._journey,
            )
        except (ConvertError, OSError):
            return None
        return float(self._measure(path, model, probes).mean())

    def _measure(self, path: Path, model: Any, probes: NDArray[np.int32]) -> NDArray[np.float64]:
        """(probes,) mean KL divergence of a file from the reference, on sampled text that calibration has not seen."""
        rounded = _core.Model(str(path), precision="f32", threads=self._threads)
        try:
            windows = (probe[None] for probe in probes)
            return np.array([divergence(_logprobs(model, window), _logprobs(rounded, window)).mean() for window in windows])
        finally:
            rounded.close()

    def _report(self, plan: Sequence[TensorPlan], sensitivity: Sensitivity, built: _Built) -> None:
        for tensor in plan:
            entry: dict[str, Any] = {"type": tensor.label, "bytes": tensor.bytes, "weights": tensor.weights}
            if tensor.spec is not None:
                entry |= {"bits": tensor.spec.bits, "outliers": tensor.spec.outliers, "relative_error": built.errors.get(tensor.name)}
                entry["outlier_bits"] = 8 * (tensor.bytes - at_width(tensor, tensor.spec.bits).bytes) / tensor.weights
            if tensor.name in sensitivity.matrices:
                entry[f"kld_at_{NOISE_BITS}_bits"] = sensitivity.matrices[tensor.name]
            self.report.tensors[tensor.name] = entry
        packed = [entry for entry in self.report.tensors.values() if "bits" in entry]
        total = sum(entry["weights"] for entry in self.report.tensors.values())
        self.report.outliers = {
            "fraction": sum(entry["outliers"] * entry["weights"] for entry in packed) / total,
            "bits_per_weight": sum(entry["outlier_bits"] * entry["weights"] for entry in packed) / total,
        }
        self.report.layer_kld = {str(layer): cost for layer, cost in sensitivity.layers.items()}
        self.report.rounding_seconds = built.seconds
        self.report.summary = built.summary.to_dict()
        path = self._target.with_name(f"{self._target.name}.quant.json")
        _write_whole(path, json.dumps(asdict(self.report), indent=1, default=str).encode())


def _stamps(path: Path | None) -> list[tuple[str, int, int]]:
    """What tells one state of a file or folder from another."""
    if path is None:
        return []
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]


def _is_clearly_less(some: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    """Whether the mean is lower by more than chance allows: two standard errors of the difference, window by window."""
    less, error = mean_and_error(others - some)
    return less > 2 * error


def _logits(model: Any, window: NDArray[np.int32]) -> NDArray[np.float32]:
    """(seq_len, n_vocab)"""
    context = _core.Context(model, n_ctx=len(window), n_batch=len(window))
    try:
        logits: NDArray[np.float32] = context.eval(window, 0, 0, "all")
        return logits
    finally:
        context.close()


def _logprobs(model: Any, probes: NDArray[np.int32]) -> NDArray[np.float32]:
    """(rows, n_vocab) of the last three quarters of each window."""
    return np.concatenate([normalize(_logits(model, window)[len(window) // 4 :]) for window in probes])


def _in_order(plan: Sequence[TensorPlan]) -> list[TensorPlan]:
    """The order of the computation, in which the rounder works: embedding, layers, the rest."""

    def place(tensor: TensorPlan) -> tuple[int, int]:
        layer = layer_of(tensor.name)
        if layer is not None:
            return (1, layer)
        return (0, 0) if tensor.name == "token_embd.weight" else (2, 0)

    return sorted(plan, key=place)


def _write_whole(path: Path, data: bytes) -> None:
    """The file appears complete or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
