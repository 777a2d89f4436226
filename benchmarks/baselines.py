"""Other libraries' quantization beside ours: the same model, the same texts, bits a weight of the whole file.

    python benchmarks/baselines.py MODEL TEXT [TEXT ...] --work DIR [--calib FILE] [--only NAME ...] [--plot FILE --ours DIR]

MODEL: a folder in Hugging Face's form or a GGUF file that transformers reads. Every library quantizes the linear layers, in float32, as its
users have it do so; what its matrices stand for is read back, written as an unquantized file of ours, and measured by our engine in float32
as benchmarks/quality.py measures: the first 16 windows of 512 tokens, the second half of each scored, against MODEL itself. So activations
are never rounded, also where a library would. Bits count what a file must hold: codes, scales, zeros, and 16 for whatever a library leaves
as it is (embedding, norms). A library that is not installed, or fails, is named with its error. DIR keeps the figures (baselines.jsonl;
the lines of several runs may be put together) and the stored distributions of MODEL. The plot (matplotlib) shows them for the first TEXT,
with those of benchmarks/tuning.py in --ours, and ours before tuning and llama.cpp's from docs/research/quality.md. Needs: transformers,
and of hqq, optimum-quanto, torchao, bitsandbytes, auto-round, llmcompressor those that are to be measured.
"""

import argparse
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle
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
SAMPLE_CHARS = 8 * CTX  # of every text: more than CTX tokens
FIGURES = {"kld_mean": 4, "kld_p999": 2, "same_top": 3, "ppl": 2}  # with their digits
# From docs/research/quality.md: bits a weight of the file, KLD on WikiText.
OURS = {
    "ours, calibrated": [(2.0, 0.882), (2.5, 0.465), (2.67, 0.358), (3.0, 0.218), (3.5, 0.124), (4.25, 0.0509)],
    "ours, embedding in 16 bit": [(4.97, 0.594), (5.76, 0.159), (6.55, 0.0477)],
}
# Type: the same; the model padded to llama.cpp's blocks, an importance matrix from the same text.
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
        work: a folder to write to.
        bits: that a file needs, by the names of the weights that were quantized.
    """

    model: Any
    tokenizer: Any
    texts: list[str]
    device: str
    work: Path
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

    job.replace(quantized, grouped(4, 64, 8 + 32 / 256 if double else 32))


def llm_int8(job: Job) -> None:
    """bitsandbytes' LLM.int8(): weights in int8 with one scale a row (its 16-bit outlier columns are of the activations)."""
    from bitsandbytes import functional

    def quantized(w: torch.Tensor) -> torch.Tensor:
        codes, scale, _ = functional.int8_vectorwise_quant(w.to(torch.float16))
        return codes.float() * scale.float()[:, None] / 127

    job.replace(quantized, lambda w: w.numel() * 8 + w.shape[0] * 32)


# --- what needs text


def auto_round(job: Job, scheme: Any) -> None:
    """SignRound with its default of 200 steps a block."""
    from auto_round import AutoRound

    texts = job.work / "calibration.json"  # the search for widths takes no other form
    texts.write_text(json.dumps([{"text": text} for text in job.texts]))
    maker = AutoRound(
        job.model,
        job.tokenizer,
        scheme=scheme,
        dataset=str(texts),
        seqlen=CTX,
        nsamples=len(job.texts),
        iters=200,
        amp=False,
        enable_torch_compile=False,
        device_map=job.device,
    )
    job.model, layers = maker.quantize()
    for name, module in job.linears():
        job.bits[f"{name}.weight"] = grouped(layers[name]["bits"], layers[name]["group_size"])(module.weight)


def round_scheme(bits: int, group: int) -> Any:
    """Symmetric, as its users' files are."""
    from auto_round.schemes import QuantizationScheme

    return QuantizationScheme(bits=bits, group_size=group, sym=True, data_type="int", act_bits=16)


def auto_scheme(job: Job, bits: float, group: int) -> None:
    """A width for every layer by the loss's gradients, so that the average, scales included, is as wanted; then SignRound."""
    from auto_round import AutoScheme

    auto_round(job, AutoScheme(avg_bits=bits, options=[round_scheme(each, group) for each in (2, 3, 4, 8)]))


def _compressor(job: Job, recipe: Any, bits: int, group: int) -> None:
    """Through llmcompressor: what its modules' scales and zeros make of their weights."""
    from compressed_tensors.offload import remove_dispatch
    from compressed_tensors.quantization import forward
    from datasets import Dataset
    from llmcompressor import oneshot

    data = Dataset.from_list([{"text": text} for text in job.texts])
    oneshot(  # on a GPU where there is one
        model=job.model, dataset=data, recipe=recipe, tokenizer=job.tokenizer, max_seq_length=CTX, num_calibration_samples=len(job.texts)
    )
    remove_dispatch(job.model)
    for name, module in job.linears():
        scheme = module.quantization_scheme.weights
        w = forward.fake_quantize(module.weight.detach(), module.weight_scale, getattr(module, "weight_zero_point", None), scheme)
        job.bits[f"{name}.weight"] = grouped(bits, group, 16, 0 if scheme.symmetric else bits)(w)
        _plain(job.model, name, w)


def _scheme(bits: int, group: int, symmetric: bool) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": group}
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}, "ignore": ["lm_head"]}


def gptq(job: Job, bits: int, group: int) -> None:
    from llmcompressor.modifiers.gptq import GPTQModifier

    _compressor(job, GPTQModifier(**_scheme(bits, group, True)), bits, group)


def awq(job: Job, bits: int, group: int) -> None:
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    _compressor(job, [AWQModifier(duo_scaling="both"), QuantizationModifier(**_scheme(bits, group, False))], bits, group)


# SmolLM2's width, 576, is no multiple of 128: groups of 64.
CASES: dict[str, Callable[[Job], None]] = {
    **{f"HQQ {bits} bits, groups of 64": lambda job, bits=bits: hqq(job, bits, 64) for bits in (2, 3, 4)},
    **{f"torchao intx {bits} bits, groups of 64": lambda job, bits=bits: torchao(job, bits, 64) for bits in (2, 3, 4)},
    **{f"quanto {bits} bits": lambda job, bits=bits: quanto(job, bits) for bits in (2, 4)},
    "bitsandbytes NF4": lambda job: bitsandbytes(job, "nf4"),
    "bitsandbytes NF4, double": lambda job: bitsandbytes(job, "nf4", True),
    "bitsandbytes LLM.int8()": llm_int8,
    **{f"GPTQ (llm-compressor) {bits} bits, groups of 64": lambda job, bits=bits: gptq(job, bits, 64) for bits in (2, 3, 4)},
    **{f"AWQ (llm-compressor) {bits} bits, groups of 64": lambda job, bits=bits: awq(job, bits, 64) for bits in (2, 3, 4)},
    **{f"auto-round {bits} bits, groups of 64": lambda job, bits=bits: auto_round(job, round_scheme(bits, 64)) for bits in (2, 3, 4)},
    "auto-round widths by AutoScheme, 3.25 bits": lambda job: auto_scheme(job, 3.25, 64),
}


class Bench:
    """One model, its texts, and the folder where everything is kept."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.work = args, args.work
        self.work.mkdir(parents=True, exist_ok=True)
        self.log = self.work / "baselines.jsonl"
        self.results = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    @cached_property
    def folder(self) -> Path:
        """MODEL as transformers keeps it, in float32."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        made, given = self.work / "model", self.args.model
        if given.is_dir():
            return Path(given)
        if not (made / "config.json").exists():
            model = AutoModelForCausalLM.from_pretrained(given.parent, gguf_file=given.name, dtype=torch.float32)
            model.hf_quantizer = None
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            AutoTokenizer.from_pretrained(given.parent, gguf_file=given.name).save_pretrained(made)
            model.save_pretrained(made)
        return made

    def _open(self, folder: Path, path: Path) -> Any:
        """A folder's model, unquantized, from a file at `path`, which is made if need be."""
        if not path.exists():
            source = open_source(str(folder))
            write_model(source, make_plan(source, Options(outtype="f32")), path)
        return _core.Model(str(path), precision="f32", threads=self.args.threads)

    @cached_property
    def references(self) -> dict[str, CachedReference]:
        """Every text's windows with MODEL's distributions."""
        found = {}
        scorer = Scorer(self._open(self.folder, self.work / "reference.gguf"), CTX)
        for text in self.args.texts:
            path = self.work / f"reference-{text.name}.npy"
            windows = text_windows(scorer.vocabulary, text.read_text(encoding="utf-8"), CTX, WINDOWS)
            if not path.exists():
                partial = path.with_suffix(".partial")
                CachedReference.store(partial, LiveReference(scorer, windows))
                partial.replace(path)
            found[text.name] = CachedReference(path, windows)
        scorer.close()
        return found

    def _model(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)

    def _job(self) -> Job:
        from transformers import AutoTokenizer

        text = self.args.calib.read_text(encoding="utf-8") if self.args.calib else ""
        step = len(text) // SAMPLES
        texts = [text[i * step : i * step + SAMPLE_CHARS] for i in range(SAMPLES)]
        return Job(self._model(), AutoTokenizer.from_pretrained(self.folder), texts, self.args.device, self.work)

    def run(self, name: str) -> None:
        references = self.references
        start = time.monotonic()
        job = self._job()
        total = sum(p.numel() for p in job.model.parameters())
        quantized = sum(module.weight.numel() for _, module in job.linears())
        CASES[name](job)
        seconds = time.monotonic() - start
        bits = sum(job.bits.values())
        sizes = {"bpw": (bits + 16 * (total - quantized)) / total, "linear_bpw": bits / quantized}
        candidate = self._candidate(job)
        for text, reference in references.items():
            figures = evaluate(candidate, reference.windows, reference).as_dict()
            kept = {key: figures[key] for key in ("kld_mean", "kld_mean_se", "kld_p999", "same_top", "ppl", "ppl_reference")}
            self._note({"name": name, "text": text, **sizes, "seconds": seconds, **kept})
        candidate.close()

    def _candidate(self, job: Job) -> Any:
        """What a library made, in our engine: its weights in an ordinary model, whatever it did to the one that it was given."""
        folder, path = self.work / "candidate", self.work / "candidate.gguf"
        plain, made = self._model(), job.model.state_dict()
        plain.load_state_dict({name: made[name] for name in plain.state_dict()})
        plain.save_pretrained(folder)
        job.tokenizer.save_pretrained(folder)
        path.unlink(missing_ok=True)
        return self._open(folder, path)

    def done(self, name: str) -> bool:
        return {r["text"] for r in self.results if r["name"] == name and "text" in r} >= {text.name for text in self.args.texts}

    def fail(self, name: str, error: Exception) -> None:
        self._note({"name": name, "failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:160]})

    def _note(self, result: dict[str, Any]) -> None:
        self.results.append(result)
        with open(self.log, "a") as log:
            log.write(json.dumps(result) + "\n")

    def table(self) -> None:
        """By bits; every figure for all texts, in their order; what failed, and was not measured in another run, below."""
        heads = ("", "bits a weight, whole file", "linear layers", "KLD", "99.9 %", "same top-1", "perplexity", "seconds")
        print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
        rows = {r["name"]: [each for each in self.results if each["name"] == r["name"] and "text" in each] for r in self.results}
        for name, same in sorted(rows.items(), key=lambda row: row[1][0]["bpw"] if row[1] else 99):
            if not same:
                failure = next(r["failed"] for r in reversed(self.results) if r["name"] == name)
                print(f"| {name} | {failure} |" + " |" * (len(heads) - 2))
                continue
            by_text = {r["text"]: r for r in same}
            found = [by_text[text.name] for text in self.args.texts if text.name in by_text]
            cells = [", ".join(f"{r[key]:.{digits}f}" for r in found) for key, digits in FIGURES.items()]
            first = found[0]
            print(f"| {name} | {first['bpw']:.2f} | {first['linear_bpw']:.2f} | " + " | ".join(cells) + f" | {first['seconds']:.0f} |")


def plot(results: list[dict[str, Any]], tuned: list[dict[str, Any]], text: str, target: Path) -> None:
    """Loss against bits, both of the whole file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    series: dict[str, list[tuple[float, float]]] = {name: list(points) for name, points in OURS.items()}
    for case, bpw in sorted({(r["case"], r["bpw"]) for r in tuned if r["text"] == text and r["case"] != "before"}):
        seeds = [r["kld_mean"] for r in tuned if (r["text"], r["case"], r["bpw"]) == (text, case, bpw)]
        series.setdefault(f"ours, {case}", []).append((bpw, sum(seeds) / len(seeds)))
    series["llama.cpp"] = list(LLAMA_CPP.values())
    for r in results:
        if r.get("text") == text:
            series.setdefault(r["name"].split(" ")[0], []).append((r["bpw"], r["kld_mean"]))
    marks = cycle("svD^<>pXP*")
    for name, points in series.items():
        ours = name.startswith("ours")
        axes.plot(*zip(*sorted(points), strict=True), "-" if ours else ":", marker="o" if ours else next(marks), label=name)
    axes.set(xlabel="bits a weight, whole file", ylabel=f"KL divergence on {text}, nats a token", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder in Hugging Face's form, or GGUF file")
    parser.add_argument("texts", type=Path, nargs="+", metavar="TEXT", help="texts to measure on")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="keeps everything")
    parser.add_argument("--calib", type=Path, help="text for those that need some")
    parser.add_argument("--device", default="cpu", help="where libraries compute")
    parser.add_argument("--threads", type=int, default=0, help="of our engine")
    parser.add_argument("--only", nargs="*", default=list(CASES), metavar="NAME", help="cases whose names begin so; none: what is known")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw loss against bits")
    parser.add_argument("--ours", type=Path, metavar="DIR", help="--work of benchmarks/tuning.py, for the plot")
    args = parser.parse_args()
    bench = Bench(args)
    for name in [name for name in CASES if any(name.startswith(wanted) for wanted in args.only)]:
        if bench.done(name):
            continue
        try:
            bench.run(name)
        except Exception as error:  # a library's, of any kind: it is part of the result
            traceback.print_exc()
            bench.fail(name, error)
    bench.table()
    if args.plot:
        log = args.ours / "tuning.jsonl" if args.ours else None
        tuned = [json.loads(line) for line in log.read_text().splitlines()] if log else []
        plot(bench.results, tuned, args.texts[0].name, args.plot)


if __name__ == "__main__":
    main()
