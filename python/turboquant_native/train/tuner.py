"""Tuning: the numbers of a quantized file are moved, end to end, towards its teacher's next-token distributions.

What was done is kept in `.NAME.work` beside the target: text as it is sampled, and every minute the state of the optimizer, so that a run
that was killed goes on where it was. The file appears when it is complete.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import _core
from ..common.errors import ConvertError
from ..common.files import file_state
from ..common.json_files import write_json
from ..common.progress import Progress, duration
from ..common.system import peak_memory
from ..convert.container import CALIBRATION_KEY, fill_calibration
from ..convert.conversion import Options, check_target, fingerprint, make_plan, plain_rounding, write_model
from ..convert.sources import Source
from ..engine.cache_types import KEY_STATISTICS
from ..evaluate.evaluation import mean_and_error
from .capture import Captured
from .distillation import add_gradients, divergences
from .network import Network
from .optimizer import Adam
from .progressive import Progressive
from .settings import Settings
from .text import HELD_OUT, Corpus, real_windows, sample
from .weights import DENSE, FREE, NORMS, OUTLIERS, SCALES, of_file, of_source
from .writing import write_tuned

_SAVE_SECONDS = 60.0
_LOOKS = 10  # at the held-out text
_WARM_UP = 0.05  # of the steps, in which the learning rate rises
_LARGE = 1_000_000_000  # weights, from which inner values are computed twice instead of kept, and codes stay
_MOST_BITS = 3.2  # of the packed matrices on average, from which codes stay: at 3.5 scales and norms alone gained more
_HESSIAN_WINDOWS = 128  # under which matrices are rounded
_SLOTS = {"cpu": 64, "cuda": 512}  # sequences sampled side by side
_TOKENS_AT_ONCE = {"cpu": 512, "small": 8192, "cuda": 32768}  # that are differentiated together; SmolLM2's take 13 and 36 GB on a GPU
_SMALL_BYTES = 48 << 30  # of a GPU's memory


def devices(asked: str) -> tuple[str, str]:
    """Where PyTorch computes, and where the engine samples text: "cpu" or "cuda" each. asked: one of these, or "auto" for a GPU where there
    is one. ConvertError where the GPU asked for is not there."""
    has_gpu = torch.cuda.is_available()
    if asked == "cuda" and not has_gpu:
        raise ConvertError("--device cuda: PyTorch has no GPU here")
    device = "cuda" if has_gpu and asked != "cpu" else "cpu"
    engine_too = device == "cuda" and _core.backends().get("cuda", "").startswith("available")
    return device, "cuda" if engine_too else "cpu"


@dataclass
class Tuned:
    """What came of it.

    Attributes:
        before, after: mean KL divergence from the teacher on held-out text, nats a token.
        gain_error: standard error of their difference, window by window.
        kept: whether the file holds what was learned: only where it is better by two standard errors.
        curve: (tokens passed, held-out divergence).
        seconds: by stage.
    """

    path: str
    before: float = 0.0
    after: float = 0.0
    gain_error: float = 0.0
    kept: bool = False
    tokens: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
    device: str = ""

    def text(self) -> str:
        """For people."""
        spent = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in self.seconds.items())
        verdict = "" if self.kept else "; that is no clear gain, so the weights are left as they were"
        return (
            f"{self.path}: held-out KL divergence {self.before:.4f} before, {self.after:.4f} after {self.tokens / 1e6:.1f} M tokens "
            f"(+- {self.gain_error:.4f}){verdict}\ntook {spent} on {self.device}, {self.peak_bytes / 1e6:.0f} MB of memory"
        )


class Tuner:
    """Tunes one file.

    Args:
        model: the quantized file.
        source: the model it was made of: the teacher.
        target: the file to write.
        device: "cpu" or "cuda", where PyTorch computes.
        sampler: "cpu" or "cuda", where the engine samples text.
    """

    def __init__(
        self,
        model: Path,
        source: Source,
        target: Path,
        settings: Settings,
        *,
        device: str = "cpu",
        sampler: str = "cpu",
        threads: int = 0,
        quiet: bool = True,
    ) -> None:
        self._path, self._source, self._target, self._settings = model, source, target, settings
        self._device, self._sampler, self._threads, self._quiet = torch.device(device), sampler, threads, quiet
        self._dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self._work = target.with_name(f".{target.name}.work")
        self._model = _core.Model(os.fsencode(model), precision="f32", threads=threads)
        self._check()
        context = int(self._model.config["n_ctx_train"])
        self._seq_len = min(settings.seq_len, context)
        if threads:
            torch.set_num_threads(threads)
        self._captured: Captured | None = None
        self.result = Tuned(str(target), device=device)

    def _check(self) -> None:
        """ConvertError unless the file can be tuned towards this teacher."""
        file, source = self._model.file, self._source
        if not file.quantized():
            raise ConvertError(f"{self._path}: has no quantized matrices: there is nothing to tune")
        if (mine := self._model.config["architecture"]) != source.architecture.gguf:
            raise ConvertError(f"{self._path}: is of the architecture {mine}, the teacher {source.path} of {source.architecture.gguf}")
        packed = file.quantized()
        shapes: dict[str, tuple[int, ...]] = {name: (info["n_out"], info["n_in"]) for name, info in packed.items()}
        others = [(name, shape) for name, _, shape in file.tensors() if name.partition(".tqn")[0] not in packed]
        shapes |= {name: shape for name, shape in others if KEY_STATISTICS not in name}
        if shapes != source.shapes:
            odd = sorted(shapes.items() ^ source.shapes.items())[0][0]
            raise ConvertError(f"{self._path}: is no rounding of {source.path}: {odd} is {shapes.get(odd)}, there {source.shapes.get(odd)}")

    def run(self, overwrite: bool = False) -> Tuned:
        """All stages. ConvertError, OSError."""
        check_target(self._source, self._target, overwrite)
        if self._target.exists() and self._target.samefile(self._path):
            raise ConvertError(f"{self._target}: is the file to tune itself")
        self._open_work()
        corpus = self._timed("text", self._corpus)
        weights = of_file(self._model.file, self._device, self._dtype)
        saves_memory = self._model.parameters > _LARGE
        student = Network(self._model, weights, self._seq_len, self._dtype, saves_memory)
        teacher = Network(self._model, of_source(self._source, self._device, self._dtype), self._seq_len, self._dtype)
        before = self._timed("measuring", lambda: divergences(student, teacher, corpus.held_out))
        self._timed("tuning", lambda: self._tune(student, teacher, corpus, before))
        after = self._timed("measuring", lambda: divergences(student, teacher, corpus.held_out))
        self._judge(before, after)
        if not self.result.kept:
            weights = of_file(self._model.file, torch.device("cpu"), torch.float32, learns=False)
        self._finish(weights, overwrite)
        return self.result

    def _timed(self, stage: str, work: Any) -> Any:
        start = time.monotonic()
        result = work()
        self.result.seconds[stage] = self.result.seconds.get(stage, 0.0) + time.monotonic() - start
        return result

    def _judge(self, before: NDArray[np.float64], after: NDArray[np.float64]) -> None:
        gain, self.result.gain_error = mean_and_error(before - after)
        self.result.before, self.result.after = float(before.mean()), float(after.mean())
        self.result.kept = gain > 2 * self.result.gain_error
        self.result.tokens = self._settings.steps * self._settings.windows * self._seq_len
        self.result.peak_bytes = peak_memory()

    def _open_work(self) -> None:
        """Keeps an earlier run's results only when they came from the same models, text and settings."""
        settings = asdict(self._settings) | {"calib": str(self._settings.calib), "dtype": str(self._dtype)}
        key = fingerprint(self._source, str(self._path.resolve()), file_state(self._path), settings)
        stored = self._work / "key"
        if not (stored.exists() and stored.read_text() == key):
            shutil.rmtree(self._work, ignore_errors=True)
            self._work.mkdir()
            stored.write_text(key)

    # --- text

    def _corpus(self) -> Corpus:
        s = self._settings
        real, held_real = real_windows(self._model, s.calib, s.real_windows, self._seq_len, self._quiet)
        found = self._sampled(s.sampled_windows + HELD_OUT)
        held_out = np.concatenate([found[s.sampled_windows :], held_real])
        return Corpus(found[: s.sampled_windows], real, held_out, s.share_of_real_text, s.seed)

    def _sampled(self, windows: int) -> NDArray[np.int32]:
        """(windows, seq_len) tokens that the teacher writes."""
        teacher, slots = self._sampling_model(), _SLOTS[self._sampler]
        try:
            with Progress(windows, "text", self._quiet, unit="windows") as progress:
                return sample(teacher, windows, self._seq_len, self._settings.seed, slots, self._work / "text", progress.advance_to)
        finally:
            teacher.close()

    def _sampling_model(self) -> Any:
        """The teacher rounded to 8 bits: it writes several times as fast, and its text is as good."""
        path = self._work / "8-bit.gguf"
        if not path.exists():
            plan = make_plan(self._source, Options(bits=8))
            write_model(self._source, plan, path, rounder=plain_rounding(self._threads), quiet=self._quiet, title="teacher at 8 bits")
        return _core.Model(os.fsencode(path), device=self._sampler, threads=self._threads)

    # --- steps

    def _tune(self, student: Network, teacher: Network, corpus: Corpus, before: NDArray[np.float64]) -> None:
        s = self._settings
        optimizer, rounding = Adam(), self._rounding(student, corpus)
        if self._device.type == "cuda" and student.is_static:
            self._captured = Captured(
                lambda tokens: add_gradients(student, teacher, tokens, 1.0), lambda: [each.tensor for each in student.weights.learned()]
            )
        first = self._load(optimizer, rounding, student)
        saved, look = time.monotonic(), max(1, s.steps // _LOOKS)
        if first == 0:
            self.result.curve = [(0, float(before.mean()))]
        with Progress(s.steps, "tuning", self._quiet, unit="steps") as progress:
            for step in range(first, s.steps):
                while rounding is not None and rounding.done < self._due(rounding, step):
                    rounding.round_next()
                self._differentiate(student, teacher, corpus.batch(step, s.windows), step)
                factor = self._factor(step, rounding is not None)
                rates = dict.fromkeys((SCALES, NORMS, DENSE, OUTLIERS), s.rate * factor) | {FREE: s.free_rate * factor}
                optimizer.step(student.weights.learned(), rates)
                if (step + 1) % look == 0:
                    kld = float(divergences(student, teacher, corpus.held_out).mean())
                    self.result.curve.append(((step + 1) * s.windows * self._seq_len, kld))
                    progress.tell(f"held-out KLD {kld:.4f} ({before.mean():.4f} before)")
                progress.advance_to(step + 1)
                if time.monotonic() - saved > _SAVE_SECONDS:
                    self._save(step + 1, optimizer, rounding, student)
                    saved = time.monotonic()

    @property
    def _chooses_codes(self) -> bool:
        if self._settings.codes is not None:
            return self._settings.codes
        packed = [(info["n_out"] * info["n_in"], info["bits"]) for info in self._model.file.quantized().values()]
        bits = sum(size * width for size, width in packed) / sum(size for size, _ in packed)
        return self._model.parameters <= _LARGE and bits <= _MOST_BITS

    def _rounding(self, student: Network, corpus: Corpus) -> Progressive | None:
        """None where codes stay."""
        if not self._chooses_codes:
            return None
        return Progressive(student, self._source, corpus.batch(0, _HESSIAN_WINDOWS), self._threads)

    def _due(self, rounding: Progressive, step: int) -> int:
        """How many groups are to be rounded before a step: the first at once, all by the end of `code_part`."""
        s, count = self._settings, len(rounding.groups)
        return min(count, 1 + int(step / s.steps / s.code_part * count))

    def _factor(self, step: int, chooses_codes: bool) -> float:
        """Of the learning rate: a rise, a plateau while codes are chosen, half a cosine."""
        s = self._settings
        part, plateau = step / s.steps, s.code_part if chooses_codes else 0.0
        fall = max(0.0, part - plateau) / (1 - plateau)
        return min(1.0, (part + 1e-3) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * fall))

    @property
    def _tokens_at_once(self) -> int:
        is_small = self._device.type == "cuda" and torch.cuda.get_device_properties(self._device).total_memory < _SMALL_BYTES
        return _TOKENS_AT_ONCE["small" if is_small else self._device.type]

    def _differentiate(self, student: Network, teacher: Network, windows: NDArray[np.int32], step: int) -> None:
        tokens = torch.from_numpy(windows.astype(np.int64)).to(self._device)
        for part in tokens.split(max(1, self._tokens_at_once // tokens.shape[1])):
            if len(part) == len(tokens) and self._captured is not None:
                loss = float(self._captured(tokens))
            else:
                loss = float(add_gradients(student, teacher, part, len(part) / len(tokens)))
            if not math.isfinite(loss):
                raise ConvertError(f"{self._path}: the divergence is {loss} at step {step}; use a smaller --rate")

    @property
    def _state(self) -> Path:
        return self._work / "state.pt"

    def _save(self, step: int, optimizer: Adam, rounding: Progressive | None, student: Network) -> None:
        partial = self._work / "state.partial.pt"
        state = {"step": step, "optimizer": optimizer.state(), "curve": self.result.curve}
        state["codes"] = {} if rounding is None else rounding.state()
        state["learned"] = [each.tensor.detach() for each in student.weights.learned()]
        with open(partial, "wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(self._state)

    def _load(self, optimizer: Adam, rounding: Progressive | None, student: Network) -> int:
        """The step to go on with."""
        if not self._state.exists():
            return 0
        state = torch.load(self._state, map_location=self._device, weights_only=True)
        optimizer.load(state["optimizer"])
        if rounding is not None:
            rounding.load(state["codes"])
        with torch.no_grad():
            for each, tensor in zip(student.weights.learned(), state["learned"], strict=True):
                each.tensor.copy_(tensor)
        self.result.curve = [(int(tokens), float(kld)) for tokens, kld in state["curve"]]
        if not self._quiet:
            print(f"going on at step {state['step']} of {self._settings.steps}", file=sys.stderr)
        return int(state["step"])

    # --- the result

    def _finish(self, weights: Any, overwrite: bool) -> None:
        write_tuned(self._model.file, weights, self._target, overwrite)
        stored = self._model.file.metadata.get(CALIBRATION_KEY, "")
        figures = json.loads(stored) if stored.strip() else {}
        kld = self.result.after if self.result.kept else self.result.before
        fill_calibration(self._target, figures | {"kld": kld, "tuned_tokens": self.result.tokens if self.result.kept else 0})
        report = self._path.with_name(f"{self._path.name}.quant.json")
        measured = json.loads(report.read_text()) if report.exists() else {}
        if self._chooses_codes and self.result.kept:
            measured.pop("tensors", None)  # errors of codes that are no more
        settings = asdict(self._settings) | {"calib": str(self._settings.calib or "default")}
        write_json(
            self._target.with_name(f"{self._target.name}.quant.json"), measured | {"tuning": asdict(self.result) | {"settings": settings}}
        )
        self._model.close()
        shutil.rmtree(self._work)
