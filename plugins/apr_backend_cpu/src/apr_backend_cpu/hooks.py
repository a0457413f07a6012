"""What this distribution provides. Imports only apr_core's declarations."""

from __future__ import annotations

from apr_core.plugin import Backend, hookimpl


@hookimpl
def apr_backends() -> list[Backend]:
    """Declare the CPU backend."""
    return [
        Backend(
            "cpu",
            "apr_backend_cpu.backend:Cpu",
            summary="NumPy arrays, kernels that read packed weights in place",
            requires=("numpy", "numba"),
            probe="apr_backend_cpu.probe:probe",
        )
    ]
