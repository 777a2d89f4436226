"""A file of a known shape for llama.cpp: random blocks in one of its types, no tokenizer. Speed does not depend on the values.

    python benchmarks/peer_shapes.py SHAPE TYPE OUT.gguf          TYPE: F16, Q8_0, Q4_0
    llama-bench -m OUT.gguf -t 2 -p 256 -n 48

Names and sizes are those that llama.cpp asks for: of Qwen 3.5, queries and output gates in one matrix, the norm before the feed-forward
part as `post_attention_norm`, four sections of rotary pairs.
"""

import argparse
from collections.abc import Iterator

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

from turboquant_native.convert.synthetic_shapes import SHAPES, RecurrentShape, Shape

BYTES = {"Q8_0": 34, "Q4_0": 18}  # of a block of 32 weights, a float16 scale first


def matrices(shape: Shape) -> Iterator[tuple[str, int, int]]:
    """(name, n_out, n_in); queries and gates of an attention lie in one matrix."""
    attention = {f"blk.{i}." for i in range(shape.n_layers) if isinstance(shape, RecurrentShape) and not shape.is_recurrent(i)}
    for name, n_out, n_in in shape.matrices():
        layer = name.rpartition("attn_")[0]
        if layer in attention and name.endswith("attn_gate.weight"):
            continue
        yield name, n_out * (2 if layer in attention and name.endswith("attn_q.weight") else 1), n_in


def blocks(rng: np.random.Generator, kind: str, n_out: int, n_in: int) -> np.ndarray:
    """Random data of a matrix."""
    if kind == "F16":
        return (rng.standard_normal((n_out, n_in), np.float32) / np.sqrt(n_in)).astype(np.float16)
    data = np.frombuffer(rng.bytes(n_out * n_in // 32 * BYTES[kind]), np.uint8).reshape(-1, BYTES[kind]).copy()
    data[:, :2] = np.frombuffer(np.float16(1 / (64 * np.sqrt(n_in))).tobytes(), np.uint8)
    return data.reshape(n_out, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=[name for name, shape in SHAPES.items() if isinstance(shape, RecurrentShape)])
    parser.add_argument("type", choices=("F16", "Q8_0", "Q4_0"))
    parser.add_argument("out")
    args = parser.parse_args()
    shape, rng = SHAPES[args.shape], np.random.default_rng(0)
    writer = GGUFWriter(args.out, shape.architecture)
    for key, value in shape.metadata().items():
        kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
        kinds[type(value)](key, value)
    writer.add_array(f"{shape.architecture}.rope.dimension_sections", [11, 11, 10, 0])
    writer.add_string("tokenizer.ggml.model", "no_vocab")
    for name, sizes, value in shape.tensors():
        writer.add_tensor(name.replace("ffn_norm", "post_attention_norm"), np.full(sizes, value, np.float32))
    for name, n_out, n_in in matrices(shape):
        data = blocks(rng, args.type, n_out, n_in)
        writer.add_tensor(name, data, raw_dtype=None if args.type == "F16" else GGMLQuantizationType[args.type])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"{args.out}: gguf {gguf.GGUFReader(args.out).fields['GGUF.version'].parts[-1][0]}")


if __name__ == "__main__":
    main()
