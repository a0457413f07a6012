"""Tensors of a file as float32, whatever their format. Quantizers are handed in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.errors import FormatError, PluginNotFound
from apr_core.format.dtypes import NATIVE
from apr_core.format.floats import to_float32
from apr_core.format.reader import TensorEntry

QuantizerFor = Callable[[str], Any]


def quantizer_for(entry: TensorEntry, find: QuantizerFor) -> Any:
    """The quantizer of a tensor's format; the error names the distribution the file names."""
    if entry.spec is None:
        raise FormatError(
            f"tensor {entry.name!r} has format id {entry.dtype_id}, which the file does not explain"
        )
    try:
        return find(entry.format)
    except PluginNotFound as error:
        if not entry.spec.distribution:
            raise
        raise PluginNotFound(
            f"no installed plugin reads format {entry.format!r} of tensor {entry.name!r}",
            f"Install the one that wrote it: pip install {entry.spec.distribution}",
        ) from error


def decode_rows(
    entry: TensorEntry, raw: NDArray[np.uint8], start: int, stop: int, find: QuantizerFor
) -> NDArray[np.float32]:
    """Rows [start, stop) of a 2-D tensor, float32 [stop - start, cols]."""
    cols = entry.shape[1]
    row_bytes = entry.nbytes // max(1, entry.shape[0])
    part = raw[start * row_bytes : stop * row_bytes]
    if entry.format in NATIVE:
        return to_float32(part, entry.format, (stop - start, cols))
    decoded: NDArray[np.float32] = quantizer_for(entry, find).decode(
        part.reshape(stop - start, row_bytes), cols
    )
    return decoded


def decode_tensor(
    entry: TensorEntry, raw: NDArray[np.uint8], find: QuantizerFor
) -> NDArray[np.float32]:
    """A whole tensor, float32 of its shape. Block formats of other than 2 dims are flat."""
    if entry.format in NATIVE:
        return to_float32(raw, entry.format, entry.shape)
    if len(entry.shape) == 2:
        return decode_rows(entry, raw, 0, entry.shape[0], find)
    count = int(np.prod(entry.shape))
    flat: NDArray[np.float32] = quantizer_for(entry, find).decode(raw.reshape(1, -1), count)
    return flat.reshape(entry.shape)
