"""Other libraries' quantization beside ours: the same model, the same texts, bits a weight of the whole file.

    python benchmarks/baselines.py FOLDER TEXT [TEXT ...] --work DIR [--calib FILE] [--only NAME ...] [--plot FILE --ours DIR]

FOLDER: the model in Hugging Face's form, float32. Every library quantizes the linear layers as its users have it do so; what its matrices
stand for is read back, written as an unquantized file of ours, and measured by our engine in float32 as benchmarks/quality.py measures: the
first 16 windows of 512 tokens, the second half of each scored, against FOLDER itself. Bits count what a file must hold: codes, scales,
zeros, and whatever a library leaves in 16 bit (embedding, norms). A library that is not installed, or fails, is named with its error. DIR
keeps the figures (baselines.jsonl). The plot (matplotlib) shows them for the first TEXT, with those of benchmarks/tuning.py in --ours and
llama.cpp's from docs/research/quality.md. Needs: transformers, and of hqq, optimum-quanto, torchao, bitsandbytes, auto-round, llmcompressor
those that are to be measured.
"""

import argparse
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from turboquant_native import _core
from turboquant_native.convert.conversion import Options, make_plan, write_model
from turboquant_native.convert.sources import open_source
from turboquant_native.evaluate.evaluation import CachedReference, LiveReference, Scorer, evaluate, text_windows

WINDOWS, CTX = 16, 512
SAMPLES = 128  # calibration windows
# Type: bits a weight of the file, KLD on WikiText; the model padded to llama.cpp's blocks, an importance matrix from the same text.
LLAMA_CPP = {
    "IQ2_S": (3.11, 1.59),
    "IQ2_M": (3.27, 1.17),
    "IQ3_XXS": (3.52, 0.744),
    "Q2_K": (3.66, 0.863),
    "IQ3_S": (4.06, 0.408),
    "Q3_K_S": (4.06, 0.491),
    "Q3_K_M": (4.40, 0.236),
    "IQ4_XS": (4.71, 0.127),
}


@dataclass
class Job:
    """What a library is given, and what it gives back.

    Attributes:
        model: float32; its linear layers' weights are replaced by what the library's codes stand for.
        texts: calibration, at least CTX tokens each.
        bits: that a file needs, by the names of the weights that were quantized.
    """

    model: Any
    tokenizer: Any
    texts: list[str]
    device: str
    bits: dict[str, float] = field(default_factory=dict)

    def linears(self) -> list[tuple[str, nn.Linear]]:
        """All but the output."""
        return [(name, m) for name, m in self.model.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in name]

    def replace(self, quantized: Callable[[torch.Tensor], torch.Tensor], bits: Callable[[torch.Tensor], float]) -> None:
        """Every linear layer's weight by quantized(weight)."""
        for name, module in self.linears():
            self.bits[f"{name}.weight"] = bits(module.weight)
            with torch.no_grad():
                module.weight.copy_(quantized(module.weight.detach()).to(module.weight))


def grouped(bits: float, group: int, scale: int = 16, zero: int = 0) -> Callable[[torch.Tensor], float]:
    """Bits of a matrix whose groups of weights share a scale and a zero of so many bits."""
    return lambda w: w.numel() * bits + w.numel() / group * (scale + zero)


# --- round to nearest, and what needs no text


def hqq(job: Job, bits: int, group: int) -> None:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    def quantized(w: torch.Tensor) -> torch.Tensor:
        linear = nn.Linear(w.shape[1], w.shape[0], bias=False)
        linear.weight.data = w.clone()
        config = BaseQuantizeConfig(nbits=bits, group_size=group, axis=1)
        made = HQQLinear(linear, config, compute_dtype=torch.float32, device=job.device)
        return torch.as_tensor(made.dequantize()).reshape(w.shape).cpu()

    job.replace(quantized, grouped(bits, group, 16, 16))


def quanto(job: Job, bits: int) -> None:
    from optimum.quanto import freeze, qint2, qint4, quantize

    group = 128  # its own default
    quantize(job.model, weights={2: qint2, 4: qint4}[bits], exclude="lm_head")
    freeze(job.model)
    for name, module in job.model.named_modules():
        if "lm_head" not in name and hasattr(module, "qweight") and isinstance(module, nn.Linear):
            w = module.weight.dequantize() if hasattr(module.weight, "dequantize") else module.weight
            size = getattr(module.weight, "_group_size", group) or module.in_features
            job.bits[f"{name}.weight"] = grouped(bits, size, 16, 16)(w)
            _plain(job.model, name, w)


def _plain(model: Any, name: str, w: torch.Tensor) -> None:
    """An ordinary linear layer in place of a library's own."""
    parent, _, leaf = name.rpartition(".")
    linear = nn.Linear(w.shape[1], w.shape[0], bias=False)
    linear.weight.data = w.detach().float().cpu().clone()
    setattr(model.get_submodule(parent), leaf, linear)


def torchao(job: Job, bits: int, group: int) -> None:
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    config = IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=PerGroup(group))
    quantize_(job.model, config, filter_fn=lambda module, name: isinstance(module, nn.Linear) and "lm_head" not in name)
    for name, module in job.linears():
        w = module.weight.dequantize()
        job.bits[f"{name}.weight"] = grouped(bits, group)(w)
        _plain(job.model, name, w)


def bitsandbytes(job: Job, kind: str, double: bool = False) -> None:
    from bitsandbytes import functional

    def quantized(w: torch.Tensor) -> torch.Tensor:
        codes, state = functional.quantize_4bit(w, quant_type=kind, blocksize=64, compress_statistics=double)
        return functional.dequantize_4bit(codes, state)

    job.replace(quantized, grouped(4, 64, 8 if double else 32))


def llm_int8(job: Job) -> None:
    """bitsandbytes' LLM.int8(): weights in int8 with one scale a row (its 16-bit outlier columns are of the activations)."""
    from bitsandbytes import functional

    def quantized(w: torch.Tensor) -> torch.Tensor:
        codes, scale, _ = functional.int8_vectorwise_quant(w.to(torch.float16))
        return codes.float() * scale.float()[:, None] / 127

    job.replace(quantized, lambda w: w.numel() * 8 + w.shape[0] * 32)


# --- what needs text


def auto_round(job: Job, bits: int, group: int) -> None:
    """SignRound; sym, as its users' files are."""
    from auto_round import AutoRound

    tokens = [job.tokenizer(text, return_tensors="pt").input_ids[:, :CTX] for text in job.texts]
    maker = AutoRound(
        job.model,
        job.tokenizer,
        bits=bits,
        group_size=group,
        sym=True,
        dataset=[{"input_ids": each} for each in tokens],
        seqlen=CTX,
        nsamples=len(tokens),
        iters=200,
        device_map=job.device,
    )
    model, _ = maker.quantize()
    job.model = model
    for name, module in job.linears():
        job.bits[f"{name}.weight"] = grouped(bits, group)(module.weight)


def _compressor(job: Job, modifier: Any, bits: int, group: int) -> None:
    """Through llmcompressor: what its modules' scales and zeros make of their weights."""
    from compressed_tensors.quantization import forward
    from datasets import Dataset
    from llmcompressor import oneshot

    data = Dataset.from_list([{"text": text} for text in job.texts])
    job.model.to(job.device)
    oneshot(
        model=job.model, dataset=data, recipe=modifier, tokenizer=job.tokenizer, max_seq_length=CTX, num_calibration_samples=len(job.texts)
    )
    job.model.cpu()
    for name, module in job.linears():
        scheme = module.quantization_scheme.weights
        zero = getattr(module, "weight_zero_point", None)
        order = getattr(module, "weight_g_idx", None)
        w = forward.fake_quantize(module.weight.detach(), module.weight_scale, zero, scheme, g_idx=order)
        job.bits[f"{name}.weight"] = grouped(bits, group, 16, 0 if scheme.symmetric else bits)(w)
        _plain(job.model, name, w)


def _scheme(bits: int, group: int, symmetric: bool) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": group}
    return {"group_0": {"targets": ["Linear"], "weights": weights}}


def gptq(job: Job, bits: int, group: int) -> None:
    from llmcompressor.modifiers.quantization import GPTQModifier

    _compressor(job, GPTQModifier(config_groups=_scheme(bits, group, True), ignore=["lm_head"]), bits, group)


def awq(job: Job, bits: int, group: int) -> None:
    from llmcompressor.modifiers.awq import AWQModifier

    _compressor(job, AWQModifier(config_groups=_scheme(bits, group, False), ignore=["lm_head"]), bits, group)


# SmolLM2's width, 576, is no multiple of 128: groups of 64.
CASES: dict[str, Callable[[Job], None]] = {
    **{f"HQQ {bits} bits, groups of 64": lambda job, bits=bits: hqq(job, bits, 64) for bits in (2, 3, 4)},
    **{f"torchao intx {bits} bits, groups of 64": lambda job, bits=bits: torchao(job, bits, 64) for bits in (2, 3, 4)},
    **{f"quanto {bits} bits": lambda job, bits=bits: quanto(job, bits) for bits in (2, 4)},
    "bitsandbytes NF4": lambda job: bitsandbytes(job, "nf4"),
    "bitsandbytes NF4, double": lambda job: bitsandbytes(job, "nf4", True),
    "bitsandbytes LLM.int8()": llm_int8,
    **{f"auto-round {bits} bits, groups of 64": lambda job, bits=bits: auto_round(job, bits, 64) for bits in (2, 3, 4)},
    **{f"GPTQ (llm-compressor) {bits} bits, groups of 64": lambda job, bits=bits: gptq(job, bits, 64) for bits in (2, 3, 4)},
    **{f"AWQ (llm-compressor) {bits} bits, groups of 64": lambda job, bits=bits: awq(job, bits, 64) for bits in (3, 4)},
}


class Bench:
    """One model, its texts, and the folder where everything is kept."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.work = args, args.work
        self.work.mkdir(parents=True, exist_ok=True)
        self.log = self.work / "baselines.jsonl"
        self.results = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        self.reference = self._unquantized(args.folder, self.work / "reference.gguf")
        self.windows: dict[str, Any] = {}

    @staticmethod
    def _unquantized(folder: Path, path: Path) -> Path:
        if not path.exists():
            source = open_source(str(folder))
            write_model(source, make_plan(source, Options(outtype="f32")), path)
        return path

    def _reference(self, text: Path) -> CachedReference:
        path = self.work / f"reference-{text.name}.npy"
        scorer = Scorer(_core.Model(str(self.reference), precision="f32"), CTX)
        windows = text_windows(scorer.vocabulary, text.read_text(encoding="utf-8"), CTX, WINDOWS)
        try:
            return CachedReference(path, windows) if path.exists() else CachedReference.store(path, LiveReference(scorer, windows))
        finally:
            scorer.close()

    def _job(self) -> Job:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.args.folder)
        model = AutoModelForCausalLM.from_pretrained(self.args.folder, dtype=torch.float32)
        text = (self.args.calib or self.args.texts[0]).read_text(encoding="utf-8") if self.args.calib else ""
        size = len(text) // SAMPLES
        return Job(model, tokenizer, [text[i * size : i * size + 4 * CTX * 2] for i in range(SAMPLES)], self.args.device)

    def run(self, name: str) -> None:
        start = time.monotonic()
        job = self._job()
        total = sum(p.numel() for p in job.model.parameters())
        untouched = total - sum(module.weight.numel() for _, module in job.linears())
        CASES[name](job)
        seconds = time.monotonic() - start
        bpw = (sum(job.bits.values()) + 16 * untouched) / total
        linear = sum(job.bits.values()) / (total - untouched)
        for text in self.args.texts:
            figures = self._measured(job, text)
            self._note({"name": name, "text": text.name, "bpw": bpw, "linear_bpw": linear, "seconds": seconds, **figures})

    def _measured(self, job: Job, text: Path) -> dict[str, Any]:
        folder, path = self.work / "candidate", self.work / "candidate.gguf"
        job.model.save_pretrained(folder)
        job.tokenizer.save_pretrained(folder)
        path.unlink(missing_ok=True)
        model = _core.Model(str(self._unquantized(folder, path)), precision="f32")
        reference = self._reference(text)
        figures = evaluate(model, reference.windows, reference).as_dict()
        model.close()
        return {key: figures[key] for key in ("kld_mean", "kld_p999", "same_top", "ppl")}

    def _note(self, result: dict[str, Any]) -> None:
        self.results.append(result)
        with open(self.log, "a") as log:
            log.write(json.dumps(result) + "\n")

    def table(self) -> None:
        print(
            "| | bits a weight, whole file | linear layers | text | KLD | KLD 99.9 % | same top-1 | perplexity | seconds |\n|" + "---|" * 9
        )
        for r in self.results:
            if "failed" in r:
                print(f"| {r['name']} | {r['failed']} |" + " |" * 7)
                continue
            figures = f"{r['kld_mean']:.4f} | {r['kld_p999']:.2f} | {r['same_top']:.3f} | {r['ppl']:.2f}"
            print(f"| {r['name']} | {r['bpw']:.2f} | {r['linear_bpw']:.2f} | {r['text']} | {figures} | {r['seconds']:.0f} |")


def plot(results: list[dict[str, Any]], ours: list[dict[str, Any]], text: str, target: Path) -> None:
    """Loss against bits, both of the whole file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    series: dict[str, list[tuple[float, float]]] = {"llama.cpp": list(LLAMA_CPP.values())}
    for r in ours:
        if r["text"] == text:
            series.setdefault(f"ours, {r['case']}", []).append((r["bpw"], r["kld_mean"]))
    for r in results:
        if r.get("text") == text:
            series.setdefault(r["name"].split(" ")[0], []).append((r["bpw"], r["kld_mean"]))
    for name, points in series.items():
        line = "-" if name.startswith("ours") else ":"
        axes.plot(*zip(*sorted(points), strict=True), line, marker="o" if name.startswith("ours") else "s", label=name)
    axes.set(xlabel="bits a weight, whole file", ylabel=f"KL divergence on {text}, nats a token", yscale="log")
    axes.legend(fontsize="small")
    figure.savefig(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="model, Hugging Face's form")
    parser.add_argument("texts", type=Path, nargs="+", metavar="TEXT", help="texts to measure on")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="keeps everything")
    parser.add_argument("--calib", type=Path, help="text for those that need some")
    parser.add_argument("--device", default="cpu", help="where libraries compute")
    parser.add_argument("--only", nargs="*", default=list(CASES), metavar="NAME", help="cases whose names begin so")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw loss against bits")
    parser.add_argument("--ours", type=Path, metavar="DIR", help="--work of benchmarks/tuning.py, for the plot")
    args = parser.parse_args()
    bench = Bench(args)
    for name in [name for name in CASES if any(name.startswith(wanted) for wanted in args.only)]:
        if any(r["name"] == name and "failed" not in r for r in bench.results):
            continue
        try:
            bench.run(name)
        except Exception as error:  # a library's, of any kind: it is part of the result
            traceback.print_exc()
            bench._note({"name": name, "failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]})
    bench.table()
    if args.plot:
        log = args.ours / "tuning.jsonl" if args.ours else None
        plot(bench.results, [json.loads(line) for line in log.read_text().splitlines()] if log else [], args.texts[0].name, args.plot)


if __name__ == "__main__":
    main()
