"""Converts tensors between their formats and float32. Quantizers are passed in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.declarations import Quantizer
from apr_core.errors import FormatError, PluginNotFound, QuantizationError
from apr_core.format.dtypes import LEGACY, NATIVE
from apr_core.format.reader import TensorEntry
from apr_core.messages import published

QuantizerFor = Callable[[str], Any]
DTYPES = {
    "f32": "<f4", "f16": "<f2", "f64": "<f8", "i32": "<i4", "i64": "<i8", "i8": "i1", "u8": "u1",
}  # fmt: skip
FLOATS = ("f32", "f16", "bf16", "f64")


def to_float32(raw: NDArray[np.uint8], dtype: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """Return bytes of a native dtype as float32 of the given shape. f32 is a view, not a copy.

    f64, i32 and i64 round to nearest even; f64 beyond float32 becomes infinite.
    """
    if dtype == "bf16":
        wide = raw.view("<u2").astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    values = raw.view(DTYPES[dtype])
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32, copy=False).reshape(shape)


def from_float32(values: NDArray[np.float32], dtype: str) -> NDArray[np.uint8]:
    """Return float32 as the bytes of f32, f16, bf16 or f64, rounded to nearest even.

    NaN and Inf are kept. Raises QuantizationError where a finite value would become infinite,
    and for integer dtypes, which hold no float exactly.
    """
    if dtype not in FLOATS:
        raise QuantizationError(f"{dtype} cannot hold float values; expected {', '.join(FLOATS)}")
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    with np.errstate(over="ignore"):
        raw = _bf16(flat) if dtype == "bf16" else flat.astype(DTYPES[dtype]).view(np.uint8)
    if dtype in ("f16", "bf16"):
        _check_overflow(flat, raw, dtype)
    return raw


def _bf16(flat: NDArray[np.float32]) -> NDArray[np.uint8]:
    bits = flat.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    nan = np.isnan(flat)
    if nan.any():  # a NaN must not round to infinity
        rounded = np.where(nan, (bits >> 16) | np.uint32(0x40), rounded)
    return rounded.astype("<u2").view(np.uint8)


def _check_overflow(flat: NDArray[np.float32], raw: NDArray[np.uint8], dtype: str) -> None:
    exponent = 0x7C00 if dtype == "f16" else 0x7F80  # Inf without its sign bit
    lost = ((raw.view("<u2") & 0x7FFF) == exponent) & np.isfinite(flat)
    if lost.any():
        raise QuantizationError(
            f"value {float(flat[lost][0]):g} is beyond {dtype}",
            "Use f32 for this checkpoint." if dtype == "bf16" else "Use bf16 or f32 instead.",
        )


def legacy_to_float32(
    raw: NDArray[np.uint8], format: str, start: int, stop: int
) -> NDArray[np.float32]:
    """Decode elements [start, stop) of a tensor in a legacy format of APR v2.

    apr_q8: one f32 scale, then int8 values. apr_q4: per 32 values an f16 scale and 16 bytes, value
    2j in the low nibble of byte j, 2j + 1 in the high one; value = (nibble - 8) * scale.
    """
    if format == "apr_q8":
        scale = raw[:4].view("<f4")[0]
        return raw[4 + start : 4 + stop].view(np.int8).astype(np.float32) * np.float32(scale)
    first, last = start // 32, -(-stop // 32)
    blocks = raw[first * 18 : last * 18].reshape(-1, 18)
    scales = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    # Other readers take a NaN, infinite or subnormal scale as zero; agree with them.
    scales = np.where(np.isfinite(scales) & (np.abs(scales) >= 2.0**-14), scales, 0)
    nibbles = np.stack([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=-1).reshape(-1, 32)
    values: NDArray[np.float32] = ((nibbles.astype(np.float32) - 8) * scales).reshape(-1)
    return values[start - first * 32 : stop - first * 32]


def quantizer_for(entry: TensorEntry, find: QuantizerFor) -> Any:
    """Return the quantizer of a tensor's format; errors name the distribution the file names.

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
            _hint(entry.format, wrote, error),
        ) from error


def _hint(format: str, distribution: str, error: PluginNotFound) -> str:
    """Return why an installed distribution lacks the format, or how to get the distribution."""
    for line in error.hint.splitlines():
        if line.startswith(f"{distribution}:"):
            return line
    if published("quantizer").get(format) == distribution:
        return f"Install the package that provides it: pip install {distribution}"
    trust = "if you trust who publishes it"  # a file may claim anything, and plugins are code
    return f"The file names {distribution}; {trust}: pip install {distribution}"


def check_declared(entry: TensorEntry, declaration: Quantizer) -> None:
    """Raise FormatError if the file and the plugin disagree about the blocks of a format.

    Call this before a kernel reads packed bytes by the format's name: a file may claim any block
    size in its table, and a kernel would read past the tensor's end.
    """
    spec = entry.spec
    claimed = (spec.block, spec.bytes_per_block) if spec else None
    expected = (declaration.block, declaration.bytes_per_block)
    if claimed != expected:
        raise FormatError(
            f"tensor {entry.name!r}: the file says {entry.format!r} has (block, bytes) {claimed}, "
            f"the installed plugin says {expected}",
            "Another plugin or version wrote the file: see `apr.formats` in `apr inspect`.",
        )


def check_stack(name: str, shape: Sequence[int], format: str, block: int) -> None:
    """Raise FormatError if rows of a stack of matrices end inside a block: such are stored flat."""
    if len(shape) > 2 and shape[-1] % block:
        raise FormatError(
            f"tensor {name!r}: its rows of {shape[-1]} values end inside a block of {format}",
            f"Import it in a format whose blocks divide its rows; those of {format} are {block}.",
        )


def decode_rows(
    entry: TensorEntry, raw: NDArray[np.uint8], start: int, stop: int, find: QuantizerFor
) -> NDArray[np.float32]:
    """Decode rows [start, stop) along the first dimension to f32 [stop - start, *shape[1:]].

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
    part = raw[first * size : last * size].reshape(1, -1)
    flat = _decode(entry, quantizer, part, (last - first) * block)
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
    """Decode a tensor to float32 of its shape. Block formats run flat unless it has 2 dims."""
    rows = entry.shape[0] if entry.shape else 1
    return decode_rows(entry, raw, 0, rows, find).reshape(entry.shape)
