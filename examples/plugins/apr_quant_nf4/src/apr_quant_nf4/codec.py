"""Encodes nf4; decoding is defined by the layout alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apr_core.plugin import QuantizationError, QuantizerPlugin, TensorClass, layouts
from apr_quant_nf4.hooks import BLOCK, GROUP, LAYOUT, LEVELS, NBYTES

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
LEVEL = np.array(LEVELS, np.float32)
BETWEEN = (LEVEL[1:] + LEVEL[:-1]) / 2
# scales to try, of a group's largest value; of either sign, as more levels are above zero
TRIED = (1.05, 0.95, 0.85, -1.05, -0.95, -0.85)
LARGEST = 1e38  # a scale may be a little larger than the values


class NF4(QuantizerPlugin):
    """The codec of nf4: 64 values share a signed byte, a multiple of the scale of 256 values."""

    max_error = 0.135  # relative RMSE, of values with outliers; 0.085 of a bell curve

    def encode(self, rows: Floats) -> Bytes:
        """Encode f32 [R, C] to u8 [R, ceil(C / 256) * 134]. Raises QuantizationError."""
        if not (np.abs(rows) < LARGEST).all():  # also where a value is NaN
            raise QuantizationError(
                f"nf4 holds finite values below {LARGEST:g}, found NaN or larger ones",
                "The checkpoint is damaged, or was saved from a run that diverged.",
            )
        padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % BLOCK)))
        groups = padded.reshape(-1, BLOCK // GROUP, GROUP)  # [N, 4, 64]
        unit, multiples = _scales(groups)
        scale = multiples * unit  # as it decodes
        codes = _nearest(groups, scale)
        out = np.empty((len(groups), NBYTES), np.uint8)
        out[:, :4] = multiples.astype(np.int8).view(np.uint8)
        out[:, 4:6] = (unit.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
        pairs = codes.reshape(len(groups), -1, 2)
        out[:, 6:] = pairs[..., 0] | pairs[..., 1] << 4
        return out.reshape(len(rows), -1)

    def decode(self, raw: Bytes, cols: int) -> Floats:
        """Decode u8 [R, row bytes] to f32 [R, cols]."""
        return layouts.decode(LAYOUT, BLOCK, NBYTES, raw, cols)


def _scales(groups: Floats) -> tuple[Floats, Floats]:
    """Return a bfloat16 per block [N, 1], and its multiples [N, 4] that fit groups best."""
    top = np.abs(groups).max(-1)
    x = groups / np.where(top > 0, top, 1)[..., None]
    best, gained = np.ones_like(top), np.zeros_like(top)
    for tried in TRIED:
        levels = LEVEL[_nearest(x, np.full_like(top, tried))]
        both, size = (np.einsum("nge,nge->ng", levels, y) for y in (x, levels))
        fitted = both / np.where(size > 0, size, 1)  # least squares for these levels
        better = both * fitted > gained
        best[better], gained[better] = fitted[better], (both * fitted)[better]
    scale = best * top
    exact = np.abs(scale).max(-1, keepdims=True) / 127
    unit = (exact.view(np.uint32) + 0xFFFF & 0xFFFF0000).view(np.float32)  # rounded up to bfloat16
    return unit, np.rint(scale / np.where(unit > 0, unit, 1))


def _nearest(groups: Floats, scale: Floats) -> Bytes:
    """Return the code of the level nearest to each value over its group's scale."""
    x = groups / np.where(scale != 0, scale, 1)[..., None]
    codes = np.zeros(x.shape, np.uint8)
    for bound in BETWEEN:  # much faster than np.searchsorted
        codes += x > bound
    return codes


class EveryMatrix:
    """The recipe that makes every matrix nf4."""

    def format_for(self, tensor: TensorClass) -> str:
        """Return nf4, whatever the tensor's class."""
        return "nf4"
