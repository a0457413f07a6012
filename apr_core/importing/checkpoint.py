"""A checkpoint directory: its configuration files and the tensors of all its shards.

Uses file reads, not mapping: memory stays bounded by what was asked for, and a file that shrinks
meanwhile is an error instead of a crash. Headers of safetensors (u64 length, JSON
{name: {dtype, shape, data_offsets}}, the data) are read by hand, because an error has to name the
file and the tensor, and believed only where they agree with the file's size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.errors import FormatError, InputOutputError, NotFound, reading
from apr_core.format import to_float32
from apr_core.text.tokenizer_files import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATS = {"F32": "f32", "F16": "f16", "BF16": "bf16", "F64": "f64"}  # -> format names
_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>\d+)-of-(?P<count>\d+)(?P<end>.*)")
TEXTS = (".json", ".txt", ".md", ".jinja", ".model", "")  # files beside the weights
PULL_AGAIN = "Complete the download: `apr pull` again fetches only what is missing."

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
    """A tensor of a checkpoint. `dtype` as its files spell it, `offset` absolute in `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


class Checkpoint:
    """An open checkpoint: a directory with its configuration files, and tensors by their HF names.

    `open` makes one of safetensors; sources of other files derive from this. `metadata` is what the
    files say about themselves, such as the `__metadata__` of safetensors. `notes` are sentences
    about what reading changes, for the summary of an import.
    """

    file_format = "safetensors"
    notes: tuple[str, ...] = ()

    def __init__(
        self, directory: Path, tensors: Mapping[str, SourceTensor], metadata: Mapping[str, str]
    ) -> None:
        self.directory, self.tensors, self.metadata = directory, dict(tensors), dict(metadata)

    def format_of(self, name: str) -> str:
        """Return the name of a tensor's number format. Raises FormatError if it is no float."""
        tensor = self.tensors[name]
        if tensor.dtype not in FLOATS:
            raise FormatError(
                f"{tensor.file}: tensor {name!r} has dtype {tensor.dtype}, expected one of "
                f"{', '.join(FLOATS)}",
                "Take the checkpoint in its original precision, not a quantized one.",
            )
        return FLOATS[tensor.dtype]

    @classmethod
    def open(cls, directory: Path) -> Checkpoint:
        """Find the safetensors files of a directory and read their headers.

        Raises NotFound (nothing there, or a shard missing), InputOutputError or FormatError.
        """
        directory = Path(directory)
        weight_map: Mapping[str, str] = {}
        if (directory / SINGLE).exists():
            files = [directory / SINGLE]
        elif (directory / INDEX).exists():
            weight_map = _weight_map(directory / INDEX)
            files = [directory / name for name in sorted(set(weight_map.values()))]
            missing = [f.name for f in files if not f.exists()]
            if missing:
                raise NotFound(
                    f"{directory}: {len(missing)} of {len(files)} shards are missing: "
                    + ", ".join(missing[:5]),
                    PULL_AGAIN,
                )
        else:
            files = _files_without_index(directory)
        tensors: dict[str, SourceTensor] = {}
        metadata: dict[str, str] = {}
        for file in files:
            inside, notes = read_header(file)
            twice = next((name for name in inside if name in tensors), None)
            if twice is not None:
                raise FormatError(f"tensor {twice!r} is in {tensors[twice].file} and in {file}")
            tensors |= inside
            metadata |= notes
        _check_map(directory, weight_map, tensors)
        return cls(directory, tensors, metadata)

    def rows(self, name: str) -> tuple[int, int]:
        """Return (rows, values in a row): the first dimension, and the product of the others."""
        shape = self.tensors[name].shape
        return (shape[0] if shape else 1), prod(shape[1:])

    def read_raw(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Return the bytes of rows [start, stop) along the first dimension, by default of all."""
        t = self.tensors[name]
        rows, _ = self.rows(name)
        row_bytes = t.nbytes // max(rows, 1)
        wanted = ((rows if stop is None else stop) - start) * row_bytes
        raw = np.empty(wanted, np.uint8)
        try:
            with t.file.open("rb", buffering=0) as file:
                file.seek(t.offset + start * row_bytes)
                _read_into(file, raw.data)
        except OSError as error:  # also if it is gone: it was there when opened
            reason = error.strerror or error
            raise InputOutputError(f"{t.file}: cannot be read: {reason}") from error
        except EOFError:
            raise FormatError(f"{t.file}: ends inside tensor {name!r}", CUT_OFF) from None
        return raw

    def read_rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return rows [start, stop) along the first dimension as float32 [rows, values in a row].

        Raises FormatError if the dtype is not a float.
        """
        count = (self.rows(name)[0] if stop is None else stop) - start
        return self.decode(name, self.read_raw(name, start, stop), count)

    def decode(self, name: str, raw: NDArray[np.uint8], count: int) -> NDArray[np.float32]:
        """Return `count` rows of a tensor, as `read_raw` gave them, as float32 [count, values]."""
        return to_float32(raw, self.format_of(name), (count, self.rows(name)[1]))


def _read_into(file: Any, view: memoryview) -> None:
    while view:
        count = file.readinto(view)
        if not count:
            raise EOFError
        view = view[count:]


def _weight_map(path: Path) -> dict[str, str]:
    """Read {tensor: file name} from the index; every file must lie inside the directory."""
    files = read_json(path).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise FormatError(f"{path}: has no weight_map")
    for tensor, file in files.items():
        if not isinstance(file, str) or Path(file).name != file or file in ("", "..", "."):
            raise FormatError(f"{path}: tensor {tensor!r} is said to be in {file!r}, no file name")
    return files


def _check_map(
    directory: Path, weight_map: Mapping[str, str], tensors: Mapping[str, SourceTensor]
) -> None:
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].file.name != file:
            raise FormatError(
                f"{directory / INDEX}: tensor {name!r} should be in {file}, and is not", PULL_AGAIN
            )


def _files_without_index(directory: Path) -> list[Path]:
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise _no_safetensors(directory)
    numbered = [(f, m) for f in files if (m := _NUMBERED.fullmatch(f.name))]
    if numbered and len(numbered) == len(files):
        return _numbered_set(directory, files, numbered)
    if len(files) > 1:
        names = ", ".join(f.name for f in files[:5])
        raise FormatError(
            f"{directory}: several safetensors files and no {INDEX}: {names}",
            f"Keep one of them, or add {INDEX}.",
        )
    return files


def _numbered_set(
    directory: Path, files: list[Path], numbered: list[tuple[Path, re.Match[str]]]
) -> list[Path]:
    """Return all files of one set `NAME-00001-of-0000N`, which must be complete."""
    sets = {(m["stem"], m["count"], m["end"]) for _, m in numbered}
    if len(sets) > 1:
        raise FormatError(
            f"{directory}: holds shards of {len(sets)} different sets", "Keep the files of one set."
        )
    count = int(numbered[0][1]["count"])
    present = {int(m["number"]) for _, m in numbered}
    missing = [n for n in range(1, min(count, 100_000) + 1) if n not in present]
    if missing:
        listed = ", ".join(map(str, missing[:5]))
        raise NotFound(
            f"{directory}: {len(missing)} of {count} shards are missing: number {listed}",
            PULL_AGAIN,
        )
    return files


def _no_safetensors(directory: Path) -> FormatError | NotFound:
    files = (f for f in directory.glob("[!.]*") if f.is_file() and f.suffix not in TEXTS)
    if others := sorted(f.name for f in files):
        return FormatError(
            f"{directory}: holds {others[0]} and no safetensors",
            "Other files can run code when they are read, or have lost precision. Take the "
            "original, and convert it if need be: model.save_pretrained(DIR) of transformers.",
        )
    return NotFound(
        f"{directory}: no safetensors file there", "A checkpoint has model.safetensors or shards."
    )


def read_header(path: Path) -> tuple[dict[str, SourceTensor], dict[str, str]]:
    """Read the tensors of a file's header, and its `__metadata__`.

    Raises NotFound, InputOutputError, or FormatError naming file and tensor.
    """
    with reading(path), path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        raw = _header_bytes(path, file.read(8), size, file)
    header = _parse(path, raw)
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError(f"{path}: {METADATA} must be an object of strings")
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
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is given twice")
    return values


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
    """Raise FormatError unless tensors lie side by side from the header's end to the file's."""
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
