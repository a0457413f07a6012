"""Quantization error of a file's tensors against the checkpoint they came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log10, prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.errors import AprError, FormatError, UsageError
from apr_core.format import NATIVE, AprFile, TensorEntry
from apr_core.importing.checkpoint import Checkpoint
from apr_core.importing.source import find_source
from apr_core.registry import Registry
from apr_core.text.tokenizer_files import read_json
from apr_core.validation.report import TensorError
from apr_core.validation.values import sum_squares

NATIVE_LIMITS = {"f32": 0.0, "f64": 0.0, "f16": 2.0**-8, "bf16": 2.0**-8}
BLOCK_FACTOR, BLOCK_LIMIT = 6.0, 0.5


def limit_for(entry: TensorEntry) -> float:
    """Return the largest relative RMSE that passes for a tensor's format.

    Block formats with b bits per value: 6 * 2**-b, at most 0.5. A good encoder stays below a third
    of that on weights; one that loses a scale or a sign is far above. Half precision: 2**-8 (f16
    loses more only where values are tiny). Float32: 0.
    """
    if entry.format in NATIVE:
        return NATIVE_LIMITS.get(entry.format, 0.0)
    assert entry.spec is not None
    bits = 8 * entry.spec.bytes_per_block / entry.spec.block
    return float(min(BLOCK_LIMIT, BLOCK_FACTOR * 2.0**-bits))


def open_source(
    file: AprFile, source: str | None, registry: Registry
) -> tuple[Checkpoint | None, str]:
    """Open the checkpoint a file came from, or return None and the reason.

    `source` is what the user typed; without it, the directory noted at import is used if it still
    holds the same config.json. Raises UsageError if `source` holds another model, and whatever
    reading it raises.
    """
    config = file.metadata.get("hf_config")
    if source is not None:
        given = find_source(source, registry)
        if read_json(given.directory / "config.json") != config:
            raise UsageError(
                f"`source` {source}: its config.json is not the one the file was made from",
                "Give the checkpoint this file was imported from.",
            )
        return given.open(), ""
    return _remembered(file.metadata.get("apr.source_path"), config)


def _remembered(path: Any, config: Any) -> tuple[Checkpoint | None, str]:
    say = "give it with `source`"
    if not isinstance(path, str):
        return None, f"the file does not say where its source is; {say}"
    try:
        if not Path(path).is_dir():
            return None, f"the source {path} is not there any more; {say}"
        if read_json(Path(path) / "config.json") != config:
            return None, f"{path} holds another model now; {say}"
        return Checkpoint.open(Path(path)), ""
    except (AprError, OSError, ValueError) as error:
        return None, f"the source cannot be read: {error}; {say}"


@dataclass(slots=True)
class Comparison:
    """Quantization errors, collected tensor by tensor."""

    checkpoint: Checkpoint
    errors: list[TensorError] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # not in the source
    misshapen: list[str] = field(default_factory=list)
    _noise: float = 0.0  # sum over all values of the squared relative error of their tensor
    _values: int = 0

    def has(self, entry: TensorEntry) -> bool:
        """Return True if the source has this tensor, of numbers and this shape; note it if not."""
        tensor = self.checkpoint.tensors.get(entry.name)
        try:
            stored = tensor and self.checkpoint.format_of(entry.name)
        except FormatError:  # integers
            stored = None
        if not tensor or not stored:
            self.missing.append(entry.name)
        elif tuple(tensor.shape) != entry.shape:
            self.misshapen.append(
                f"{entry.name} has shape {list(entry.shape)}, its source {list(tensor.shape)}"
            )
        else:
            return True
        return False

    def squares(
        self, entry: TensorEntry, start: int, decoded: NDArray[np.float32]
    ) -> tuple[float, float]:
        """Return sums of squares for rows from `start` on: of the difference, and of the source."""
        source = self.checkpoint.read_rows(entry.name, start, start + decoded.shape[0])
        return sum_squares(decoded - source.reshape(decoded.shape)), sum_squares(source)

    @property
    def overall(self) -> float | None:
        """Root mean square of the tensors' relative errors, weighted by number of values.

        One ratio over the whole file would show only the few tensors with the largest values.
        None if nothing was compared.
        """
        if not self.errors:
            return None
        return sqrt(self._noise / self._values) if self._values else 0.0

    def add(self, entry: TensorEntry, error: float, signal: float) -> None:
        """Add a tensor: |difference| / |source|, or 1 if the source is zeros and it is not."""
        relative = 1.0  # with NaN in the file it is lost, and values-finite says so
        if np.isfinite(error):
            relative = sqrt(error / signal) if signal else float(error > 0)
        count = prod(entry.shape)
        self._noise += relative**2 * count
        self._values += count
        snr = -20 * log10(relative) if relative else None
        self.errors.append(TensorError(entry.name, entry.format, relative, snr, limit_for(entry)))
