"""The CPU backend: NumPy arrays, with packed weights used in place in the mapped file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_backend_cpu.constants import LANES, SUPERBLOCK
from apr_backend_cpu.native import cache_folders, chosen
from apr_backend_cpu.ops.formats import FLOATS, PACKED_BLOCKS
from apr_backend_cpu.run.recording import Captured, StepFunction, materialize
from apr_backend_cpu.run.resources import Resources
from apr_backend_cpu.shipped import library_path
from apr_core.plugin import BackendPlugin, HostMatrix, plain

HERE = "apr_backend_cpu.ops"

KERNELS: dict[tuple[str, str], str] = {
    **{("linear", name): f"{HERE}.linear:linear" for name in (*PACKED_BLOCKS, *FLOATS)},
    ("linear", "layout"): f"{HERE}.linear:linear",
    ("embed", "*"): f"{HERE}.linear:embed",
    ("linears", "*"): f"{HERE}.linear:linears",
    **{
        ("expert_linear", name): f"{HERE}.experts:expert_linear"
        for name in (*PACKED_BLOCKS, *FLOATS, "layout")
    },
    ("route", "*"): f"{HERE}.experts:route",
    ("mix_experts", "*"): f"{HERE}.experts:mix_experts",
    ("mlp", "*"): f"{HERE}.linear:mlp",
    ("add", "*"): f"{HERE}.elementwise:add",
    ("rms_norm", "*"): f"{HERE}.elementwise:rms_norm",
    ("add_rms_norm", "*"): f"{HERE}.elementwise:add_rms_norm",
    ("scale", "*"): f"{HERE}.elementwise:scale",
    ("softcap", "*"): f"{HERE}.elementwise:softcap",
    ("swiglu", "*"): f"{HERE}.elementwise:swiglu",
    ("geglu", "*"): f"{HERE}.elementwise:geglu",
    ("sigmoid_gate", "*"): f"{HERE}.elementwise:sigmoid_gate",
    ("rope", "*"): f"{HERE}.elementwise:rope",
    ("gated_rms_norm", "*"): f"{HERE}.elementwise:gated_rms_norm",
    ("delta_gates", "*"): f"{HERE}.elementwise:delta_gates",
    ("attention", "*"): f"{HERE}.attention:attention",
    ("causal_conv1d", "*"): f"{HERE}.delta:causal_conv1d",
    ("gated_delta", "*"): f"{HERE}.delta:gated_delta",
}


def _padded(array: NDArray[Any], width: int) -> NDArray[Any]:
    """Return rows padded with zeros to a multiple of `width`; the array itself if they fit."""
    missing = -array.shape[1] % width
    return np.pad(array, ((0, 0), (0, missing))) if missing else array


class Cpu(BackendPlugin):
    """The CPU. `threads` None means one per physical core."""

    name = "cpu"
    xp = np
    kernels = KERNELS
    kv_types = ("f32", "f16", "q8")
    bitwise_rows = True  # a row's result has the same bits alone and in any batch

    def __init__(self, threads: int | None = None) -> None:
        self._resources = Resources(threads)

    @property
    def threads(self) -> int:
        """How many threads the kernels run on."""
        return self._resources.threads

    def bind(self, kernel: Callable[..., Any]) -> Callable[..., Any]:
        """Return the kernel bound to this object's threads."""
        return self._resources.bound(kernel)

    def describe(self) -> str:
        """Return the device line of the report."""
        level = chosen()
        built = "" if library_path(level).exists() else ", compiled at first use"
        return f"cpu: {self.threads} threads, kernels for {level.name}{built}"

    def caches(self) -> list[tuple[str, str]]:
        """List the caches on disk, for `apr doctor`: (label, folder)."""
        return cache_folders()

    def zeros(self, shape: tuple[int, ...], dtype: str = "f32") -> NDArray[Any]:
        """Return zeros in f32 or f16; for q8, bytes of codes and scales (`q8_rows`)."""
        if dtype == "q8":
            return np.zeros((*shape[:-1], shape[-1] + shape[-1] // 16), np.uint8)
        return np.zeros(shape, np.float16 if dtype == "f16" else np.float32)

    def upload(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the array itself, made contiguous."""
        return np.ascontiguousarray(array)

    def upload_matrix(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a dense matrix with rows padded to whole vectors."""
        return np.ascontiguousarray(_padded(array, LANES))

    def upload_packed(self, matrix: HostMatrix) -> NDArray[np.uint8]:
        """Return the mapped bytes; copy only if a declared layout has truncated rows."""
        if matrix.format in FLOATS:
            return _padded(matrix.raw, 2 * LANES)
        if matrix.format in PACKED_BLOCKS or matrix.layout is None:  # `embed` decodes what it reads
            return np.ascontiguousarray(matrix.raw)
        spec = matrix.layout
        blocks = -(-(-(-matrix.shape[-1] // SUPERBLOCK) * SUPERBLOCK) // spec.block)
        missing = blocks * spec.nbytes - matrix.raw.shape[1]
        return np.pad(matrix.raw, ((0, 0), (0, missing))) if missing > 0 else matrix.raw

    def capture(self, function: StepFunction, note: Callable[[str], None]) -> StepFunction:
        """Return the step function, recorded at its first call and then run without Python."""
        return Captured(function, note, self._resources)

    def download(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the array itself."""
        materialize()
        values: NDArray[Any] = plain(array)
        return values
