"""Hostile model files, each built by a function that says what it tries; `python attacks.py FOLDER` writes them all.

Every one must be refused with an error that contains the attack's words: quickly, without a crash and without memory in proportion to
a number that the file merely claims. tests/python/test_attacks.py checks that.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FORMAT_VERSION = 2
U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10  # GGUF's value types
T_F32, T_F16, T_I8, T_I16, T_I32 = 0, 1, 24, 25, 26  # GGUF's tensor types
ALIGNMENT = 32


@dataclass(frozen=True)
class Attack:
    build: Callable[[], bytes]
    words: str  # a regular expression that the error's text must match
    model: bool  # refused by Model; otherwise already by GgufFile


ATTACKS: dict[str, Attack] = {}


def attack(words: str, model: bool = False) -> Callable[[Callable[[], bytes]], Callable[[], bytes]]:
    def register(build: Callable[[], bytes]) -> Callable[[], bytes]:
        ATTACKS[build.__name__] = Attack(build, words, model)
        return build

    return register


# --- a GGUF file in bytes ----------------------------------------------------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(content: Any) -> bytes:
    """Type number and payload of a Python value."""
    if isinstance(content, bool):
        return struct.pack("<IB", BOOL, content)
    if isinstance(content, int):
        return struct.pack("<IQ", U64, content)
    if isinstance(content, float):
        return struct.pack("<If", F32, content)
    return struct.pack("<I", STRING) + text(content)


@dataclass
class Tensor:
    data: np.ndarray
    type: int
    shape: tuple[int, ...] | None = None  # stated instead of the data's
    offset: int | None = None


@dataclass
class File:
    metadata: dict[str, Any] = field(default_factory=dict)  # Python values, or bytes: a type number and payload made by hand
    tensors: list[tuple[str, Tensor]] = field(default_factory=list)
    n_tensors: int | None = None
    n_metadata: int | None = None

    def __bytes__(self) -> bytes:
        head = b"GGUF" + struct.pack("<IQQ", 3, self.n_tensors or len(self.tensors), self.n_metadata or len(self.metadata))
        for key, content in self.metadata.items():
            head += text(key) + (content if isinstance(content, bytes) else value(content))
        data = b""
        for name, tensor in self.tensors:
            shape = tensor.data.shape if tensor.shape is None else tensor.shape
            head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
            head += struct.pack("<IQ", tensor.type, len(data) if tensor.offset is None else tensor.offset)
            data += tensor.data.tobytes()
            data += bytes(-len(data) % ALIGNMENT)
        return head + bytes(-len(head) % ALIGNMENT) + data


def floats(*shape: int) -> Tensor:
    return Tensor(np.full(shape, 0.1, np.float32), T_F32)


def packed_file(change: Callable[[dict[str, Any], dict[str, Tensor]], None] = lambda entry, planes: None) -> bytes:
    """One packed matrix, 64 x 8 at 8 bits with two outliers, changed."""
    entry: dict[str, Any] = {"bits": 8, "n_out": 64, "n_in": 8, "scale": 0.1, "rotation": "none", "seed": "0", "outliers": 2}
    ptr = np.array([0] + [2] * 64, np.int32)
    planes = {
        "w.tqn": Tensor(np.zeros(512, np.int8), T_I8),
        "w.tqn_scale": Tensor(np.ones(64, np.float16), T_F16),
        "w.tqn_out_ptr": Tensor(ptr, T_I32),
        "w.tqn_out_col": Tensor(np.array([1, 7], np.uint16), T_I16),
        "w.tqn_out_val": Tensor(np.ones(2, np.float16), T_F16),
    }
    change(entry, planes)
    return bytes(File({"turboquant.version": FORMAT_VERSION, "turboquant.tensors": json.dumps({"w": entry})}, list(planes.items())))


def llama(**metadata: Any) -> bytes:
    """A whole tiny llama, 2 layers of width 8, with metadata changed (`a__b` stands for `llama.a.b`)."""
    d, ff, vocab = 8, 16, 32
    keys = {
        "block_count": 2, "embedding_length": d, "feed_forward_length": ff, "context_length": 64, "vocab_size": vocab,
        "attention__head_count": 2, "attention__head_count_kv": 1, "attention__layer_norm_rms_epsilon": 1e-5,
        "rope__dimension_count": 4, "rope__freq_base": 10000.0,
    }  # fmt: skip
    named = {"llama." + key.replace("__", "."): content for key, content in (keys | metadata).items() if content is not None}
    tensors = [("token_embd.weight", floats(vocab, d)), ("output_norm.weight", floats(d))]
    for i in range(2):
        shapes = {"attn_norm": (d,), "ffn_norm": (d,), "attn_q": (d, d), "attn_k": (4, d), "attn_v": (4, d), "attn_output": (d, d)}
        shapes |= {"ffn_gate": (ff, d), "ffn_up": (ff, d), "ffn_down": (d, ff)}
        tensors += [(f"blk.{i}.{name}.weight", floats(*shape)) for name, shape in shapes.items()]
    return bytes(File({"general.architecture": "llama", **named}, tensors))


# --- counts that claim more than the file holds ----------------------------------------------------------------------------------------


@attack("9223372036854775808 tensors do not fit the file")
def tensor_count_allocates_everything() -> bytes:
    return bytes(File(n_tensors=2**63))


@attack("18446744073709551615 metadata keys do not fit the file")
def key_count_allocates_everything() -> bytes:
    return bytes(File(n_metadata=2**64 - 1))


@attack("18446744073709551615 bytes wanted at offset")
def string_longer_than_the_address_space() -> bytes:
    return bytes(File({"k": struct.pack("<IQ", STRING, 2**64 - 1) + b"x" * 64}))


@attack("an array of 2305843009213693952 elements does not fit")
def array_whose_bytes_wrap_to_zero() -> bytes:
    return bytes(File({"k": struct.pack("<IIQ", ARRAY, U64, 2**61) + b"x" * 64}))


@attack("nested more than 4 deep")
def arrays_nested_until_the_stack_ends() -> bytes:
    return bytes(File({"k": struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 200_000 + struct.pack("<IQ", U8, 0)}))


@attack("JSON: nested more than 16 deep")
def json_nested_until_the_stack_ends() -> bytes:
    return bytes(File({"turboquant.version": FORMAT_VERSION, "turboquant.tensors": '{"a":' * 200_000}))


# --- sizes that wrap -------------------------------------------------------------------------------------------------------------------


@attack("the number of elements overflows")
def shape_whose_product_wraps_to_zero() -> bytes:
    return bytes(File(tensors=[("t", Tensor(np.zeros(8, np.float32), T_F32, shape=(2**32, 2**32)))]))


@attack("its size in bytes overflows")
def shape_whose_bytes_wrap_to_a_few() -> bytes:
    return bytes(File(tensors=[("t", Tensor(np.zeros(8, np.float32), T_F32, shape=(2**62 + 2,)))]))


@attack("reach past the end of the data")
def offset_that_wraps_back_into_the_header() -> bytes:
    return bytes(File(tensors=[("t", Tensor(np.zeros(8, np.float32), T_F32, offset=2**64 - 32))]))


@attack("plane codes has 512 bytes, its shape asks for")
def matrix_larger_than_its_codes() -> bytes:
    return packed_file(lambda entry, planes: entry.update(n_out=2**31 - 2, n_in=65536, outliers=0))


@attack('"n_out" is no unsigned 64-bit integer')
def dimension_of_seventy_bits() -> bytes:
    return packed_file(lambda entry, planes: entry.update(n_out=2**70))


# --- one name, two meanings ----------------------------------------------------------------------------------------------------------


@attack('tensor "t" appears twice')
def two_tensors_of_one_name() -> bytes:
    return bytes(File(tensors=[("t", floats(8)), ("t", floats(8))]))


@attack('the data of tensors "a" and "b" overlap')
def tensors_that_share_bytes() -> bytes:
    return bytes(File(tensors=[("a", floats(16)), ("b", Tensor(np.zeros(8, np.float32), T_F32, offset=32))]))


@attack('the name "w" appears twice')
def list_with_two_entries_of_one_name() -> bytes:
    return bytes(File({"turboquant.version": FORMAT_VERSION, "turboquant.tensors": '{"w": {"bits": 2}, "w": {"bits": 3}}'}))


@attack('matrix "w" is stored twice')
def matrix_packed_and_plain() -> bytes:
    return packed_file(lambda entry, planes: planes.update({"w": floats(64, 8)}))


# --- reads out of bounds, and values that poison -------------------------------------------------------------------------------------


def outlier_attack(plane: str, index: int, content: int) -> bytes:
    def change(_: dict[str, Any], planes: dict[str, Tensor]) -> None:
        planes[plane].data[index] = content

    return packed_file(change)


@attack(r"out_col\[1\] is 65535, n_in is 8")
def outlier_column_beyond_the_input() -> bytes:
    return outlier_attack("w.tqn_out_col", 1, 65535)


@attack("out_ptr decreases at row")
def outlier_rows_that_start_beyond_the_table() -> bytes:
    return outlier_attack("w.tqn_out_ptr", 30, 2**31 - 1)


@attack("out_ptr decreases at row")
def outlier_rows_that_start_before_the_table() -> bytes:
    return outlier_attack("w.tqn_out_ptr", 30, -(2**31))


@attack(r"row_scale\[5\] is nan")
def scale_that_is_not_a_number() -> bytes:
    return packed_file(lambda entry, planes: planes["w.tqn_scale"].data.__setitem__(5, np.nan))


@attack(r"\\x1b\[2J")
def name_that_clears_the_terminal() -> bytes:
    return bytes(File(tensors=[("\x1b[2J\x1b[31mall is well", floats(4)), ("\x1b[2J\x1b[31mall is well", floats(4))]))


@attack("is not UTF-8")
def name_that_is_no_text() -> bytes:
    return bytes(File(tensors=[("ab", floats(4))])).replace(text("ab"), text(b"\xff\xfe"))


# --- metadata that the engine would compute with ---------------------------------------------------------------------------------------


@attack("block_count", model=True)
def layers_without_end() -> bytes:
    return llama(block_count=2**40)


@attack("block_count is 4096, which takes 16384 tensors", model=True)
def layers_without_tensors() -> bytes:
    return llama(block_count=4096)


@attack("expert_count is 4096, which takes 24576 tensors", model=True)
def experts_without_tensors() -> bytes:
    return llama(expert_count=4096, expert_used_count=2)


@attack("key_length", model=True)
def heads_beyond_memory() -> bytes:
    return llama(attention__key_length=2**29)


@attack("blk.2.", model=True)
def one_layer_more_than_there_is() -> bytes:
    return llama(block_count=3)


@attack("head_count", model=True)
def no_heads() -> bytes:
    return llama(attention__head_count=0)


@attack("head_count_kv", model=True)
def no_key_heads() -> bytes:
    return llama(attention__head_count_kv=0)


@attack("head_count", model=True)
def heads_beyond_32_bits() -> bytes:
    return llama(attention__head_count=2**33 + 2)


@attack("head", model=True)
def heads_that_do_not_share_evenly() -> bytes:
    return llama(attention__head_count=4, attention__head_count_kv=3)


@attack("embedding_length|shape", model=True)
def width_that_no_tensor_has() -> bytes:
    return llama(embedding_length=2**31)


@attack("embedding_length|shape", model=True)
def no_width() -> bytes:
    return llama(embedding_length=0)


@attack("context_length", model=True)
def context_beyond_memory() -> bytes:
    return llama(context_length=2**62)


@attack("dimension_count|rope", model=True)
def rotary_part_wider_than_a_head() -> bytes:
    return llama(rope__dimension_count=4096)


@attack("freq_base|not finite", model=True)
def rotary_base_that_is_not_a_number() -> bytes:
    return llama(rope__freq_base=float("nan"))


@attack("epsilon", model=True)
def epsilon_that_is_negative() -> bytes:
    return llama(attention__layer_norm_rms_epsilon=-1.0)


@attack("feed_forward_length|shape", model=True)
def feed_forward_beyond_memory() -> bytes:
    return llama(feed_forward_length=2**62)


@attack('"general.architecture" is not a string|general.architecture', model=True)
def architecture_that_is_a_number() -> bytes:
    return bytes(File({"general.architecture": 7}))


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, hostile in ATTACKS.items():
        (folder / f"{name}.gguf").write_bytes(hostile.build())


if __name__ == "__main__":
    main()
