"""What this distribution provides. Imports only apr_core's declarations."""

from __future__ import annotations

from apr_core.plugin import Backend, hookimpl


@hookimpl
def apr_backends() -> list[Backend]:
    """Declare the backend for NVIDIA GPUs."""
    return [
        Backend(
            "cuda",
            "apr_backend_cuda.backend:Cuda",
            summary="torch tensors on an NVIDIA GPU, Triton kernels that read packed weights",
            requires=("numpy", "torch", "triton"),
            probe="apr_backend_cuda.probe:probe",
        )
    ]
