"""Sizes, losses and speeds of one model at several widths, rounded plainly (no calibration): the table of docs/research/quality.md.

    python benchmarks/plain_rounding.py SOURCE TEXT [--bits 8 6 4 3] [--windows 16] [--work DIR]

SOURCE: a Hugging Face folder or a GGUF file; TEXT: the text to measure on. Embeddings keep 8 bits; the reference is the same model at F32.
Prints a Markdown table: file size and bits per weight, perplexity, KL divergence, same top-1, tokens/s, and how the model goes on after
"The capital of France is".
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT = "The capital of France is"
COLUMNS = ("weights", "file MB", "bits per weight", "perplexity", "KLD mean", "KLD 99.9 %", "same top-1")
COLUMNS += ("pp512 t/s", "tg128 t/s", "convert s", "goes on")


def tqn(*args: object) -> str:
    """Runs the command line tool, returns what it printed."""
    done = subprocess.run([sys.executable, "-m", "turboquant_native", *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"tqn {' '.join(map(str, args))} failed:\n{done.stderr}")
    return done.stdout


def measure(model: Path, reference: Path, text: Path, windows: int) -> dict:
    found = json.loads(tqn("eval", model, "--reference", reference, "--text", text, "--windows", windows, "--json"))
    speed = json.loads(tqn("bench", model, "--json"))["rows"][0]
    says = tqn("run", model, "-p", PROMPT, "-n", 6, "--temperature", 0, "--no-echo", "--raw")
    return found | {"speed": speed, "says": says.strip().replace("\n", " ")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 6, 4, 3])
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--work", type=Path, help="where the converted files go (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        reference = work / "f32.gguf"
        tqn("convert", args.source, reference, "--outtype", "f32", "--overwrite", "--quiet")
        print("| " + " | ".join(COLUMNS) + " |")
        print("|---" * len(COLUMNS) + "|")
        for bits in [None, *args.bits]:
            path, seconds = reference, 0.0
            if bits:
                path, start = work / f"{bits}bit.gguf", time.perf_counter()
                tqn("convert", args.source, path, "--bits", bits, "--embed-bits", 8, "--effort", "none", "--overwrite", "--quiet")
                seconds = time.perf_counter() - start
            print(row(f"{bits} bits" if bits else "F32", path, measure(path, reference, args.text, args.windows), seconds), flush=True)


def row(label: str, path: Path, found: dict, seconds: float) -> str:
    speed = found["speed"]
    cells = [
        label,
        f"{path.stat().st_size / 1e6:.1f}",
        f"{found['bpw']:.2f}",
        f"{found['ppl']:.2f}",
        f"{found['kld_mean']:.4f}",
        f"{found['kld_p999']:.3f}",
        f"{found['same_top']:.3f}",
        f"{speed['pp']:.0f}",
        f"{speed['tg']:.0f}",
        f"{seconds:.0f}" if seconds else "",
        found["says"],
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
