"""Time and memory of tuning steps of a large shape, random weights, on a GPU.

    python benchmarks/tuning_large.py [--shape llama-3.1-8b] [--bits 3] [--windows 16] [--seq-len 512] [--steps 20]

Teacher and student are made on the device and need no file: the graph is that of a tiny model with the shape's heads and layers. What
learns are scales and norms (`--no-codes`), as by default for models of this size.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from turboquant_native import _core
from turboquant_native.convert.conversion import Options, make_plan, write_model
from turboquant_native.convert.sources import open_source
from turboquant_native.train.distillation import add_gradients
from turboquant_native.train.network import Network
from turboquant_native.train.optimizer import Adam
from turboquant_native.train.weights import DenseWeight, PackedWeight, Vector, Weights

# layers, width, heads, key and value heads, head size, feed-forward, vocabulary
SHAPES = {
    "llama-3.1-8b": (32, 4096, 32, 8, 128, 14336, 128256),
    "llama-3.2-1b": (16, 2048, 32, 8, 64, 8192, 128256),
    "tiny": (2, 64, 4, 2, 16, 96, 320),
}
AT_ONCE = 32768  # tokens that are differentiated together, as on a large GPU


class RandomWeight(PackedWeight):
    """As a packed matrix is on the device, without codes."""

    def __init__(self, name: str, rows: int, columns: int, bits: int, device: torch.device) -> None:
        self.name, self.bits, self.n_out, self.n_in = name, bits, rows, columns
        self._dtype = torch.bfloat16
        self.unrotated = torch.randn(rows, columns, device=device, dtype=self._dtype)
        self.stored = torch.full((rows,), columns**-0.5, device=device)
        self.gain = torch.zeros(rows, device=device, requires_grad=True)
        self.place = self.outliers = None


def shapes(shape: tuple[int, ...]) -> dict[str, tuple[int, int]]:
    """(n_out, n_in) of every matrix."""
    layers, width, heads, kv, head, inner, vocabulary = shape
    found = {"token_embd.weight": (vocabulary, width), "output.weight": (vocabulary, width)}
    for i in range(layers):
        for name, rows, columns in (
            ("attn_q", heads * head, width),
            ("attn_k", kv * head, width),
            ("attn_v", kv * head, width),
            ("attn_output", width, heads * head),
            ("ffn_gate", inner, width),
            ("ffn_up", inner, width),
            ("ffn_down", width, inner),
        ):
            found[f"blk.{i}.{name}.weight"] = (rows, columns)
    return found


def tiny_twin(shape: tuple[int, ...], folder: str) -> _core.Model:
    """A model with the shape's layers and heads, narrow elsewhere: the graph does not know widths."""
    layers, _, heads, kv, head, _, _ = shape
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=head,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(f"{folder}/twin")
    source = open_source(f"{folder}/twin", needs_tokenizer=False)
    path = Path(folder) / "twin.gguf"
    write_model(source, make_plan(source, Options(outtype="f32")), path)
    return _core.Model(str(path), precision="f32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="llama-3.1-8b")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    device, dtype, shape = torch.device(args.device), torch.bfloat16, SHAPES[args.shape]
    model = tiny_twin(shape, tempfile.mkdtemp())
    norms = [name for name, _, dims in model.file.tensors() if len(dims) == 1]
    teacher, student = Weights({}, {}), Weights({}, {})
    for name, (rows, columns) in shapes(shape).items():
        w = torch.randn(rows, columns, device=device, dtype=dtype) * columns**-0.5
        teacher.matrices[name] = DenseWeight(name, w, learns=False)
        student.matrices[name] = RandomWeight(name, rows, columns, args.bits, device)
    for name in norms:
        teacher.vectors[name] = Vector(name, torch.ones(shape[1], device=device), False)
        student.vectors[name] = Vector(name, torch.ones(shape[1], device=device), True)
    networks = [Network(model, weights, args.seq_len, dtype, saves_memory=True) for weights in (student, teacher)]
    held = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    optimizer, rng = Adam(), np.random.default_rng(0)
    rates = dict.fromkeys(("scales", "norms", "dense", "outliers"), 1e-4)
    part = max(1, AT_ONCE // args.seq_len)
    for step in range(args.steps):
        if step == 2:  # kernels are compiled
            start = time.monotonic()
        tokens = torch.from_numpy(rng.integers(0, shape[-1], (args.windows, args.seq_len))).to(device)
        for windows in tokens.split(part):
            loss = float(add_gradients(*networks, windows, len(windows) / len(tokens)))
        if not np.isfinite(loss):
            raise SystemExit(f"step {step}: the loss is {loss}")
        optimizer.step(student.learned(), rates)  # the next loss waits for it
    seconds = (time.monotonic() - start) / (args.steps - 2)
    most = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    rate = args.windows * args.seq_len / seconds
    print("| shape | windows x tokens | weights on the device | at most | seconds a step | tokens a second |\n|" + "---|" * 6)
    print(f"| {args.shape} | {args.windows} x {args.seq_len} | {held / 1e9:.1f} GB | {most / 1e9:.1f} GB | {seconds:.2f} | {rate:.0f} |")


if __name__ == "__main__":
    main()
