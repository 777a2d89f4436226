"""`tqn info`: what is in a model file."""

import argparse
import json
from dataclasses import asdict
from typing import Any

from ..convert.inspection import FileSummary, describe, measured_kld

EXAMPLES = """
  tqn info model.tqn.gguf
  tqn info model.tqn.gguf --metadata
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("file", help="model file")
    parser.add_argument("--metadata", action="store_true", help="print the metadata too")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Runs the command; errors are exceptions."""
    from .. import _core

    file = _core.GgufFile(args.file)
    summary, kld = describe(file), measured_kld(file)
    metadata = {key: _short(value) for key, value in file.metadata.items() if not key.startswith("turboquant.")}
    if args.json:
        print(
            json.dumps(
                {**_totals(summary), "kld": measured_kld(file), "tensors": [asdict(t) for t in summary.tensors], "metadata": metadata}
            )
        )
        return 0
    _print_table(summary, kld)
    if args.metadata:
        for key, value in metadata.items():
            print(f"{key} = {value}")
    return 0


def _totals(summary: FileSummary) -> dict[str, Any]:
    return {
        "path": summary.path,
        "architecture": summary.architecture,
        "file_bytes": summary.size,
        "tensor_bytes": summary.tensor_bytes,
        "parameters": summary.parameters,
        "bits_per_weight": summary.bits_per_weight,
        "bits_per_weight_without_embeddings": summary.bits_per_weight_without_embeddings,
        "ratio_to_f16": 16 / summary.bits_per_weight,
        "key_statistics_bytes": sum(tensor.bytes for tensor in summary.key_statistics),
    }


def _print_table(summary: FileSummary, kld: float | None) -> None:
    width = max((len(tensor.name) for tensor in summary.tensors), default=6)
    print(f"{'tensor':{width}}  {'type':5}  {'shape':>15}  {'bytes':>12}  bits/weight  outliers")
    for tensor in summary.tensors:
        shape = " x ".join(map(str, tensor.shape))
        row = f"{tensor.name:{width}}  {tensor.type:5}  {shape:>15}  {tensor.bytes:>12,}  {tensor.bits_per_weight:11.3f}"
        print(f"{row}  {tensor.outliers or '':>8}")
    totals = _totals(summary)
    print()
    print(f"architecture       {summary.architecture}")
    print(f"tensors            {len(summary.tensors)} (packed matrices count once)")
    print(f"parameters         {summary.parameters:,}")
    print(f"file               {summary.size / 1e6:.2f} MB, tensors {summary.tensor_bytes / 1e6:.2f} MB")
    print(f"bits per weight    {summary.bits_per_weight:.3f}, without embeddings {summary.bits_per_weight_without_embeddings:.3f}")
    print(f"smaller than FP16  {totals['ratio_to_f16']:.2f} times")
    if summary.key_statistics:
        print(f"statistics of keys {_key_statistics(summary)}")
    if kld is not None:
        print(f"loss               KL divergence {kld:.3g} nats a token, as measured by the conversion")


def _key_statistics(summary: FileSummary) -> str:
    """What quantized caches get from the file, in how many layers, and how large that is."""
    layers = {
        kind: sum(tensor.name.endswith(f"_{name}.weight") for tensor in summary.key_statistics)
        for kind, name in (("means", "mean"), ("balances", "balance"))
    }
    counts = ", ".join(f"{kind} of {count} layers" for kind, count in layers.items() if count)
    return f"{counts}: {sum(tensor.bytes for tensor in summary.key_statistics):,} bytes, for quantized caches"


def _short(value: Any) -> Any:
    """Values that one can read: long arrays become their length, long texts their beginning."""
    if isinstance(value, str):
        return value if len(value) <= 200 else value[:200] + "..."
    if isinstance(value, (list, tuple)) or hasattr(value, "tolist"):
        items = list(value)
        return items if len(items) <= 8 else f"[{len(items)} values]"
    return value
