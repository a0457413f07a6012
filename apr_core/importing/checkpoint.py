"""A checkpoint directory: its configuration files and the tensors of all its shards.

Reads by ordinary file reads, not by mapping: memory stays bounded by what was asked for, and a
file that shrinks meanwhile is an error instead of a crash.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.errors import FormatError, InputOutputError, NotFound
from apr_core.format import to_float32
from apr_core.importing.safetensors import CUT_OFF, SourceTensor, read_header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATS = {"F32": "f32", "F16": "f16", "BF16": "bf16", "F64": "f64"}  # -> format names
_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>\d+)-of-(?P<count>\d+)(?P<end>.*)")
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".gguf")  # files of weights that are not read
PULL_AGAIN = "Complete the download: `apr pull` again fetches only what is missing."


def read_json(path: Path, missing: str = "") -> dict[str, Any]:
    """A JSON object. `missing` is the hint for a file that is not there.

    Raises NotFound, InputOutputError or FormatError.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file", missing) from None
    except OSError as error:
        raise InputOutputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise FormatError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def float_format(tensor: SourceTensor) -> str:
    """The format name of a float tensor's dtype. Raises FormatError for any other dtype."""
    if tensor.dtype not in FLOATS:
        raise FormatError(
            f"{tensor.file}: tensor {tensor.name!r} has dtype {tensor.dtype}, expected one of "
            f"{', '.join(FLOATS)}",
            "Take the checkpoint in its original precision, not a quantized one.",
        )
    return FLOATS[tensor.dtype]


class Checkpoint:
    """An open checkpoint directory. Make one with `open`.

    `tensors` maps names to where they lie, `metadata` is the `__metadata__` of the shards.
    """

    def __init__(
        self, directory: Path, tensors: Mapping[str, SourceTensor], metadata: Mapping[str, str]
    ) -> None:
        self.directory, self.tensors, self.metadata = directory, dict(tensors), dict(metadata)

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
            _check_present(directory, files)
        else:
            files = _files_without_index(directory)
        tensors: dict[str, SourceTensor] = {}
        metadata: dict[str, str] = {}
        for file in files:
            found, notes = read_header(file)
            twice = next((name for name in found if name in tensors), None)
            if twice is not None:
                raise FormatError(f"tensor {twice!r} is in {tensors[twice].file} and in {file}")
            tensors |= found
            metadata |= notes
        _check_map(directory, weight_map, tensors)
        return cls(directory, tensors, metadata)

    def rows(self, name: str) -> tuple[int, int]:
        """(rows, values in a row) of a tensor: its first dimension, and the product of others."""
        shape = self.tensors[name].shape
        return (shape[0] if shape else 1), prod(shape[1:])

    def read_raw(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """The bytes of rows [start, stop) along the first dimension, by default of all."""
        t = self.tensors[name]
        rows, _ = self.rows(name)
        row_bytes = t.nbytes // max(rows, 1)
        wanted = ((rows if stop is None else stop) - start) * row_bytes
        raw = np.empty(wanted, np.uint8)
        try:
            with t.file.open("rb", buffering=0) as file:
                file.seek(t.offset + start * row_bytes)
                _read_into(file, raw.data)
        except OSError as error:
            raise InputOutputError(
                f"{t.file}: cannot be read: {error.strerror or error}"
            ) from error
        except EOFError:
            raise FormatError(f"{t.file}: ends inside tensor {name!r}", CUT_OFF) from None
        return raw

    def read_rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop) along the first dimension as float32 [rows, values in a row].

        Raises FormatError if the dtype is not a float.
        """
        dtype = float_format(self.tensors[name])
        rows, cols = self.rows(name)
        count = (rows if stop is None else stop) - start
        return to_float32(self.read_raw(name, start, stop), dtype, (count, cols))


def _read_into(file: Any, view: memoryview) -> None:
    while view:
        count = file.readinto(view)
        if not count:
            raise EOFError
        view = view[count:]


def _weight_map(path: Path) -> dict[str, str]:
    """{tensor: file name} of the index; a name must stay inside the directory."""
    found = read_json(path).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise FormatError(f"{path}: has no weight_map")
    for tensor, file in found.items():
        if not isinstance(file, str) or Path(file).name != file or file in ("", "..", "."):
            raise FormatError(f"{path}: tensor {tensor!r} is said to be in {file!r}, no file name")
    return found


def _check_present(directory: Path, files: list[Path]) -> None:
    missing = [f.name for f in files if not f.exists()]
    if missing:
        raise NotFound(
            f"{directory}: {len(missing)} of {len(files)} shards are missing: "
            + ", ".join(missing[:5]),
            PULL_AGAIN,
        )


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
    """All files of one set `NAME-00001-of-0000N`, which must be complete."""
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
    others = [f.name for end in OTHER_WEIGHTS for f in sorted(directory.glob(f"*{end}"))]
    if others:
        return FormatError(
            f"{directory}: holds {others[0]} and no safetensors",
            "Other files can run code when they are read, or have lost precision. Take the "
            "original, and convert it if need be: model.save_pretrained(DIR) of transformers.",
        )
    return NotFound(
        f"{directory}: no safetensors file there", "A checkpoint has model.safetensors or shards."
    )
