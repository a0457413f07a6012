"""Reads the header of a GGUF file: keys, and where each tensor is.

Counts and lengths are believed only as far as the file is long, so memory is bounded by the file.
Layout: magic, version, number of tensors and of keys; keys with typed values; tensor names, shapes,
types and offsets; then the data, from the next multiple of `general.alignment` on.
Source: ggml/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from apr_core.plugin import FormatError, reading

MAGIC, VERSIONS = b"GGUF", (2, 3)
NUMBERS = {  # type of a value -> its NumPy dtype
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8",
    11: "<i8", 12: "<f8",
}  # fmt: skip
FLOAT32, STRING, ARRAY = 6, 8, 9
LEAST_KEY, LEAST_TENSOR = 13, 25  # bytes of a key and its value, and of a tensor's entry, at least
MAX_DIMS = 4
TYPES = {int(t) for t in GGML_QUANT_SIZES}
OF_THE_FILE = ("general.architecture", "general.type")
CUT_OFF = "The file is cut off or damaged: download it again."


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor: `shape` with rows first, its type, its place in the file and its bytes."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """An open file's keys and tensors."""

    path: Path
    keys: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


class Keys:
    """The keys of a GGUF file, read with their types; those of the architecture without prefix."""

    def __init__(self, path: object, values: Mapping[str, Any]) -> None:
        self.path, self.values = path, values
        self.architecture = str(self.get("general.architecture", str))

    def get(self, name: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
        """Return a value. Raises FormatError if it is missing or of another type."""
        value = self.values.get(name, default)
        if value is ...:
            raise FormatError(f"{self.path}: the key {name!r} is missing")
        if value is not default and not isinstance(value, kind):
            raise FormatError(f"{self.path}: the key {name!r} is {value!r:.60}, of another type")
        return value

    def own(self, name: str, kind: type | tuple[type, ...] = int, default: Any = ...) -> Any:
        """Return the value of a key of the architecture."""
        return self.get(f"{self.architecture}.{name}", kind, default)

    def listed(self, value: Any, count: int) -> list[Any]:
        """Return the items of an array that must have so many. Raises FormatError."""
        if not isinstance(value, list | np.ndarray) or len(value) != count:
            raise FormatError(f"{self.path}: expected {count} values, found {value!r:.60}")
        return list(value.tolist() if isinstance(value, np.ndarray) else value)


def described(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts that say what a model is called and whose it is: author, license, URL."""
    return {
        key: value for key, value in values.items()
        if key.startswith("general.") and key not in OF_THE_FILE and isinstance(value, str)
    }  # fmt: skip


class _Header:
    """Reads values one after the other; every length is checked against what is left."""

    def __init__(self, path: Path, file: IO[bytes], size: int) -> None:
        self.path, self.file, self.size = path, file, size

    def fail(self, what: str, hint: str = CUT_OFF) -> FormatError:
        return FormatError(f"{self.path}: {what}", hint)

    @property
    def left(self) -> int:
        return self.size - self.file.tell()

    def raw(self, count: int, what: str) -> bytes:
        if count > self.left:
            raise self.fail(f"{what} takes {count} bytes, {self.left} are left of the file")
        return self.file.read(count)

    def number(self, code: str, what: str) -> int:
        (value,) = struct.unpack(f"<{code}", self.raw(struct.calcsize(code), what))
        return int(value)

    def string(self, what: str) -> str:
        raw = self.raw(self.number("Q", what), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None

    def value(self, what: str) -> Any:
        kind = self.number("I", what)
        if kind == STRING:
            return self.string(what)
        if kind in NUMBERS:
            (number,) = self.numbers(kind, 1, what)
            return float(str(number)) if kind == FLOAT32 else number.item()  # 1e-05, not 9.99e-06
        if kind != ARRAY:
            raise self.fail(f"{what} has a value of unknown type {kind}")
        kind, count = self.number("I", what), self.number("Q", what)
        if kind == STRING:
            if count > self.left // 8:
                raise self.fail(f"{what} has {count} strings, {self.left} bytes are left")
            return [self.string(what) for _ in range(count)]
        if kind not in NUMBERS:
            raise self.fail(f"{what} has an array of unknown type {kind}")
        return self.numbers(kind, count, what)

    def numbers(self, kind: int, count: int, what: str) -> np.ndarray:
        dtype = np.dtype(NUMBERS[kind])
        return np.frombuffer(self.raw(count * dtype.itemsize, what), dtype)


def read_header(path: Path) -> GgufFile:
    """Read keys and tensors of one file.

    Raises NotFound, InputOutputError, or FormatError naming the file and what is wrong with it.
    """
    with reading(path), path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        header = _Header(path, file, size)
        keys, listed = _parsed(header)
        start = _aligned(file.tell(), _alignment(header, keys))
    tensors = {t.name: replace(t, offset=start + t.offset) for t in listed}
    for t in tensors.values():
        if t.offset + t.nbytes > size:
            raise header.fail(
                f"tensor {t.name!r} ends at byte {t.offset + t.nbytes}, the file at {size}"
            )
    return GgufFile(path, keys, tensors)


def _parsed(header: _Header) -> tuple[dict[str, Any], list[GgufTensor]]:
    if (magic := header.raw(4, "the magic number")) != MAGIC:
        raise header.fail(f"begins with {magic!r}, a GGUF file with {MAGIC!r}", "")
    if (version := header.number("I", "the version")) not in VERSIONS:
        raise header.fail(f"is GGUF version {version}, known are 2 and 3", "")
    count, pairs = header.number("Q", "the header"), header.number("Q", "the header")
    if count * LEAST_TENSOR + pairs * LEAST_KEY > header.left:
        raise header.fail(f"names {count} tensors and {pairs} keys, {header.left} bytes are left")
    keys: dict[str, Any] = {}
    for _ in range(pairs):
        name = header.string("the name of a key")
        if name in keys:
            raise header.fail(f"has the key {name!r} twice")
        keys[name] = header.value(f"key {name!r}")
    tensors = [_tensor(header, f"tensor {i}") for i in range(count)]
    if len({t.name for t in tensors}) < count:
        raise header.fail("has two tensors of one name")
    return keys, tensors


def _tensor(header: _Header, what: str) -> GgufTensor:
    name = header.string(f"the name of {what}")
    what = f"tensor {name!r}"
    if (dims := header.number("I", what)) > MAX_DIMS:
        raise header.fail(f"{what} has {dims} dimensions, at most {MAX_DIMS} are allowed")
    shape = tuple(header.number("Q", what) for _ in range(dims))[::-1]
    kind, offset = header.number("I", what), header.number("Q", what)
    if kind not in TYPES:
        raise header.fail(f"{what} is of type {kind}, which this version does not know", "")
    type_ = GGMLQuantizationType(kind)
    block, nbytes = GGML_QUANT_SIZES[type_]
    if prod(shape) >= 2**60 or (shape and shape[-1] % block):
        raise header.fail(
            f"{what} of shape {list(shape)} is no whole number of {type_.name} blocks"
        )
    return GgufTensor(name, shape, type_, offset, prod(shape) // block * nbytes)


def _alignment(header: _Header, keys: Mapping[str, Any]) -> int:
    alignment = keys.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
        raise header.fail(f"general.alignment is {alignment!r}, expected a power of two from 8 up")
    return alignment


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
