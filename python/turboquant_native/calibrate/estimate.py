"""What a calibrated conversion will take: time, memory and disk of each stage, from the model's shape and a probe of this machine.

The stages' work is counted in floating-point operations, bytes and weights; the probe, a second or two, measures how fast this machine
does each kind with the threads at hand. Other programs on the machine slow both down alike.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from .. import _core
from ..common.errors import ConvertError
from ..common.memory import available_memory
from ..common.progress import duration
from ..convert import synthetic
from ..convert.container import ContainerWriter
from ..convert.conversion import TensorPlan
from ..convert.feedback import block_feedback, times_definite_inverse
from ..convert.quantize import input_site
from ..convert.sources import Source
from .key_statistics import WINDOWS
from .report import ALLOCATED, SIMPLE_RULE
from .request import Effort
from .rounding import ERROR_ROWS, layer_of
from .text import SAMPLED_SHARE

PROBE_LEN = 128  # tokens of a window of held-out text, at most
_F32_PARAMETERS = 1_000_000_000  # larger models keep their reference in BF16
_SAMPLING = 0.75  # of the engine's rate, with some twenty sequences side by side; a few alone are slower still:
_SAMPLING_FEW = 0.35
_AT_8_BITS = 2.2  # times as fast as unquantized
_BATCH_ROWS = 4096  # of the statistics
_BASE_MEMORY = 200e6  # of Python and its libraries


@dataclass(frozen=True)
class Speed:
    """What this machine does in a second, all threads together.

    Attributes:
        engine: floating-point operations of the engine's passes over many rows.
        products: of NumPy's matrix products.
        solving: of the solution for a definite matrix.
        noise: random numbers, on one core.
        feedback: of error feedback's factorization, counted as n^3 for an n x n Hessian.
        encoding: width -> weights rounded.
        writing: bytes of tensors put into a file.
        logarithms: values of logits normalized.
    """

    engine: float
    products: float
    solving: float
    noise: float
    feedback: float
    encoding: Mapping[int, float]
    writing: float
    logarithms: float

    @staticmethod
    @lru_cache
    def measure(threads: int = 0) -> Speed:
        """By the probe; once in a process. What runs on all the threads or on one for certain is measured in processor time, so that other
        programs do not disturb it; the rest by the fastest of several runs."""
        threads = threads or _core.cpu_count()
        rng = np.random.default_rng(0)
        square = rng.standard_normal((768, 768), dtype=np.float32)
        hessian = square @ square.T / len(square)
        rows = rng.standard_normal((128 * threads, 256), dtype=np.float32)
        logits = rng.standard_normal((16, 32768), dtype=np.float32)

        def normalize() -> None:
            np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, dtype=np.float64)

        trellis, scalar = (rows.size / seconds_of(partial(_core.encode, rows, bits, threads=threads), threads) for bits in (4, 6))
        engine, writing = _engine_and_file(threads)
        return Speed(
            engine=engine,
            products=2 * square.size * len(square) / seconds_of(lambda: square @ square),
            solving=7 / 3 * len(square) ** 3 / seconds_of(lambda: times_definite_inverse(square, hessian)),
            noise=square.size / seconds_of(lambda: rng.standard_normal(square.shape, dtype=np.float32), 1),
            feedback=len(square) ** 3 / seconds_of(lambda: block_feedback(hessian, 0.03)),
            encoding={**dict.fromkeys((1, 2, 3, 4), trellis), 6: scalar, 8: 4 * scalar},
            writing=writing,
            logarithms=logits.size / seconds_of(normalize, 1) / 3,
        )


def seconds_of(work: Callable[[], object], threads: int | None = None, repeats: int = 4) -> float:
    """The shortest of some runs, in processor time a thread where it is known how many there are."""
    times = []
    for _ in range(repeats):
        start, processor = time.perf_counter(), time.process_time()
        work()
        times.append(time.perf_counter() - start)
        if threads is not None:
            times.append((time.process_time() - processor) / threads)
    return max(min(times), 1e-6)


def _engine_and_file(threads: int) -> tuple[float, float]:
    """Operations a second of a layer over 512 tokens, and bytes a second of writing its file."""
    shape = synthetic.Shape(n_layers=1, n_embd=512, n_ff=2048, n_heads=8, n_kv_heads=4, head_dim=64, n_vocab=256)
    layer = sum(n_out * n_in for name, n_out, n_in in shape.matrices() if name.startswith("blk."))
    with tempfile.TemporaryDirectory(prefix="tqn-probe-") as folder:
        path = Path(folder) / "layer.gguf"
        start = time.perf_counter()
        with ContainerWriter(path, shape.architecture) as out:
            for key, value in shape.metadata().items():
                out.add_metadata(key, value)
            for name, sizes, value in shape.tensors():
                out.add_tensor(name, np.full(sizes, value, np.float32))
            for name, n_out, n_in in shape.matrices():
                out.add_tensor(name, np.full((n_out, n_in), 0.01, np.float32))
            size = out.finish()
        writing = size / (time.perf_counter() - start)
        model = _core.Model(str(path), precision="f32", threads=threads)
        try:
            runner = _core.LayerRunner(model, 512)
            hidden = runner.embed(np.zeros((1, 512), np.int32))
            return 2 * layer * 512 / seconds_of(lambda: runner.layer(0, hidden), threads), writing
        finally:
            model.close()


@dataclass(frozen=True)
class Stage:
    """Seconds, and bytes of memory and disk while it runs; `disk` without what earlier stages left."""

    name: str
    seconds: float
    memory: float
    disk: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """Of all stages, in their order."""

    stages: Sequence[Stage]

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def memory(self) -> float:
        return max(stage.memory for stage in self.stages)

    @property
    def disk(self) -> float:
        return sum(stage.disk for stage in self.stages)

    def text(self) -> str:
        """A table, for people."""
        rows = [*self.stages, Stage("in all", self.seconds, self.memory, self.disk)]
        width = max(len(row.name) for row in rows)
        head = f"{'estimate':{width}}  {'time':>8}  {'memory':>9}  {'disk':>9}"
        lines = [f"{row.name:{width}}  {duration(row.seconds):>8}  {size_text(row.memory):>9}  {size_text(row.disk):>9}" for row in rows]
        return "\n".join([head, *lines])

    def check(self, folder: Path, effort: str, already: int = 0) -> None:
        """ConvertError where memory or the disk of `folder` cannot hold it, with what would do. already: bytes of an earlier run there."""
        if self.memory > (available := available_memory()):
            cheaper = "--effort none takes least" if effort == "fast" else "--effort fast takes less, --effort none least"
            raise ConvertError(
                f"the conversion needs {size_text(self.memory)} of memory, {size_text(available)} are free: {cheaper}; "
                "so do fewer other programs"
            )
        if self.disk > (free := shutil.disk_usage(folder).free + already):
            raise ConvertError(
                f"{folder}: the conversion needs {size_text(self.disk)} of disk space until it is done, {size_text(free)} are free: "
                f"write to another disk, or with --effort none, which keeps no unquantized copy"
            )


def size_text(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


@dataclass(frozen=True)
class Work:
    """What is asked for: the calibration text, and which stages run."""

    effort: Effort
    windows: int
    seq_len: int
    samples_text: bool
    chooses: bool
    chooses_embeddings: bool
    counts_tokens: bool = False
    gradients: bool = False
    key_statistics: bool = False

    @property
    def tokens(self) -> int:
        return self.windows * self.seq_len

    @property
    def samples_at_8_bits(self) -> bool:
        return self.samples_text and self.effort.samples_at_8_bits


def reference_type(parameters: int) -> str:
    """How the unquantized copy is stored that calibration runs."""
    return "f32" if parameters < _F32_PARAMETERS else "bf16"


class _Counts:
    """Operations of one model, from the shapes of its tensors."""

    def __init__(self, source: Source, plan: Sequence[TensorPlan]) -> None:
        values = source.metadata()
        prefix = values["general.architecture"]
        self.experts = int(values.get(f"{prefix}.expert_count", 0) or 0)
        self._used = int(values.get(f"{prefix}.expert_used_count", 0) or 0) / self.experts if self.experts else 1.0
        matrices = {
            name: shape
            for name, shape in source.shapes.items()
            if len(shape) == 2 and layer_of(name) is not None and not name.endswith(".bias")
        }
        self.layers = 1 + max((layer_of(name) or 0 for name in matrices), default=0)
        self.width = source.shapes["token_embd.weight"][1]
        self.vocabulary = source.shapes["token_embd.weight"][0]
        self.layer_weights = sum(self._share(name) * n_out * n_in for name, (n_out, n_in) in matrices.items())
        self.packed = {tensor.name: tensor for tensor in plan if tensor.spec is not None}
        self._matrices = {name: shape for name, shape in matrices.items() if name in self.packed}
        self._attended = max(
            (shape[1] for name, shape in matrices.items() if name.endswith(("attn_output.weight", "ssm_out.weight"))), default=self.width
        )
        self.parameters = source.parameters

    def _share(self, name: str) -> float:
        """Of all tokens, how many a matrix sees."""
        return self._used if re.search(r"ffn_\w+\.\d+\.weight$", name) else 1.0

    def sites(self) -> Iterator[tuple[int, float, int, bool]]:
        """(inputs, share of the tokens, outputs of the matrices that read it, whether they write to the residual stream)."""
        readers: dict[str, list[str]] = {}
        for name in self._matrices:
            readers.setdefault(input_site(name), []).append(name)
        for names in readers.values():
            writes = names[0].endswith(("attn_output.weight", "ssm_out.weight", "ffn_down.weight"))
            yield self._matrices[names[0]][1], self._share(names[0]), sum(self._matrices[name][0] for name in names), writes

    def matrices(self) -> Iterator[tuple[int, int]]:
        """(outputs, inputs) of the layers' packed matrices."""
        yield from self._matrices.values()

    def passes(self, tokens: float, seq_len: int) -> float:
        """Operations of all layers over so many tokens."""
        return tokens * (2 * self.layer_weights + 2 * seq_len * self._attended * self.layers)

    def head(self, tokens: float) -> float:
        return 2.0 * tokens * self.width * self.vocabulary


def estimate(source: Source, plan: Sequence[TensorPlan], work: Work, speed: Speed) -> Estimate:
    """Of a conversion that stores its tensors as `plan` says, or about so."""
    counts = _Counts(source, plan)
    file = float(sum(tensor.bytes for tensor in plan))
    reference = counts.parameters * (4.0 if reference_type(counts.parameters) == "f32" else 2.0)
    largest = 4.0 * max(tensor.weights for tensor in plan)
    touched = 2 * counts.layer_weights / counts.layers + counts.vocabulary * counts.width  # of the mapped reference, at a time
    running = _BASE_MEMORY + touched * reference / counts.parameters
    logits = 4.0 * PROBE_LEN * counts.vocabulary
    stages = [
        Stage("reference", (reference + 4 * counts.parameters) / 2 / speed.writing, _BASE_MEMORY + 3 * largest, 2 * reference),
        Stage(
            "text",
            _text_seconds(counts, work, speed),
            _BASE_MEMORY + (1.1 * counts.parameters + 3 * largest if work.samples_at_8_bits else reference) + 3 * logits,
        ),
    ]
    if work.gradients:
        stages.append(Stage("gradients", 4 * counts.passes(work.tokens, work.seq_len) / speed.engine, running + 8.0 * counts.parameters))
    if work.chooses or work.chooses_embeddings or counts.packed.keys() & {"token_embd.weight", "output.weight"}:
        memory = running + _statistics_memory(counts, work.effort.sensitivity_windows * work.seq_len) + 6 * logits
        stages.append(Stage("sensitivity", _sensitivity_seconds(counts, work, speed), memory))
    if work.key_statistics:
        tokens = min(work.windows, WINDOWS) * work.seq_len
        stages.append(Stage("key statistics", counts.passes(tokens, work.seq_len) / speed.engine, running + 8.0 * tokens * counts.width))
    rounding = _rounding_seconds(counts, work, speed)
    memory = running + max(_rounding_memory(counts, work), 5 * largest)
    states = 3 * 2 * 4.0 * work.tokens * counts.width
    verified = work.chooses and work.effort.verify
    for label in (ALLOCATED, SIMPLE_RULE) if verified else (ALLOCATED if work.chooses else "given",):
        stages.append(Stage(f"rounding ({label})", rounding, memory, 2 * file + states))
    probes = work.effort.probes * PROBE_LEN
    measuring = (
        2.3 * (counts.passes(probes, PROBE_LEN) + counts.head(probes)) / speed.engine + 6 * probes * counts.vocabulary / speed.logarithms
    )
    stages.append(Stage("measuring", measuring * (2 if verified else 1), running + 6 * logits))
    if work.effort.verify:
        stages.append(Stage("plain rounding", measuring + _encoding_seconds(counts, speed), running + 4 * largest, 2 * file))
    return Estimate(stages)


def _text_seconds(counts: _Counts, work: Work, speed: Speed) -> float:
    sampled = round(work.windows * SAMPLED_SHARE) * work.seq_len if work.samples_text else 0
    probes = work.effort.probes * PROBE_LEN
    per_token = (counts.passes(1, work.seq_len) + counts.head(1)) / speed.engine
    seconds = (sampled + probes) * counts.vocabulary / speed.logarithms
    if work.samples_at_8_bits:
        per_token /= _AT_8_BITS
        seconds += 5.0 * counts.parameters / speed.writing + counts.parameters / speed.encoding[8]
    return seconds + sampled * per_token / _SAMPLING + probes * per_token / _SAMPLING_FEW


def _sensitivity_seconds(counts: _Counts, work: Work, speed: Speed) -> float:
    tokens, probes = work.effort.sensitivity_windows * work.seq_len, work.effort.sensitivity_probes * PROBE_LEN
    whole = counts.passes(probes, PROBE_LEN)
    hessians = sum(tokens * share * n_in**2 for n_in, share, _, _ in counts.sites())
    seconds = counts.passes(tokens, work.seq_len) / speed.engine + hessians / speed.products
    noise = sum(n_in**3 / speed.feedback + 2 * n_in**2 * n_out / speed.solving for n_in, _, n_out, _ in counts.sites())
    noise += sum(tensor.weights for tensor in counts.packed.values()) / speed.noise
    ends = 1
    if work.chooses:
        ends = -(-counts.layers // work.effort.adjacent) + 1
        each = sum(1 for _ in counts.matrices()) / counts.layers + 2
        seconds += noise + (each * whole + ends * whole / 2) / speed.engine
    elif work.chooses_embeddings:
        ends = 3
        seconds += noise + 3 * whole / speed.engine
    logits = 0.75 * probes * ends
    if work.counts_tokens:
        seconds += (counts.passes(4 * work.seq_len, work.seq_len) + counts.head(4 * work.seq_len)) / speed.engine
    return seconds + counts.head(logits) / speed.engine + 2 * logits * counts.vocabulary / speed.logarithms


def _encoding_seconds(counts: _Counts, speed: Speed) -> float:
    return sum(tensor.weights / speed.encoding[tensor.spec.bits] for tensor in counts.packed.values() if tensor.spec is not None)


def _rounding_seconds(counts: _Counts, work: Work, speed: Speed) -> float:
    tokens = float(work.tokens)
    products = 0.0
    for n_in, share, n_out, writes in counts.sites():
        products += tokens * share * (n_in**2 + (4 * n_in * n_out if writes else 2 * n_in**2))
    solved = sum(n_in**3 / 3 + 2 * n_in**2 * (n_out if writes else n_in) for n_in, _, n_out, writes in counts.sites()) / speed.solving
    applied = sum(2 * n_in**2 * n_out for n_in, _, n_out, writes in counts.sites() if not writes)
    reported = sum(4 * n_in**2 * min(n_out, ERROR_ROWS) for n_out, n_in in counts.matrices())
    feedback = sum(n_in**3 for n_in, _, _, _ in counts.sites()) / speed.feedback
    moved = 3 * 4 * sum(tensor.weights for tensor in counts.packed.values()) / speed.writing / 4
    passes = 2 * counts.passes(tokens, work.seq_len) / speed.engine
    products += applied + reported
    return passes + products / speed.products + solved + feedback + moved + _encoding_seconds(counts, speed)


def _statistics_memory(counts: _Counts, tokens: int) -> float:
    """Of a layer: hidden states, Hessians of all sites, one of them factored."""
    by_layer = sum(n_in**2 for n_in, _, _, _ in counts.sites()) / counts.layers
    widest = max((n_in for n_in, _, _, _ in counts.sites()), default=counts.width)
    return 4.0 * (3 * tokens * counts.width + by_layer + 2 * counts.layer_weights / counts.layers) + 40.0 * widest**2


def _rounding_memory(counts: _Counts, work: Work) -> float:
    """Of a layer: hidden states of both models, what the original's sites saw, statistics, the rounded matrices."""
    seen = (sum(n_in * share for n_in, share, _, _ in counts.sites()) / counts.layers + 2 * counts.width) * work.tokens
    widest = max((n_in for n_in, _, _, _ in counts.sites()), default=counts.width)
    return (
        4.0 * (6 * work.tokens * counts.width + seen + 3 * _BATCH_ROWS * widest + 2 * counts.layer_weights / counts.layers)
        + 40.0 * widest**2
    )
