"""The speed tables of the README: kernels, whole models, and llama.cpp beside them in the same run. Writes docs/research/speed.md.

    python benchmarks/speed.py [--kernels BUILD/kernels] [--model FILE ...] [--shapes llama-3.2-1b,llama-3.2-3b] [--bits 2,3,4]
                               [--peer LLAMA_BENCH --peer-models DIR] [--rounds 3] [--parts models,profiles,isas,peer]

--kernels: the executable of benchmarks/kernels.cpp (cmake -DTQ_BENCHMARKS=ON). --peer: llama.cpp's llama-bench, with the files of
benchmarks/llama_shapes.py in DIR; it runs alternately with ours, and the ratios are those of the medians over the rounds. Two hardware
threads of one core share its units: pin the run to cores of their own (taskset). Synthetic models have random
codes in a known model's shape: speed does not depend on the values. Their embedding, which is also the output matrix, has --embed-bits
(4: what a budget of 2.5 to 4 bits gives it).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from statistics import median

from turboquant_native import _core
from turboquant_native.convert import synthetic

ROOT = Path(__file__).resolve().parent


def run(*command: object, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    return done.stdout


def ours(model: Path, threads: int, lengths: tuple[int, int], *more: str, isa: str = "") -> dict:
    """One row of `tqn bench`. lengths: tokens of the prompt, tokens generated."""
    prompt, generate = lengths
    common = ("-t", threads, "-p", prompt, "-n", generate, "-r", 1, "--json")
    environment = os.environ | ({"TQ_ISA": isa} if isa else {})
    found = json.loads(run(sys.executable, "-m", "turboquant_native", "bench", model, *common, *more, env=environment))
    return found["rows"][0] | {key: value for key, value in found.items() if key != "rows"}


def peers(model: Path, threads: int, lengths: tuple[int, int], args: argparse.Namespace) -> dict:
    """Tokens/s of llama-bench, by the kind of test."""
    prompt, generate = lengths
    found = json.loads(run(args.peer, "-m", model, "-t", threads, "-p", prompt, "-n", generate, "-r", 1, "-o", "json"))
    return {"pp" if test["n_prompt"] else "tg": test["avg_ts"] for test in found}


def write_models(args: argparse.Namespace, folder: Path) -> dict[tuple[str, int], Path]:
    models = {}
    for shape in args.shapes:
        for bits in args.bits:
            path = models[shape, bits] = folder / f"{shape}-{bits}bit.gguf"
            if not path.exists():
                synthetic.write(path, synthetic.SHAPES[shape], bits, args.embed_bits)
    return models


def whole_models(args: argparse.Namespace, models: dict[tuple[str, int], Path]) -> list[str]:
    named = {path.name: path for path in args.model} | {f"{shape}, {bits} bits": path for (shape, bits), path in models.items()}
    columns = (
        "model",
        "threads",
        f"pp{args.prompt} t/s",
        f"tg{args.generate} t/s",
        "weights GB/s",
        "time to first token s",
        "load s",
        "peak MB",
    )
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for name, path in named.items():
        for threads in args.threads:
            rows = [ours(path, threads, (args.prompt, args.generate)) for _ in range(args.rounds)]
            mid = {key: median(row[key] for row in rows) for key in ("pp", "tg", "gigabytes_per_second", "ttft", "load", "peak_memory")}
            lines.append(
                f"| {name} | {threads} | {mid['pp']:.0f} | {mid['tg']:.1f} | {mid['gigabytes_per_second']:.1f} | {mid['ttft']:.2f} "
                f"| {mid['load']:.3f} | {mid['peak_memory'] / 1e6:.0f} |"
            )
            print(lines[-1], flush=True)
    return lines


def profiles(args: argparse.Namespace, models: dict[tuple[str, int], Path]) -> list[str]:
    """Where the time of generation goes, with all threads."""
    named = {path.name: path for path in args.model} | {f"{shape}, {bits} bits": path for (shape, bits), path in models.items()}
    lengths = (args.prompt, args.generate)
    found = {name: ours(path, max(args.threads), lengths, "--profile")["profile"] for name, path in named.items()}
    kinds = sorted({kind for profile in found.values() for kind in profile})
    lines = ["| model | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for name, profile in found.items():
        total = sum(profile.values())
        lines.append(f"| {name} | " + " | ".join(f"{100 * profile.get(kind, 0) / total:.1f} %" for kind in kinds) + " |")
    return lines


def beside_peer(args: argparse.Namespace, models: dict[tuple[str, int], Path]) -> list[str]:
    """Each round runs ours between the peer's types, so that both see the same state of the machine."""
    prompt, generate = f"pp{args.peer_prompt}", f"tg{args.peer_generate}"
    columns = ["shape", "llama.cpp type", prompt, generate, *(f"ours {bits} bits: {prompt}, {generate} (ratio)" for bits in args.bits)]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    threads, lengths = max(args.threads), (args.peer_prompt, args.peer_generate)
    for shape in args.shapes:
        files = {path.stem.removeprefix(f"{shape}-"): path for path in sorted(args.peer_models.glob(f"{shape}-*.gguf"))}
        rates = defaultdict(list)
        for _ in range(args.rounds if files else 0):
            for run_of in zip_longest(files, args.bits):
                kind, bits = run_of
                if kind is not None:
                    for test, value in peers(files[kind], threads, lengths, args).items():
                        rates[kind, test].append(value)
                if bits is not None:
                    row = ours(models[shape, bits], threads, lengths)
                    rates[bits, "pp"].append(row["pp"])
                    rates[bits, "tg"].append(row["tg"])
        mid = {key: median(values) for key, values in rates.items()}
        for kind in files:
            cells = [
                ", ".join(f"{mid[bits, test]:.4g} ({mid[bits, test] / mid[kind, test]:.2f}x)" for test in ("pp", "tg"))
                for bits in args.bits
            ]
            lines.append(f"| {shape} | {kind} | {mid[kind, 'pp']:.0f} | {mid[kind, 'tg']:.1f} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    return lines


def instruction_sets(args: argparse.Namespace, models: dict[tuple[str, int], Path]) -> list[str]:
    """Generation on the first shape with narrower instructions than the machine's own."""
    names = [name for name in ("avx512vbmi", "avx512", "avx2") if name in _core.available_isas()]
    lines = ["| model | " + " | ".join(f"{name}: tg{args.peer_generate} t/s" for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for (shape, bits), path in models.items():
        if shape == args.shapes[0]:
            lengths = (16, args.peer_generate)
            rates = [median(ours(path, max(args.threads), lengths, isa=name)["tg"] for _ in range(args.rounds)) for name in names]
            lines.append(f"| {shape}, {bits} bits | " + " | ".join(f"{rate:.1f} ({100 * rate / rates[0]:.0f} %)" for rate in rates) + " |")
    return lines


def machine(args: argparse.Namespace) -> str:
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")),
        platform.processor(),
    )
    found = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    commit = found.stdout.strip() or "unknown"  # a copy without its repository
    return f"{cpu}, {_core.cpu_count()} cores; instruction set {_core.isa()}; commit {commit}; medians of {args.rounds} runs."


def arguments() -> argparse.Namespace:
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", type=Path)
    parser.add_argument("--model", type=Path, nargs="*", default=[])
    parser.add_argument("--shapes", type=lambda text: [part for part in text.split(",") if part], default=["llama-3.2-1b", "llama-3.2-3b"])
    parser.add_argument("--bits", type=numbers, default=[2, 3, 4])
    parser.add_argument("--embed-bits", type=int, default=4)
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--peer-prompt", type=int, default=256)
    parser.add_argument("--peer-generate", type=int, default=48)
    parser.add_argument("--peer-models", type=Path, metavar="DIR", help="SHAPE-TYPE.gguf, of benchmarks/llama_shapes.py")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=["models", "profiles", "isas", "peer"])
    parser.add_argument("--work", type=Path, help="where synthetic models are kept (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=ROOT.parent / "docs" / "research" / "speed.md")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    sections = [("# Speed", [machine(args), "Written by benchmarks/speed.py."])]
    if args.kernels:
        sections.append(("## Kernels", run(args.kernels).splitlines()))
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        models = write_models(args, folder)
        if "models" in args.parts:
            sections.append(("## Whole models", whole_models(args, models)))
        if "profiles" in args.parts:
            sections.append(("## Where the time of generation goes", profiles(args, models)))
        if "isas" in args.parts:
            sections.append((f"## Narrower instruction sets, {max(args.threads)} threads", instruction_sets(args, models)))
        if "peer" in args.parts and args.peer and args.peer_models:
            sections.append((f"## Beside llama.cpp, {max(args.threads)} threads, alternating runs", beside_peer(args, models)))
    text = "\n".join(f"{title}\n\n" + "\n".join(lines) + "\n" for title, lines in sections)
    args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
