"""What the checks of a quantizer share: a codec whose every answer is checked, and its bounds."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_devkit.kits import samples
from apr_devkit.kits.plugin import PluginConformance
from apr_devkit.kits.samples import BELL, KINDS, relative_rmse

Rows = NDArray[np.float32]
Raw = NDArray[np.uint8]

ROWS = 9  # of most inputs: a few chunks, and odd


class CodecKit(PluginConformance):
    """One quantizer's codec. Kits derive from it; it has no checks of its own."""

    kind = "quantizer"
    quantizer: str = ""
    max_error: float | Mapping[str, float] | None = None

    @property
    def codec(self) -> Any:
        """The checked codec."""
        return self.registry.make("quantizer", self.name)

    @property
    def block(self) -> int:
        """Declared values of a block."""
        return int(self.declaration.block)

    def encoded(self, x: Rows, where: str) -> Raw:
        """`encode`, and what it returns has the right type and size: u8 [R, row bytes]."""
        d = self.declaration
        raw = self.codec.encode(x)
        expected = (len(x), ceil(x.shape[1] / d.block) * d.bytes_per_block)
        assert isinstance(raw, np.ndarray) and raw.dtype == np.uint8, (
            f"encode of {where} returned {_what(raw)}, expected a uint8 array"
        )
        assert raw.shape == expected, (
            f"encode of {where}, {list(x.shape)}, made {list(raw.shape)} bytes, declared are "
            f"{d.bytes_per_block} for {d.block} values: {list(expected)}"
        )
        return raw

    def decoded(self, raw: Raw, cols: int, where: str) -> Rows:
        """`decode`, and what it returns has the right type and size and is finite: f32 [R, C]."""
        values = self.codec.decode(raw, cols)
        assert isinstance(values, np.ndarray) and values.dtype == np.float32, (
            f"decode of {where} returned {_what(values)}, expected a float32 array"
        )
        expected = (len(raw), cols)
        assert values.shape == expected, (
            f"decode of {where} made {list(values.shape)}, expected {list(expected)}"
        )
        bad = int((~np.isfinite(values)).sum())
        assert not bad, f"decode of {where} made {bad} values that are NaN or infinite"
        return values

    def round_trip(self, x: Rows, where: str) -> Rows:
        """decode(encode(x))."""
        return self.decoded(self.encoded(x, where), x.shape[1], where)

    def bell(self, cols: int, scale: float = 1.0, rows: int = ROWS) -> Rows:
        """Bell-shaped values of standard deviation `scale`: float32 [rows, cols]."""
        x = samples.sample(BELL, rows, cols, seed=cols).astype(np.float64)
        return (x / 0.02 * scale).astype(np.float32)

    def stated(self) -> Mapping[str, float]:
        """The bounds this class or the codec states, by kind of sample; none where it does not."""
        found = self.max_error
        found = getattr(self.codec, "max_error", None) if found is None else found
        if found is None:
            return {}
        bounds = dict(found) if isinstance(found, Mapping) else dict.fromkeys(KINDS, float(found))
        assert set(bounds) <= set(KINDS), f"max_error is about {sorted(bounds)}, known are {KINDS}"
        return bounds

    def bounds(self) -> dict[str, float]:
        """The largest error allowed, by kind of sample."""
        nbytes = self.declaration.bytes_per_block
        derived: dict[str, float] = self.kept(
            "bounds", lambda: samples.default_bounds(self.block, nbytes)
        )
        return {**derived, **self.stated()}

    def worst(self) -> float:
        """The largest of the bounds: for inputs that are like none of the samples."""
        return max(self.bounds().values())

    def some_cols(self) -> list[int]:
        """Row lengths that fill blocks and that do not."""
        b = self.block
        return sorted({1, b - 1, b, b + 1, 2 * b, 3 * b - 1} - {0})

    def within(self, bound: float, actual: Rows, expected: Rows, where: str) -> None:
        error = relative_rmse(actual, expected)
        assert error <= bound, f"{where}: relative RMSE {error:.4g}, allowed is {bound:.4g}"

    def same(self, found: NDArray[Any], expected: NDArray[Any], what: str) -> None:
        assert found.shape == expected.shape, (
            f"{what} gives {list(found.shape)}, expected {list(expected.shape)}"
        )
        different = int((found != expected).sum())
        assert not different, f"{what} changes {different} of {expected.size} numbers"


def _what(found: Any) -> str:
    if isinstance(found, np.ndarray):
        return f"a {found.dtype} array"
    return f"a {type(found).__name__}"
