"""torch on the CPU as a backend with an empty kernel table: every op runs its reference body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from apr_backend_torch.namespace import Namespace
from apr_core.plugin import BackendError, BackendPlugin, HostMatrix

DTYPES = {"f32": torch.float32, "f16": torch.float16}


class Torch(BackendPlugin):
    """torch on the CPU. `threads` None leaves torch its own choice."""

    name = "torch"
    xp = Namespace()
    kernels: Mapping[tuple[str, str], str] = {}  # add one for each op that should be fast

    def __init__(self, threads: int | None = None) -> None:
        if threads:
            torch.set_num_threads(threads)

    def describe(self) -> str:
        """Return the device line of the report."""
        return f"torch {torch.__version__}: {torch.get_num_threads()} threads, no kernels"

    def zeros(self, shape: tuple[int, ...], dtype: str = "f32") -> torch.Tensor:
        """Return zeros in f32 or f16."""
        return torch.zeros(shape, dtype=DTYPES[dtype])

    def upload(self, array: NDArray[Any]) -> torch.Tensor:
        """Return a copy: files are mapped read-only, and torch knows no negative strides."""
        return torch.from_numpy(np.array(array, order="C"))

    def upload_matrix(self, array: NDArray[np.float32]) -> torch.Tensor:
        """Return a copy, as for any other array."""
        return self.upload(array)

    def upload_packed(self, matrix: HostMatrix) -> torch.Tensor:
        """Refuse: without a kernel that reads its format, a weight is decoded first."""
        raise BackendError(f"{matrix.name}: this backend reads no packed weights")

    def download(self, array: torch.Tensor) -> NDArray[Any]:
        """Return the same memory as a NumPy array."""
        return array.numpy()
