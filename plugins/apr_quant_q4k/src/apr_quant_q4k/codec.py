"""What the four codecs share: checks, padding of rows to whole blocks, the loops over rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from apr_core.errors import FormatError, QuantizationError


def check_values(rows: NDArray[np.float32], largest: float, name: str) -> None:
    """Raise QuantizationError on NaN, Inf, or a value whose scale float16 cannot hold."""
    if not rows.size:
        return
    top = float(max(rows.max(), -rows.min()))  # NaN if there is one
    if np.isfinite(top) and top <= largest:
        return
    bad = ~np.isfinite(rows)
    if bad.any():
        first = np.unravel_index(int(bad.argmax()), rows.shape)
        raise QuantizationError(
            f"{int(bad.sum())} values are NaN or infinite, the first at row {first[0]}, "
            f"column {first[1]}",
            "The checkpoint is damaged, or was saved from a run that diverged.",
        )
    raise QuantizationError(
        f"value {top:g} is too large for {name}, which holds up to {largest:g}",
        "Use bf16 or f32 for this checkpoint.",
    )


class BlockCodec:
    """A quantizer over blocks; subclasses name the compiled loops."""

    name: ClassVar[str]
    block: ClassVar[int]
    nbytes: ClassVar[int]
    largest: ClassVar[float]
    encode_rows: ClassVar[Callable[..., None]]
    decode_rows: ClassVar[Callable[..., None]]

    def encode(self, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
        """f32 [R, C] -> u8 [R, ceil(C / block) * nbytes]. Raises QuantizationError."""
        rows = np.ascontiguousarray(rows, np.float32)
        check_values(rows, self.largest, self.name)
        count, cols = rows.shape
        blocks = -(-cols // self.block)
        if cols % self.block:
            rows = np.pad(rows, ((0, 0), (0, blocks * self.block - cols)))
        out = np.zeros((count, blocks, self.nbytes), np.uint8)
        type(self).encode_rows(rows.reshape(count, blocks, self.block), out)
        return out.reshape(count, blocks * self.nbytes)

    def decode(self, raw: NDArray[np.uint8], cols: int) -> NDArray[np.float32]:
        """u8 [R, row bytes] -> f32 [R, cols]. Raises FormatError if the bytes do not fit."""
        blocks = -(-cols // self.block)
        if raw.ndim != 2 or raw.shape[1] != blocks * self.nbytes:
            raise FormatError(
                f"{self.name}: rows of {cols} values take {blocks * self.nbytes} bytes, found an "
                f"array of shape {list(raw.shape)}"
            )
        count = raw.shape[0]
        packed = np.ascontiguousarray(raw).reshape(count, blocks, self.nbytes)
        out: NDArray[Any] = np.empty((count, blocks, self.block), np.float32)
        type(self).decode_rows(packed, out)
        return out.reshape(count, blocks * self.block)[:, :cols]
