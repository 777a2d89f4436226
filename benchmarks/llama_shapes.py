"""Files of llama.cpp's types in the shapes of `synthetic.SHAPES`, to measure its speed beside ours without downloading a model.

    python benchmarks/llama_shapes.py SHAPE[,SHAPE] TYPE[,TYPE] --quantize LLAMA_QUANTIZE --out DIR

llama-quantize quantizes a miniature (all layers, 256 columns or little more, random weights), so that every tensor has the type that it
chooses for it; its blocks are then repeated up to the shape's sizes. Speed does not depend on the values. An importance matrix of ones is
given: some types refuse to work without. Writes DIR/SHAPE-TYPE.gguf.
"""

import argparse
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np

from turboquant_native.convert.synthetic import SHAPES, Shape

BLOCK = 256  # weights of llama.cpp's largest block


def miniature(shape: Shape) -> Shape:
    """The shape with all its layers and its queries a key/value head, and as few columns as whole blocks allow."""
    group, kv_heads = shape.n_heads // shape.n_kv_heads, 1
    while group * kv_heads * shape.head_dim % BLOCK:
        kv_heads += 1
    return replace(shape, n_embd=BLOCK, n_ff=BLOCK, n_vocab=BLOCK, n_heads=group * kv_heads, n_kv_heads=kv_heads)


def start_writer(path: Path, shape: Shape) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, shape.architecture)
    for key, value in shape.metadata().items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    writer.add_tokenizer_model("none")
    for name, length, value in shape.vectors():
        writer.add_tensor(name, np.full(length, value, np.float32))
    return writer


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_random(path: Path, shape: Shape) -> None:
    rng = np.random.default_rng(0)
    writer = start_writer(path, shape)
    for name, n_out, n_in in shape.matrices():
        writer.add_tensor(name, (0.02 * rng.standard_normal((n_out, n_in))).astype(np.float16))
    finish(writer)


def write_importance(path: Path, shape: Shape) -> None:
    """An importance matrix of ones in llama.cpp's first format: a count, then name, calls, values of each matrix."""
    matrices = list(shape.matrices())
    with open(path, "wb") as file:
        file.write(struct.pack("<i", len(matrices)))
        for name, _, n_in in matrices:
            file.write(struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 1, n_in))
            file.write(np.ones(n_in, np.float32).tobytes())


def repeated(path: Path, shape: Shape) -> Iterator[tuple[str, np.ndarray, gguf.GGMLQuantizationType]]:
    """(name, rows of bytes, type) of every matrix of the shape, from the miniature's blocks."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, n_out, n_in in shape.matrices():
        tensor = tensors[name]
        block, size = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
        blocks = np.ascontiguousarray(tensor.data).view(np.uint8).reshape(-1, size)
        yield name, np.resize(blocks, (n_out * (n_in // block), size)).reshape(n_out, -1), tensor.tensor_type


def write_shape(path: Path, shape: Shape, quantized: Path) -> None:
    writer = start_writer(path, shape)
    for name, rows, kind in repeated(quantized, shape):
        writer.add_tensor(name, rows, raw_dtype=kind)
    finish(writer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", type=lambda text: text.split(","), help=", ".join(SHAPES))
    parser.add_argument("types", type=lambda text: text.split(","), help="of llama-quantize: Q4_0,Q4_K_M,IQ2_XXS,...")
    parser.add_argument("--quantize", type=Path, required=True, metavar="LLAMA_QUANTIZE")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.shapes:
        shape, small = SHAPES[name], miniature(SHAPES[name])
        with tempfile.TemporaryDirectory() as temporary:
            source, importance, quantized = (Path(temporary) / file for file in ("f16.gguf", "importance.dat", "quantized.gguf"))
            write_random(source, small)
            write_importance(importance, small)
            for kind in args.types:
                command = [args.quantize, "--imatrix", importance, source, quantized, kind]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(f"llama-quantize {kind} failed for {name}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
                path = args.out / f"{name}-{kind}.gguf"
                write_shape(path, shape, quantized)
                print(f"{path}: {path.stat().st_size / 1e6:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
