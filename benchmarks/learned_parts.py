"""What two more kinds of learned numbers would gain: the tables of the code, and clips of the activations (PACT).

    python benchmarks/learned_parts.py TEACHER FILE.gguf TEXT [TEXT ...] --work DIR [--tokens 2000000] [--batch 16] [--windows 16]

DIR: of benchmarks/tuning.py, with the text that is learned from. All is computed in PyTorch, on a GPU where there is one, and measured on
the first windows of 512 tokens of each TEXT and on the held-out ones, the second half of each scored; the files stay as they are.

Tables: each matrix's T and U become numbers of any size and learn beside scales and norms, which bounds what whole numbers could gain.
Clips: the inputs of all packed matrices, rotated, are rounded to int8 with gradients passed straight through, by the largest value of a
token, as the engine does, and by a limit for all tokens, which begins at the largest value of the first batch; then each matrix learns a
factor of that (PACT, arXiv:1805.06085, with the step's own gradient as in LSQ, arXiv:1902.08153).
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from turboquant_native import _core
from turboquant_native.calibrate.text import vocabulary_of
from turboquant_native.convert.sources import open_source
from turboquant_native.evaluate.evaluation import text_windows
from turboquant_native.train.distillation import add_gradients, divergences
from turboquant_native.train.network import Network
from turboquant_native.train.optimizer import Adam
from turboquant_native.train.rotation import rotate, unrotate
from turboquant_native.train.text import Corpus
from turboquant_native.train.weights import NORMS, OUTLIERS, SCALES, Learned, PackedWeight, of_file, of_source

CTX = 512
RATE, CLIP_RATE = 2e-3, 1e-2
TABLES, CLIPS = "tables", "clips"


class LookUp(torch.autograd.Function):
    """table (16,) at int64 places; its gradient by a histogram, where indexing would add one by one."""

    @staticmethod
    def forward(ctx: Any, table: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places)
        return table[places]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (places,) = ctx.saved_tensors
        return torch.bincount(places.flatten(), gradients[0].flatten(), minlength=16).float(), None


class WithTables(PackedWeight):
    """Values are T[i] + U[j] of tables that learn."""

    def free_tables(self) -> None:
        book = np.zeros((2, 2, 16), np.int8)  # one table counts, the other is zero: what is decoded is the index
        book[0, 0] = book[1, 1] = np.arange(16)
        device = self.stored.device
        i, j = (_core.reference_decode(self.codes, self.bits, self.n_out, self.n_in, each.ravel()) for each in book)
        empty = _core.reference_decode(self.codes, self.bits, self.n_out, self.n_in, np.zeros(32, np.int8))
        self.offset = -int(empty[0, 0])
        self.places = [torch.from_numpy(each.astype(np.int64) + self.offset).to(device) for each in (i, j)]
        tables = torch.from_numpy(self.codebook.astype(np.float32).reshape(2, 16)).to(device)
        self.tables = tables.requires_grad_()

    def _refresh(self) -> None:
        values = LookUp.apply(self.tables[0], self.places[0]) + LookUp.apply(self.tables[1], self.places[1]) - self.offset
        self.unrotated = (values if self.signs is None else unrotate(values, self.signs)).to(self._dtype)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        self._refresh()
        return super().product(x)

    def rows(self, tokens: torch.Tensor) -> torch.Tensor:
        self._refresh()
        return super().rows(tokens)

    def learned(self) -> Iterator[Learned]:
        yield from super().learned()
        yield Learned(self.name, TABLES, self.tables, float(self.tables.detach().std()))


class WithClip(PackedWeight):
    """Inputs are rounded to int8; kind None: not at all."""

    kind: str | None = None

    def start(self, kind: str) -> None:
        self.kind, self.clip = kind, torch.zeros((), device=self.stored.device, requires_grad=True)
        self._largest: torch.Tensor | None = None

    def _rounded(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, self.n_in).float()
        turned = flat if self.signs is None else rotate(flat, self.signs)
        if self.kind == "of all tokens":
            if self._largest is None:
                self._largest = turned.detach().abs().max()
            top = self._largest * self.clip.exp()
        else:
            top = turned.abs().amax(dim=-1, keepdim=True).clamp_min(1e-12) * self.clip.exp()
        steps = (turned / top).clamp(-1, 1) * 127
        whole = steps + (steps.round() - steps).detach()
        back = whole * top / 127
        return (back if self.signs is None else unrotate(back, self.signs)).reshape(x.shape).to(x.dtype)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return super().product(x if self.kind is None else self._rounded(x))

    def learned(self) -> Iterator[Learned]:
        if self.kind is not None:
            yield Learned(self.name, CLIPS, self.clip)


class Bench:
    """Teacher, file, texts."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.model, self.source = _core.Model(str(args.model), precision="f32"), open_source(args.teacher)
        vocabulary = vocabulary_of(self.model)
        assert vocabulary is not None
        self.texts = {text.name: text_windows(vocabulary, text.read_text(encoding="utf-8"), CTX, args.windows) for text in args.texts}
        with np.load(args.work / "corpus.npz") as kept:
            sampled, real, held_out = (kept[name].astype(np.int32) for name in ("sampled", "real", "held_out"))
        self.texts["held out"] = held_out[:: max(1, len(held_out) // (2 * args.windows))]
        self.corpus, self.batch, self.steps = Corpus(sampled, real, held_out, 0.75, 0), args.batch, args.tokens // (args.batch * CTX)
        self.teacher = Network(self.model, of_source(self.source, self.device, self.dtype), CTX, self.dtype)

    def student(self, kind: type[PackedWeight]) -> Network:
        weights = of_file(self.model.file, self.device, self.dtype)
        for weight in weights.matrices.values():
            if isinstance(weight, PackedWeight):
                weight.__class__ = kind
        return Network(self.model, weights, CTX, self.dtype)

    def learn(self, student: Network, rates: dict[str, float]) -> None:
        optimizer = Adam()
        for step in range(self.steps):
            tokens = torch.from_numpy(self.corpus.batch(step, self.batch).astype(np.int64)).to(self.device)
            add_gradients(student, self.teacher, tokens, 1.0)
            part = step / self.steps
            factor = min(1.0, part / 0.05 + 0.02) * (1 - part)
            optimizer.step(student.weights.learned(), {kind: rate * factor for kind, rate in rates.items()})

    def note(self, label: str, student: Network, start: float) -> None:
        found = [divergences(student, self.teacher, windows).mean() for windows in self.texts.values()]
        print(f"| {label} | " + " | ".join(f"{kld:.4f}" for kld in found) + f" | {time.monotonic() - start:.0f} |", flush=True)

    def tables(self) -> None:
        kinds: list[tuple[str, type[PackedWeight]]] = [("scales and norms learn", PackedWeight), ("tables too", WithTables)]
        for label, kind in kinds:
            start, student = time.monotonic(), self.student(kind)
            for weight in student.weights.matrices.values():
                if isinstance(weight, WithTables):
                    if weight.bits > 4:
                        weight.__class__ = PackedWeight
                    else:
                        weight.free_tables()
            if kind is PackedWeight:
                self.note("as the file is", student, start)
            self.learn(student, dict.fromkeys((SCALES, NORMS, OUTLIERS, TABLES, "dense"), RATE))
            self.note(label, student, start)

    def clips(self) -> None:
        for kind in ("of a token", "of all tokens"):
            start, student = time.monotonic(), self.student(WithClip)
            for weight in student.weights.matrices.values():
                if isinstance(weight, WithClip):
                    weight.start(kind)
                    if weight.outliers is not None:
                        weight.outliers.requires_grad_(False)
                    weight.gain.requires_grad_(False)
            for vector in student.weights.vectors.values():
                vector.change.requires_grad_(False)
            divergences(student, self.teacher, self.corpus.batch(0, self.batch))  # finds the largest values of the first batch
            self.note(f"int8 by the largest {kind}", student, start)
            self.learn(student, {CLIPS: CLIP_RATE, "dense": 0.0})
            self.note(f"the same, times what a matrix learned: {self._spread(student)}", student, start)

    @staticmethod
    def _spread(student: Network) -> str:
        factors = [float(weight.clip.detach().exp()) for weight in student.weights.matrices.values() if isinstance(weight, WithClip)]
        return f"{min(factors):.2f} to {max(factors):.2f}, median {np.median(factors):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", help="folder, hub id or GGUF file")
    parser.add_argument("model", type=Path, metavar="FILE.gguf")
    parser.add_argument("texts", type=Path, nargs="+", metavar="TEXT")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="of benchmarks/tuning.py")
    parser.add_argument("--tokens", type=int, default=2_000_000, help="that each learns from")
    parser.add_argument("--batch", type=int, default=16, help="windows of a step")
    parser.add_argument("--windows", type=int, default=16, help="of each text, to measure on")
    parser.add_argument("--only", choices=("tables", "clips"))
    args = parser.parse_args()
    bench = Bench(args)
    print("| KLD | " + " | ".join(bench.texts) + " | seconds |\n|" + "---|" * (len(bench.texts) + 2), flush=True)
    for part in ("tables", "clips"):
        if args.only in (None, part):
            getattr(bench, part)()


if __name__ == "__main__":
    main()
