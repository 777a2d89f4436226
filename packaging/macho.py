"""Mach-O files, as far as a wheel's module is looked into on any machine: system, libraries, code signature."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

_MAGIC = 0xFEEDFACF  # 64 bits, little endian
_LOAD_DYLIB, _CODE_SIGNATURE, _BUILD_VERSION = 0xC, 0x1D, 0x32
_SHORTEST = {_LOAD_DYLIB: 24, _CODE_SIGNATURE: 16, _BUILD_VERSION: 24}
_SUPER_BLOB, _CODE_DIRECTORY = 0xFADE0CC0, 0xFADE0C02  # big endian, as all of a signature
_SHA256 = 2


@dataclass
class Module:
    """oldest: macOS that it is for ("13.0"). libraries: that it loads. signature: offset and size in the file, None without one."""

    oldest: str
    libraries: list[str] = field(default_factory=list)
    signature: tuple[int, int] | None = None


def _commands(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Load commands: number and bytes (mach-o/loader.h)."""
    if len(data) < 32:
        raise ValueError(f"no Mach-O file: {len(data)} bytes")
    magic, _, _, _, count, _, _, _ = struct.unpack_from("<8I", data)
    if magic != _MAGIC:
        raise ValueError(f"no Mach-O file of 64 bits: it begins with {magic:#x}")
    offset = 32
    for _ in range(count):
        if offset + 8 > len(data):
            raise ValueError(f"the file ends in its load commands, at byte {len(data)}")
        number, size = struct.unpack_from("<II", data, offset)
        if size < _SHORTEST.get(number, 8) or offset + size > len(data):
            raise ValueError(f"load command {number:#x} at byte {offset} has {size} bytes")
        yield number, data[offset : offset + size]
        offset += size


def read(data: bytes) -> Module:
    """ValueError for another file, or one that names no system."""
    module = Module("")
    for number, command in _commands(data):
        if number == _BUILD_VERSION:
            (version,) = struct.unpack_from("<I", command, 12)
            module.oldest = f"{version >> 16}.{version >> 8 & 255}"
        elif number == _LOAD_DYLIB:
            (start,) = struct.unpack_from("<I", command, 8)
            module.libraries.append(command[start:].split(b"\0")[0].decode())
        elif number == _CODE_SIGNATURE:
            module.signature = struct.unpack_from("<II", command, 8)
    if not module.oldest:
        raise ValueError("no load command says for which system it is")
    return module


def _code_directory(blob: bytes) -> bytes:
    """The part of a signature that lists SHA-256 of the file's pages (xnu: cs_blobs.h)."""
    magic, _, count = struct.unpack_from(">3I", blob)
    if magic != _SUPER_BLOB:
        raise ValueError(f"the code signature begins with {magic:#x}")
    for entry in range(count):
        _, offset = struct.unpack_from(">II", blob, 12 + 8 * entry)
        if struct.unpack_from(">I", blob, offset)[0] == _CODE_DIRECTORY and blob[offset + 37] == _SHA256:
            return blob[offset:]
    raise ValueError("the code signature lists no SHA-256 of pages")


def check_signature(data: bytes, signature: tuple[int, int]) -> None:
    """ValueError unless the signature covers the file up to itself and every page has the hash that it lists: macOS ends other arm64 code.

    Who signed is not looked at: an ad-hoc signature, by the linker, is enough.
    """
    start, size = signature
    try:
        directory = _code_directory(data[start : start + size])
        hashes, _, _, count, limit, width = struct.unpack_from(">5IB", directory, 16)
        page = 1 << directory[39]
    except (struct.error, IndexError):
        raise ValueError(f"the code signature ends early: {size} bytes at {start}, the file has {len(data)}") from None
    if limit != start or count != -(-limit // page):
        raise ValueError(f"the code signature covers {count} pages of {page} bytes up to {limit}, the code ends at {start}")
    for i in range(count):
        if hashlib.sha256(data[i * page : min((i + 1) * page, limit)]).digest()[:width] != directory[hashes + i * width :][:width]:
            raise ValueError(f"the code signature does not hold for bytes {i * page} to {min((i + 1) * page, limit)}")
