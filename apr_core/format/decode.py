"""Tensors of a file as float32, whatever their format. Quantizers are handed in."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.declarations import Quantizer
from apr_core.errors import FormatError, PluginNotFound
from apr_core.format.dtypes import LEGACY, NATIVE
from apr_core.format.floats import legacy_to_float32, to_float32
from apr_core.format.reader import TensorEntry
from apr_core.published import published

QuantizerFor = Callable[[str], Any]


def quantizer_for(entry: TensorEntry, find: QuantizerFor) -> Any:
    """The quantizer of a tensor's format; the error names the distribution the file names.

    `find` is format name -> quantizer, e.g. `partial(registry.make, "quantizer")`. Raises
    FormatError for an id the file does not explain, PluginNotFound without the plugin.
    """
    if entry.spec is None:
        raise FormatError(
            f"tensor {entry.name!r}: the file does not explain format id {entry.dtype_id}",
            "It was written by another program or a newer version.",
        )
    try:
        return find(entry.format)
    except PluginNotFound as error:
        if not entry.spec.distribution:
            raise
        wrote = entry.spec.distribution
        raise PluginNotFound(
            f"no installed plugin reads format {entry.format!r} of tensor {entry.name!r}",
            _in_the_way(wrote, error) or _whence(entry.format, wrote),
        ) from error


def _in_the_way(distribution: str, error: PluginNotFound) -> str:
    """Why an installed distribution does not provide what it should, as the registry says it."""
    lines = error.hint.splitlines()
    return next((line for line in lines if line.startswith(f"{distribution}:")), "")


def _whence(format: str, distribution: str) -> str:
    """How to get what decodes a format. A file may claim anything, and plugins are code."""
    if published("quantizer").get(format) == distribution:
        return f"Install the package that provides it: pip install {distribution}"
    trust = "if you trust who publishes it"
    return f"The file names {distribution}; {trust}: pip install {distribution}"


def check_declared(entry: TensorEntry, declaration: Quantizer) -> None:
    """Raise FormatError if the file and the plugin disagree about the blocks of a format.

    To be called before a kernel reads packed bytes by the format's name: a file may claim any
    block size in its table, and a kernel would read past the tensor's end.
    """
    spec = entry.spec
    found = (spec.block, spec.bytes_per_block) if spec else None
    expected = (declaration.block, declaration.bytes_per_block)
    if found != expected:
        raise FormatError(
            f"tensor {entry.name!r}: the file says {entry.format!r} has (block, bytes) {found}, "
            f"the installed plugin says {expected}",
            "Another plugin or version wrote the file: see `apr.formats` in `apr inspect`.",
        )


def decode_rows(
    entry: TensorEntry, raw: NDArray[np.uint8], start: int, stop: int, find: QuantizerFor
) -> NDArray[np.float32]:
    """Rows [start, stop) along the first dimension, float32 [stop - start, *shape[1:]].

    `raw` are the bytes of the whole tensor. A scalar counts as one row.
    """
    tail = entry.shape[1:]
    shape = (stop - start, *tail)
    cols = prod(tail)
    if entry.format in NATIVE:
        row_bytes = cols * NATIVE[entry.format].bytes_per_block
        return to_float32(raw[start * row_bytes : stop * row_bytes], entry.format, shape)
    if entry.format in LEGACY:
        return legacy_to_float32(raw, entry.format, start * cols, stop * cols).reshape(shape)
    quantizer = quantizer_for(entry, find)
    assert entry.spec is not None
    if len(entry.shape) == 2:
        row_bytes = entry.spec.row_bytes(cols)
        part = raw[start * row_bytes : stop * row_bytes].reshape(stop - start, row_bytes)
        return _decode(entry, quantizer, part, cols)
    # Flat: rows start inside blocks, so decode the blocks that hold them.
    block, size = entry.spec.block, entry.spec.bytes_per_block
    first, last = start * cols // block, -(-stop * cols // block)
    flat = _decode(
        entry, quantizer, raw[first * size : last * size].reshape(1, -1), (last - first) * block
    )
    skip = start * cols - first * block
    return flat[0, skip : skip + (stop - start) * cols].reshape(shape)


def _decode(
    entry: TensorEntry, quantizer: Any, raw: NDArray[np.uint8], cols: int
) -> NDArray[np.float32]:
    rows = raw.shape[0]
    if not rows * cols:
        return np.empty((rows, cols), np.float32)
    try:
        decoded: NDArray[np.float32] = np.asarray(quantizer.decode(raw, cols), np.float32)
    except (ValueError, IndexError, TypeError) as error:  # blocks of a size it does not know
        raise FormatError(
            f"tensor {entry.name!r}: the plugin for {entry.format!r} cannot decode it: {error}",
            "Another plugin or version wrote the file: see `apr.formats` in `apr inspect`.",
        ) from error
    if decoded.shape != (rows, cols):
        raise FormatError(
            f"tensor {entry.name!r}: the plugin for {entry.format!r} made {decoded.shape}, "
            f"expected {(rows, cols)}"
        )
    return decoded


def decode_tensor(
    entry: TensorEntry, raw: NDArray[np.uint8], find: QuantizerFor
) -> NDArray[np.float32]:
    """A whole tensor, float32 of its shape. Block formats of other than 2 dims are flat."""
    rows = entry.shape[0] if entry.shape else 1
    return decode_rows(entry, raw, 0, rows, find).reshape(entry.shape)
