"""The header of a safetensors file, believed only where it agrees with the file's size.

Layout: u64 length of the header, the header as JSON {name: {dtype, shape, data_offsets}}, the
data. Read by hand, because an error has to name the file and the tensor.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from apr_core.errors import FormatError, InputOutputError, NotFound

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors package
MAX_DIM = 2**48
METADATA = "__metadata__"
ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2,
    "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
CUT_OFF = "The file is cut off or damaged: download it again."


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A tensor of a checkpoint. `dtype` as safetensors spells it, `offset` absolute in `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


def read_header(path: Path) -> tuple[dict[str, SourceTensor], dict[str, str]]:
    """The tensors of a file and its `__metadata__`.

    Raises NotFound, InputOutputError, or FormatError naming file and tensor.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            raw = _header_bytes(path, file.read(8), size, file)
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file") from None
    except OSError as error:
        raise InputOutputError(f"{path}: cannot be read: {error.strerror or error}") from error
    header = _parse(path, raw)
    metadata = _metadata(path, header.pop(METADATA, {}))
    start = 8 + len(raw)
    tensors = {name: _tensor(path, name, row, start) for name, row in header.items()}
    _check_spans(path, tensors.values(), start, size)
    return tensors, metadata


def _header_bytes(path: Path, prefix: bytes, size: int, file: Any) -> bytes:
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > size - 8:
        raise FormatError(
            f"{path}: not a whole safetensors file: its header ends at byte {8 + length}, the file "
            f"at {size}",
            CUT_OFF,
        )
    if length > MAX_HEADER:
        raise FormatError(f"{path}: header of {length} bytes, at most {MAX_HEADER} are allowed")
    raw: bytes = file.read(length)
    return raw


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise FormatError(f"{path}: the safetensors header is not JSON: {error}", CUT_OFF) from None
    if not isinstance(header, dict):
        raise FormatError(f"{path}: the safetensors header is not a JSON object")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is given twice")
    return found


def _metadata(path: Path, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise FormatError(f"{path}: {METADATA} must be an object of strings")
    return value


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _tensor(path: Path, name: str, row: Any, start: int) -> SourceTensor:
    row = row if isinstance(row, dict) else {}
    dtype, shape, span = row.get("dtype"), row.get("shape"), row.get("data_offsets")
    if not (
        isinstance(dtype, str)
        and isinstance(shape, list)
        and all(_is_count(dim) and dim <= MAX_DIM for dim in shape)
        and isinstance(span, list)
        and len(span) == 2
        and all(_is_count(end) for end in span)
    ):
        raise FormatError(f"{path}: tensor {name!r} has no usable dtype, shape and data_offsets")
    nbytes = span[1] - span[0]
    if dtype in ITEM_SIZES and nbytes != prod(shape) * ITEM_SIZES[dtype]:
        raise FormatError(
            f"{path}: tensor {name!r} holds {nbytes} bytes, {dtype} of shape {shape} takes "
            f"{prod(shape) * ITEM_SIZES[dtype]}"
        )
    return SourceTensor(name, dtype, tuple(shape), path, start + span[0], nbytes)


def _check_spans(path: Path, tensors: Iterable[SourceTensor], start: int, size: int) -> None:
    """Tensors must lie side by side, from the header's end to the file's."""
    end, before = start, "the header"
    for t in sorted(tensors, key=lambda t: (t.offset, t.nbytes)):
        if t.offset != end or t.nbytes < 0:
            what = "overlaps" if t.offset < end else "leaves a hole after"
            raise FormatError(f"{path}: tensor {t.name!r} {what} {before}")
        end, before = t.offset + t.nbytes, f"tensor {t.name!r}"
        if end > size:
            raise FormatError(
                f"{path}: tensor {t.name!r} ends at byte {end}, the file at {size}", CUT_OFF
            )
    if end != size:
        raise FormatError(f"{path}: {size - end} bytes follow the last tensor", CUT_OFF)
