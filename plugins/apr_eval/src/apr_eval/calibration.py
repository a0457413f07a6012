"""Statistics of what a model's matrices are multiplied with on a text, and the file that has them.

For each matrix the mean square of every input column, and X^T X over rows X of inputs, in runs of
128 columns: what weighted searches and error feedback need. Matrices that share their inputs share
these. Of a stack of matrices, such as experts, each has its own mean squares, and none X^T X.

The file is safetensors: `mean_square.NAME` float32 [C] or [matrices, C], `gram.NAME` float32
[ceil(C / 128), 128, 128], divided by the rows, and `rows.NAME` float64 [1] or [matrices]. NAME is
the first matrix of those with the same inputs; `__metadata__` has `inputs`, JSON {matrix: NAME},
and where it is from.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import is_
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.plugin import FEEDBACK, FormatError, Inputs, Weight
from apr_core.runtime import read_header

DAMPING = 0.01  # of the mean of X^T X's diagonal, added to it
DTYPES = {"F32": np.float32, "F64": np.float64}


@dataclass(slots=True)
class Sums:
    """Sums over rows of inputs: their number, squares [C] or [matrices, C], and X^T X."""

    rows: NDArray[np.float64]
    squares: NDArray[np.float64]
    gram: NDArray[np.float32] | None

    def add(self, x: NDArray[np.float32]) -> None:
        """Add rows [n, C]."""
        self.rows += len(x)
        self.squares += np.einsum("nc,nc->c", x, x, dtype=np.float64)
        assert self.gram is not None
        runs, whole = len(self.gram), x.shape[1] // FEEDBACK
        if whole:
            part = x[:, : whole * FEEDBACK].reshape(len(x), whole, FEEDBACK).transpose(1, 2, 0)
            self.gram[:whole] += part @ part.transpose(0, 2, 1)
        if whole < runs:
            rest = x[:, whole * FEEDBACK :]
            self.gram[whole, : rest.shape[1], : rest.shape[1]] += rest.T @ rest

    def add_chosen(self, x: NDArray[np.float32], ids: NDArray[np.int64]) -> None:
        """Add rows x [T, C] or [T, k, C] to the matrices in ids [T, k]."""
        spread = np.broadcast_to(x[:, None] if x.ndim == 2 else x, (*ids.shape, x.shape[-1]))
        flat, chosen = spread.reshape(-1, x.shape[-1]), ids.reshape(-1)
        for matrix in np.unique(chosen):
            rows = flat[chosen == matrix]
            self.rows[matrix] += len(rows)
            self.squares[matrix] += np.einsum("nc,nc->c", rows, rows, dtype=np.float64)


@dataclass(slots=True)
class Calibration:
    """Sums by the first matrix with those inputs, and that matrix of each other one."""

    about: dict[str, str] = field(default_factory=dict)
    sums: dict[str, Sums] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    _made: tuple[str, Inputs | None] = ("", None)
    _lock: Any = field(default_factory=Lock, repr=False)

    def inputs_of(self, name: str, matrix: int = 0) -> Inputs | None:
        """Return what a matrix, or one of a stack, is multiplied with; None if it was not seen."""
        same = self.inputs.get(name, "")
        if same not in self.sums:
            return None
        sums = self.sums[same]
        if sums.gram is None:
            rows, squares = sums.rows[matrix], sums.squares[matrix]
            return Inputs((squares / rows).astype(np.float32)) if rows else None
        with self._lock:  # encoders ask from several threads, one tensor after the other
            if self._made[0] != same:
                mean_square = (sums.squares / sums.rows).astype(np.float32)
                self._made = same, Inputs(mean_square, feedback_of(sums.gram))
            return self._made[1]

    def write(self, path: Path) -> None:
        """Write the file, beside it first and then renamed. Raises OSError."""
        arrays: dict[str, NDArray[Any]] = {}
        for name, s in self.sums.items():
            per = np.maximum(s.rows, 1)
            arrays[f"rows.{name}"] = s.rows
            arrays[f"mean_square.{name}"] = (
                s.squares / (per if s.gram is not None else per[:, None])
            ).astype(np.float32)
            if s.gram is not None:
                arrays[f"gram.{name}"] = s.gram / np.float32(per[0])
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            _write_safetensors(part, arrays, self.about | {"inputs": json.dumps(self.inputs)})
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Read what `write` wrote. Raises NotFound, InputOutputError or FormatError."""
        tensors, about = read_header(path)
        try:
            inputs = json.loads(about.pop("inputs"))
            arrays = {name: _array(path, t) for name, t in tensors.items()}
            names = {n.removeprefix("rows.") for n in arrays if n.startswith("rows.")}
            sums = {name: _sums(arrays, name) for name in names}
            if not set(inputs.values()) <= names:
                raise KeyError(min(set(inputs.values()) - names))
        except (KeyError, ValueError, AttributeError, TypeError) as error:
            raise FormatError(
                f"{path}: is no calibration: {error}", "Make one with `apr calibrate`."
            ) from error
        return cls(about, sums, inputs)


class Collector:
    """Adds up what matrices are multiplied with: a `watch` of a model run layer by layer."""

    def __init__(self, calibration: Calibration, download: Any) -> None:
        self.calibration, self.download = calibration, download
        self._last: tuple[tuple[Any, ...], str] = ((), "")

    def __call__(self, weight: Weight, given: tuple[Any, ...]) -> None:
        """Add the rows that a matrix is about to be multiplied with."""
        if weight.embed is not None and len(given) == 1 and given[0].ndim == 1:
            return  # ids
        c, x, (last, first) = self.calibration, given[0], self._last
        again = len(last) == len(given) and all(map(is_, last, given))
        name = c.inputs.setdefault(weight.name, first if again else weight.name)
        if again and name == first:
            return
        self._last = given, name
        if len(weight.shape) > 2:
            sums = c.sums.setdefault(name, _empty(weight.cols, weight.shape[0]))
            sums.add_chosen(self.download(x), self.download(given[1]))
        else:
            c.sums.setdefault(name, _empty(weight.cols)).add(self.download(x))


def feedback_of(gram: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return each run's feedback (see `Inputs`) from X^T X [runs, 128, 128]."""
    wide = gram.astype(np.float64)
    scale = np.einsum("rii->r", wide) / np.maximum((np.einsum("rii->ri", wide) > 0).sum(1), 1)
    dead = np.einsum("rii->ri", wide) == 0
    damp = DAMPING * np.where(scale > 0, scale, 1.0)[:, None] + np.where(dead, 1.0, 0.0)
    inverse = np.linalg.inv(wide + damp[:, :, None] * np.eye(FEEDBACK))
    upper = np.linalg.cholesky((inverse + inverse.transpose(0, 2, 1)) / 2).transpose(0, 2, 1)
    diagonal = np.einsum("rii->ri", upper)[:, :, None]
    return np.ascontiguousarray(-np.triu(upper / diagonal, 1), np.float32)


def _empty(cols: int, matrices: int = 0) -> Sums:
    if matrices:
        return Sums(np.zeros(matrices), np.zeros((matrices, cols)), None)
    shape = (-(-cols // FEEDBACK), FEEDBACK, FEEDBACK)
    return Sums(np.zeros(1), np.zeros(cols), np.zeros(shape, np.float32))


def _sums(arrays: Mapping[str, NDArray[Any]], name: str) -> Sums:
    rows, mean = arrays[f"rows.{name}"], arrays[f"mean_square.{name}"].astype(np.float64)
    gram = arrays.get(f"gram.{name}")
    if gram is None:
        return Sums(rows, mean * rows[:, None], None)
    if gram.shape != (-(-len(mean) // FEEDBACK), FEEDBACK, FEEDBACK) or rows.shape != (1,):
        raise ValueError(f"gram.{name} has shape {list(gram.shape)}")
    return Sums(rows, mean * rows, gram * np.float32(rows[0]))


def _array(path: Path, tensor: Any) -> NDArray[Any]:
    with path.open("rb") as file:
        file.seek(tensor.offset)
        raw = file.read(tensor.nbytes)
    return np.frombuffer(raw, DTYPES[tensor.dtype]).reshape(tensor.shape)


def _write_safetensors(
    path: Path, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, str]
) -> None:
    header: dict[str, Any] = {"__metadata__": dict(about)}
    names, at = {np.dtype(np.float32): "F32", np.dtype(np.float64): "F64"}, 0
    for name, array in arrays.items():
        spans = {"shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        header[name] = {"dtype": names[array.dtype], **spans}
        at += array.nbytes
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).tobytes())
