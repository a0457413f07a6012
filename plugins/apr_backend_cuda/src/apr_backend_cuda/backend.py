"""The backend for an NVIDIA GPU: torch tensors, weights in planes, Triton kernels."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from apr_backend_cuda.devices import enter, visible_device
from apr_backend_cuda.launching.tuning import tuning_folder
from apr_backend_cuda.namespace import Namespace
from apr_backend_cuda.run.capture import Captured, StepFunction
from apr_backend_cuda.run.sampling import sample
from apr_backend_cuda.states.device import DeviceStates
from apr_backend_cuda.states.pages import TYPES
from apr_backend_cuda.weights import matrices
from apr_backend_cuda.weights.planes import FLOATS, FORMATS
from apr_backend_cuda.weights.upload import PIECE, Uploader, uploader
from apr_core.plugin import BackendPlugin, BlockLayout, HostMatrix, KVType, SamplingMetadata

HERE = "apr_backend_cuda"

KERNELS: dict[tuple[str, str], str] = {
    **{
        (op, name): f"{HERE}.kernels.linear:{op}"
        for op in ("linear", "embed")
        for name in (*FORMATS, *FLOATS, "layout")
    },
    ("linears", "*"): f"{HERE}.kernels.linear:linears",
    **{
        ("expert_linear", name): f"{HERE}.kernels.experts:expert_linear"
        for name in (*FORMATS, *FLOATS, "layout")
    },
    ("route", "*"): f"{HERE}.kernels.experts:route",
    ("mix_experts", "*"): f"{HERE}.kernels.experts:mix_experts",
    ("attention", "*"): f"{HERE}.kernels.attention:attention",
    ("causal_conv1d", "*"): f"{HERE}.kernels.convolution:causal_conv1d",
    ("delta_gates", "*"): f"{HERE}.kernels.delta:delta_gates",
    ("gated_delta", "*"): f"{HERE}.kernels.delta:gated_delta",
    **{
        (op, "*"): f"{HERE}.kernels.rows:{op}"
        for op in (
            "add",
            "rms_norm",
            "add_rms_norm",
            "gated_rms_norm",
            "sigmoid",
            "silu",
            "softplus",
            "scale",
            "softcap",
            "swiglu",
            "geglu",
            "sigmoid_gate",
            "rope",
        )
    },
}


class Cuda(BackendPlugin):
    """A GPU, by its number; by default the first usable one. `threads` is ignored.

    Raises BackendUnavailable if there is no such GPU, or torch cannot use it.
    """

    name = "cuda"
    kernels = KERNELS
    kv_types = tuple(TYPES)
    captures_arithmetic = True  # a graph records whatever torch launches

    def __init__(self, threads: int | None = None, device: str | None = None) -> None:
        self.device = visible_device(device)
        enter(self.device)
        self.xp = Namespace(self.device)
        self._uploader: Uploader | None = None  # set while a model is being loaded

    def describe(self) -> str:
        """Return the device line of the report."""
        if self.device.type == "cpu":
            return "cuda: interpreted on the processor, for tests"
        gpu = torch.cuda.get_device_properties(self.device)
        return f"{self.device}: {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"

    def zeros(self, shape: tuple[int, ...], dtype: str = "f32") -> torch.Tensor:
        """Return zeros in f32 or f16."""
        kind = torch.float16 if dtype == "f16" else torch.float32
        return torch.zeros(shape, dtype=kind, device=self.device)

    def states(self, kv_type: KVType, max_len: int | None = None) -> DeviceStates:
        """Return makers of states that kernels find by slot. Raises BackendError on other types."""
        return DeviceStates(self.zeros, kv_type, self.device, max_len)

    def capacity(self) -> int | None:
        """Return the bytes free on the device: the driver's, and those torch holds unused."""
        if self.device.type == "cpu":
            return None
        gc.collect()  # deleted models: they and their recorded steps refer to each other
        free, _ = torch.cuda.mem_get_info(self.device)
        held = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(free + held)

    def matrix_bytes(
        self, format: str, shape: tuple[int, int], layout: BlockLayout | None = None
    ) -> int:
        """Return the device bytes of a matrix of that format, as its planes take them."""
        rows, cols = shape
        return matrices.form_of(format, cols, layout).nbytes(rows)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Share buffers among uploads within; on exit everything is on the device."""
        with uploader(self.device) as self._uploader:
            try:
                yield
            finally:
                self._uploader = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # frees what repacking took, for states and `capacity`

    @contextmanager
    def _sending(self) -> Iterator[Uploader]:
        """Yield the uploader of the model being loaded, or one for this array alone."""
        if self._uploader is not None:
            yield self._uploader
            return
        with uploader(self.device) as alone:
            yield alone

    def upload(self, array: NDArray[Any]) -> torch.Tensor:
        """Return a copy on the device."""
        enter(self.device)
        if array.nbytes < PIECE:
            return torch.from_numpy(np.array(array, order="C")).to(self.device)
        with self._sending() as sent_by:
            return matrices.uploaded_array(array, sent_by)

    def upload_matrix(self, array: NDArray[np.float32]) -> torch.Tensor:
        """Return a copy of a dense matrix on the device."""
        return self.upload(array)

    def upload_packed(self, matrix: HostMatrix) -> matrices.Matrix:
        """Return the matrix in planes, repacked on the device."""
        enter(self.device)
        with self._sending() as sent_by:
            return matrices.uploaded(matrix, self.device, sent_by)

    def capture(self, function: StepFunction, note: Callable[[str], None]) -> StepFunction:
        """Return the step function, run as CUDA graphs when every sequence gets one token."""
        return Captured(function)

    def sample(
        self, logits: torch.Tensor, sampling: Sequence[SamplingMetadata | None]
    ) -> list[int | None]:
        """Return the tokens drawn from logits [rows, vocab]; only these leave the device."""
        enter(self.device)
        return sample(logits, sampling)

    def caches(self) -> list[tuple[str, str]]:
        """List the caches on disk: the tile sizes found fastest for each kernel."""
        folder = tuning_folder()
        return [("tuning of cuda kernels", str(folder))] if folder else []

    def download(self, array: torch.Tensor) -> NDArray[Any]:
        """Return a copy on the host."""
        values = array.detach().cpu().numpy()
        return values.copy() if self.device.type == "cpu" else values  # always a copy
