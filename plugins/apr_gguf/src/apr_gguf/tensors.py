"""Maps each tensor of an .apr file to its name and bytes in GGUF."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from apr_core.plugin import AprError, AprFile, TensorEntry, decode_tensor
from apr_gguf.architectures import GATE_UP, HALVES, Architecture, plain
from apr_gguf.changes import Change, Heads, changes, cuts, move_columns
from apr_gguf.checkpoint import FLOATS, IDENTITY, PACKED
from apr_gguf.rope import FACTORS, factors_of

TYPES = {ours: GGMLQuantizationType[theirs] for theirs, ours in (FLOATS | PACKED).items()}
F16, F32 = GGMLQuantizationType.F16, GGMLQuantizationType.F32


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor to write: shape [rows, cols] or [n], bytes made on demand."""

    name: str
    source: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    nbytes: int
    make: Callable[[], NDArray[Any]]
    note: str = ""  # what was changed beyond moving values


class TensorMap:
    """Makes targets of a file's tensors. `find` is quantizer name -> quantizer."""

    def __init__(
        self,
        file: AprFile,
        arch: Architecture,
        config: Mapping[str, Any],
        find: Callable[[str], Any],
    ) -> None:
        self.file, self.config, self.find = file, config, find
        self.next_layers = int("mtp.fc.weight" in file.tensors)
        self.names = arch.names(config["num_hidden_layers"], self.next_layers)
        self.changes = changes(arch, Heads.of(config))
        self.skipped: list[str] = []

    def targets(self) -> Iterator[Target]:
        """Yield a target for each tensor GGUF has a place for; others go into `skipped`."""
        factors = factors_of(self.config)
        if factors is not None:
            yield Target(FACTORS, "", factors.shape, F32, factors.nbytes, lambda: factors)
        for entry in self.file.tensors.values():
            name = self.names.get(plain(entry.name))
            if entry.name.endswith(GATE_UP):
                yield from self._halves(entry)
            elif name is None:
                self.skipped.append(entry.name)
            else:
                yield self._target(name, entry)

    def _target(self, name: str, entry: TensorEntry) -> Target:
        part = name.split(".", 2)[2] if name.startswith("blk.") else name
        change = self.changes.get(part, IDENTITY)
        if len(entry.shape) == 1 or entry.shape[0] == 1 or change.squeezed:
            return self._vector(name, entry, change)
        type_ = TYPES.get(entry.format)
        if type_ is None:
            raise AprError(
                f"tensor {entry.name!r} has format {entry.format!r}, which GGUF does not know",
                f"Import again with one of: {', '.join(TYPES)}.",
            )
        block, nbytes = GGML_QUANT_SIZES[type_]
        rows, cols = prod(entry.shape[:-1]), entry.shape[-1]
        if cols % block:
            return self._unpacked(name, entry, change, "its rows end inside a block")
        if cuts(change.columns, block):
            reason = f"value heads are reordered across blocks of {entry.format}"
            return self._unpacked(name, entry, change, reason)
        make = partial(self._moved, entry, change, block)
        return Target(name, entry.name, entry.shape, type_, rows * cols // block * nbytes, make)

    def _halves(self, entry: TensorEntry) -> Iterator[Target]:
        """Yield the first and the second half of each expert's rows."""
        experts, rows, cols = entry.shape
        whole = self._target("", entry)
        for half, part in enumerate(HALVES):

            def make(half: int = half) -> NDArray[np.uint8]:
                return np.ascontiguousarray(whole.make().reshape(experts, 2, -1)[:, half])

            name = self.names[plain(entry.name).removesuffix(GATE_UP) + f"mlp.experts.{part}"]
            shape = (experts, rows // 2, cols)
            yield replace(whole, name=name, shape=shape, nbytes=whole.nbytes // 2, make=make)

    def _moved(self, entry: TensorEntry, change: Change, block: int) -> NDArray[np.uint8]:
        raw = self.file.raw(entry.name).reshape(prod(entry.shape[:-1]), -1)
        if change.rows is not None:
            raw = raw[change.rows]
        return raw if change.columns is None else move_columns(raw, change.columns, block)

    def _unpacked(self, name: str, entry: TensorEntry, change: Change, why: str) -> Target:
        def make() -> NDArray[np.float16]:
            values = decode_tensor(entry, self.file.raw(entry.name), self.find)
            values = values if change.rows is None else values[change.rows]
            values = values if change.columns is None else values[:, change.columns]
            return np.ascontiguousarray(values.astype(np.float16))

        note = f"{entry.name}: stored as F16, because {why}"
        nbytes = 2 * prod(entry.shape)
        return Target(name, entry.name, entry.shape, F16, nbytes, make, note)

    def _vector(self, name: str, entry: TensorEntry, change: Change) -> Target:
        """Return the target of a vector or the convolution: always float32."""

        def make() -> NDArray[np.float32]:
            raw = self.file.raw(entry.name)
            if entry.format == "f64":
                return change.apply(raw.view("<f8").reshape(entry.shape))
            return change.apply(decode_tensor(entry, raw, self.find))

        shape = entry.shape[:1] + entry.shape[2:] if change.squeezed else entry.shape
        shape = shape[1:] if len(shape) > 1 and shape[0] == 1 else shape
        return Target(name, entry.name, shape, F32, 4 * prod(shape), make)
