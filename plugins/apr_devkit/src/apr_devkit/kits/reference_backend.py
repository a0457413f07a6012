"""A backend with an empty kernel table: NumPy arrays and the references, nothing else.

Kits run mixers and families on it, so that what fails is the plugin and not somebody's kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.declarations import Backend
from apr_core.errors import BackendError
from apr_core.ops.binding import BackendPlugin, HostMatrix, StepFunction
from apr_core.registry import Registry

NAME = "reference"
RECORDING = "recording"
DECLARATIONS = [
    Backend(NAME, f"{__name__}:ReferenceBackend", summary="NumPy and the references, for kits"),
    Backend(RECORDING, f"{__name__}:RecordingBackend", summary="the same, as if it could record"),
]


class ReferenceBackend(BackendPlugin):
    """Copies what it is given, so that nobody's arrays can be changed through it."""

    name = NAME
    xp: Any = np
    kernels: Mapping[tuple[str, str], str] = {}

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads

    def describe(self) -> str:
        """Device line of the report."""
        return "reference: NumPy, no kernels"

    def zeros(self, shape: tuple[int, ...], dtype: str = "f32") -> NDArray[Any]:
        """Zeros in f32 or f16."""
        return np.zeros(shape, np.float16 if dtype == "f16" else np.float32)

    def upload(self, array: NDArray[Any]) -> NDArray[Any]:
        """A copy."""
        return np.array(array)

    def upload_matrix(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy."""
        return np.array(array)

    def upload_packed(self, matrix: HostMatrix) -> NDArray[np.uint8]:
        """Never called for a backend without kernels. Raises BackendError."""
        raise BackendError(f"{matrix.name}: the reference backend reads no packed weights")

    def download(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array itself."""
        return array


class RecordingBackend(ReferenceBackend):
    """Says that it records steps, so that a load reports what keeps it from that."""

    name = RECORDING

    def capture(self, step: StepFunction, note: Callable[[str], None]) -> StepFunction:
        """The step itself."""
        return step


def with_reference(registry: Registry) -> Registry:
    """A registry that has these backends, too, under the names `reference` and `recording`."""
    own = Registry.from_declarations({"apr-core": DECLARATIONS})
    return Registry([*registry.plugins, *own.plugins])
