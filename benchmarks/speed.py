"""The speed tables of the README: kernels, whole models, and llama.cpp beside them in the same run. Writes benchmarks/RESULTS.md.

    python benchmarks/speed.py [--kernels BUILD/kernels] [--model FILE ...] [--shapes llama-3.2-1b,llama-3.2-3b] [--bits 2,3,4]
                               [--peer LLAMA_BENCH --peer-model SHAPE:TYPE=FILE.gguf ...] [--rounds 3]

--kernels: the executable of benchmarks/kernels.cpp (cmake -DTQ_BENCHMARKS=ON). --peer: llama.cpp's llama-bench, with model files of
the same shapes; it runs alternately with ours, and the ratios are those of the medians over the rounds. Synthetic models have random
codes in a known model's shape: speed does not depend on the values. Their embedding, which is also the output matrix, has --embed-bits
(6, as llama.cpp keeps it at Q6_K).
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median

from turboquant_native import _core, synthetic

ROOT = Path(__file__).resolve().parent


def run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    return done.stdout


def ours(model: Path, threads: int, args: argparse.Namespace, *more: str) -> dict:
    """One row of `tqn bench`."""
    common = ("-t", threads, "-p", args.prompt, "-n", args.generate, "-r", 1, "--json")
    found = json.loads(run(sys.executable, "-m", "turboquant_native.cli", "bench", model, *common, *more))
    return found["rows"][0] | {key: value for key, value in found.items() if key != "rows"}


def peers(model: str, threads: int, args: argparse.Namespace) -> dict:
    """Tokens/s of llama-bench, by the kind of test."""
    found = json.loads(run(args.peer, "-m", model, "-t", threads, "-p", args.prompt, "-n", args.generate, "-r", 1, "-o", "json"))
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
            rows = [ours(path, threads, args) for _ in range(args.rounds)]
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
    found = {name: ours(path, max(args.threads), args, "--profile")["profile"] for name, path in named.items()}
    kinds = sorted({kind for profile in found.values() for kind in profile})
    lines = ["| model | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for name, profile in found.items():
        total = sum(profile.values())
        lines.append(f"| {name} | " + " | ".join(f"{100 * profile.get(kind, 0) / total:.1f} %" for kind in kinds) + " |")
    return lines


def beside_peer(args: argparse.Namespace, models: dict[tuple[str, int], Path]) -> list[str]:
    lines = [
        f"| shape | llama.cpp type | pp{args.prompt} | tg{args.generate} | "
        + " | ".join(f"ours {bits} bits: pp, tg (ratio)" for bits in args.bits)
        + " |",
        "|---" * (4 + len(args.bits)) + "|",
    ]
    threads = max(args.threads)
    for entry in args.peer_model:
        label, _, path = entry.partition("=")
        shape, _, kind = label.partition(":")
        rates = defaultdict(list)
        for _ in range(args.rounds):
            for test, value in peers(path, threads, args).items():
                rates["peer", test].append(value)
            for bits in args.bits:
                row = ours(models[shape, bits], threads, args)
                rates[bits, "pp"].append(row["pp"])
                rates[bits, "tg"].append(row["tg"])
        mid = {key: median(values) for key, values in rates.items()}
        ratio = lambda bits, test, mid=mid: f"{mid[bits, test]:.4g} ({mid[bits, test] / mid['peer', test]:.2f}x)"  # noqa: E731
        cells = [f"{ratio(bits, 'pp')}, {ratio(bits, 'tg')}" for bits in args.bits]
        lines.append(f"| {shape} | {kind} | {mid['peer', 'pp']:.0f} | {mid['peer', 'tg']:.1f} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return lines


def machine(args: argparse.Namespace) -> str:
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")),
        platform.processor(),
    )
    commit = run("git", "-C", ROOT, "rev-parse", "--short", "HEAD").strip()
    return f"{cpu}, {_core.cpu_count()} cores; instruction set {_core.isa()}; commit {commit}; medians of {args.rounds} runs."


def arguments() -> argparse.Namespace:
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", type=Path)
    parser.add_argument("--model", type=Path, nargs="*", default=[])
    parser.add_argument("--shapes", type=lambda text: [part for part in text.split(",") if part], default=["llama-3.2-1b", "llama-3.2-3b"])
    parser.add_argument("--bits", type=numbers, default=[2, 3, 4])
    parser.add_argument("--embed-bits", type=int, default=6)
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--peer-model", nargs="*", default=[], metavar="SHAPE:TYPE=FILE")
    parser.add_argument("--work", type=Path, help="where synthetic models are kept (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=ROOT / "RESULTS.md")
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
        sections.append(("## Whole models", whole_models(args, models)))
        sections.append(("## Where the time of generation goes", profiles(args, models)))
        if args.peer:
            sections.append((f"## Beside llama.cpp, {max(args.threads)} threads, alternating runs", beside_peer(args, models)))
    text = "\n".join(f"{title}\n\n" + "\n".join(lines) + "\n" for title, lines in sections)
    args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
