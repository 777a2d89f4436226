"""Files of llama.cpp's types in known shapes (`synthetic.SHAPES`), to measure its speed beside ours without downloading a model.

    python benchmarks/llama_shapes.py SHAPE[,SHAPE] TYPE[,TYPE] --out DIR [--quantize LLAMA_QUANTIZE] [--layers N]
    llama-bench -m DIR/SHAPE-TYPE.gguf -t 2 -p 256 -n 48

F16, Q8_0, Q4_0 and MXFP4 are random blocks; of MXFP4 (gpt-oss) only the experts, all else is Q8_0, as in published files. For all
other types llama-quantize quantizes a miniature (all layers, 256 columns or little more, random weights, an importance matrix of ones,
without which some types refuse to work), so that every tensor has the type that it chooses for it; the miniature's blocks are then repeated
up to the shape's sizes: shapes with attention alone. Speed does not depend on the values.
No tokenizer.
"""

import argparse
import math
import re
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from turboquant_native.convert.synthetic_shapes import SHAPES, GptOssShape, RecurrentShape, Shape

BLOCK = 256  # weights of llama.cpp's largest block
PLAIN = {"F16": Type.F16, "Q8_0": Type.Q8_0, "Q4_0": Type.Q4_0, "MXFP4": Type.MXFP4}
EXPERT = re.compile(r"(blk\.\d+\.ffn_\w+)\.(\d+)\.weight")
Stored = tuple[str, np.ndarray, Type]  # name, rows of bytes, type of a matrix


def matrices(shape: Shape) -> Iterator[tuple[str, int, int]]:
    """(name, n_out, n_in) as llama.cpp has them: Qwen 3.5's queries and output gates of an attention lie in one matrix."""
    attention = {f"blk.{i}." for i in range(shape.n_layers) if isinstance(shape, RecurrentShape) and not shape.is_recurrent(i)}
    for name, n_out, n_in in shape.matrices():
        layer = name.rpartition("attn_")[0]
        if layer in attention and name.endswith("attn_gate.weight"):
            continue
        yield name, n_out * (2 if layer in attention and name.endswith("attn_q.weight") else 1), n_in


def write(path: Path, shape: Shape, stored: Iterable[Stored]) -> None:
    writer = gguf.GGUFWriter(path, shape.architecture)
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array, str: writer.add_string}
    for key, value in shape.metadata().items():
        adders[type(value)](key, value)
    recurrent = isinstance(shape, RecurrentShape)
    if recurrent:
        writer.add_array(f"{shape.architecture}.rope.dimension_sections", [11, 11, 10, 0])
    writer.add_tokenizer_model("no_vocab")
    for name, sizes, value in shape.tensors():
        name = name.replace("ffn_norm", "post_attention_norm") if recurrent or isinstance(shape, GptOssShape) else name
        writer.add_tensor(name, np.full(sizes, value, np.float32))
    for name, n_out, n_in in shape.routers():
        writer.add_tensor(name, np.random.default_rng(0).standard_normal((n_out, n_in), np.float32))
    for name, rows, kind in stored:
        writer.add_tensor(name, rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_blocks(shape: Shape, kind: Type) -> Iterator[Stored]:
    rng = np.random.default_rng(0)
    for name, n_out, n_in in matrices(shape):
        if kind == Type.F16:
            yield name, (rng.standard_normal((n_out, n_in), np.float32) / np.sqrt(n_in)).astype(np.float16), kind
        elif isinstance(shape, GptOssShape) and (expert := EXPERT.fullmatch(name)):
            if expert[2] == "0":  # all experts of a layer lie in one tensor
                yield f"{expert[1]}_exps.weight", blocks(rng, kind, (shape.n_experts, n_out), n_in), kind
        else:
            whole = Type.Q8_0 if kind == Type.MXFP4 else kind
            yield name, blocks(rng, whole, (n_out,), n_in), whole


def blocks(rng: np.random.Generator, kind: Type, rows: tuple[int, ...], n_in: int) -> np.ndarray:
    """Random codes under a scale that makes outputs about as large as inputs."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = np.frombuffer(rng.bytes(math.prod(rows) * n_in // block * size), np.uint8).reshape(-1, size).copy()
    if kind == Type.MXFP4:
        data[:, 0] = round(127 - math.log2(4 * math.sqrt(n_in)))  # an exponent
    else:
        data[:, :2] = np.frombuffer(np.float16(1 / (64 * np.sqrt(n_in))).tobytes(), np.uint8)  # the scale stands first
    return data.reshape(*rows, -1)


def miniature(shape: Shape) -> Shape:
    """The shape with all its layers and its queries a key/value head, and as few columns as whole blocks allow."""
    group, kv_heads = shape.n_heads // shape.n_kv_heads, 1
    while group * kv_heads * shape.head_dim % BLOCK:
        kv_heads += 1
    return replace(shape, n_embd=BLOCK, n_ff=BLOCK, n_vocab=BLOCK, n_heads=group * kv_heads, n_kv_heads=kv_heads)


def write_importance(path: Path, shape: Shape) -> None:
    """An importance matrix of ones in llama.cpp's first format: a count, then name, calls, values of each matrix."""
    named = list(matrices(shape))
    with open(path, "wb") as file:
        file.write(struct.pack("<i", len(named)))
        for name, _, n_in in named:
            file.write(struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 1, n_in))
            file.write(np.ones(n_in, np.float32).tobytes())


def repeated(path: Path, shape: Shape) -> Iterator[Stored]:
    """Every matrix of the shape, from the miniature's blocks."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, n_out, n_in in matrices(shape):
        tensor = tensors[name]
        block, size = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
        if n_in % block:
            raise SystemExit(f"{name}: {n_in} columns are no whole blocks of {block}; llama-quantize would choose another type")
        blocks = np.ascontiguousarray(tensor.data).view(np.uint8).reshape(-1, size)
        yield name, np.resize(blocks, (n_out * (n_in // block), size)).reshape(n_out, -1), tensor.tensor_type


def write_quantized(path: Path, shape: Shape, kind: str, quantize: Path) -> None:
    """By llama-quantize, which runs on the miniature."""
    small = miniature(shape)
    with tempfile.TemporaryDirectory() as temporary:
        source, importance, quantized = (Path(temporary) / file for file in ("f16.gguf", "importance.dat", "quantized.gguf"))
        write(source, small, random_blocks(small, Type.F16))
        write_importance(importance, small)
        done = subprocess.run([quantize, "--imatrix", importance, source, quantized, kind], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"llama-quantize {kind} failed for {path}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        write(path, shape, repeated(quantized, shape))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", type=lambda text: text.split(","), help=", ".join(SHAPES))
    parser.add_argument("types", type=lambda text: text.split(","), help="of llama.cpp: F16,Q8_0,Q4_0,Q4_K_M,IQ2_XXS,...")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--quantize", type=Path, metavar="LLAMA_QUANTIZE", help="needed for all but F16, Q8_0, Q4_0 and MXFP4")
    parser.add_argument("--layers", type=int, help="(default: the shape's)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.shapes:
        for kind in args.types:
            path, shape = args.out / f"{name}-{kind}.gguf", SHAPES[name]
            shape = replace(shape, n_layers=args.layers or shape.n_layers)
            if kind in PLAIN:
                write(path, shape, random_blocks(shape, PLAIN[kind]))
            elif args.quantize is None or isinstance(shape, RecurrentShape):
                parser.error(f"{name}, {kind}: only {', '.join(PLAIN)}" + ("" if args.quantize else " without --quantize"))
            else:
                write_quantized(path, shape, kind, args.quantize)
            print(f"{path}: {path.stat().st_size / 1e6:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
