"""Decodes the tensors of a file piece by piece, and says why where it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import prod

import numpy as np
from numpy.typing import NDArray

from apr_core.errors import AprError
from apr_core.format import (
    NATIVE,
    AprFile,
    TensorEntry,
    check_declared,
    decode_rows,
    quantizer_for,
)
from apr_core.format.dtypes import LEGACY
from apr_core.registry import Registry

PIECE = 1 << 20  # values decoded at once: 4 MiB of float32 and a few temporaries of that size


class TensorReader:
    """The tensors of a file as float32 in pieces of bounded size."""

    def __init__(self, file: AprFile, registry: Registry) -> None:
        self.file, self.registry = file, registry
        self._find = partial(registry.make, "quantizer")
        self._reasons: dict[str, str | None] = {}

    def why_not(self, entry: TensorEntry) -> str | None:
        """Why a tensor cannot be decoded, or None if it can."""
        if entry.format in NATIVE or entry.format in LEGACY:
            return None
        if entry.format not in self._reasons:
            self._reasons[entry.format] = self._reason(entry)
        return self._reasons[entry.format]

    def _reason(self, entry: TensorEntry) -> str | None:
        try:
            quantizer_for(entry, self._find)
            check_declared(entry, self.registry.get("quantizer", entry.format).declaration)
        except AprError as error:
            hint = error.hint.splitlines()[0] if error.hint else ""
            return f"{error.message}. {hint}".strip().removesuffix(".")
        return None

    def rows(self, entry: TensorEntry) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(first row, float32 [rows, cols]) pieces; dimensions after the first are cols.

        Raises what decoding raises; ask `why_not` first.
        """
        rows, cols = (entry.shape or (1,))[0], prod(entry.shape[1:])
        raw = self.file.raw(entry.name)
        step = max(1, PIECE // max(cols, 1))
        for start in range(0, rows if cols else 0, step):
            stop = min(start + step, rows)
            yield start, decode_rows(entry, raw, start, stop, self._find).reshape(-1, cols)
        self.file.drop_pages(entry.name)

    def pieces(self, entry: TensorEntry) -> Iterator[NDArray[np.float32]]:
        """As `rows`, without row numbers, and of bounded size even where one row is huge."""
        if prod(entry.shape[1:]) > PIECE and entry.spec is not None:
            block, count = entry.spec.block, prod(entry.shape)
            if entry.format in NATIVE:
                entry = replace(entry, shape=(count,))
            elif count % block == 0 and (len(entry.shape) != 2 or entry.shape[1] % block == 0):
                entry = replace(entry, shape=(count // block, block))
        for _, piece in self.rows(entry):
            yield piece
