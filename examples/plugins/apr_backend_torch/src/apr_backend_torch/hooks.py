"""Declarations of this distribution. Imports nothing but apr_core's declarations."""

from __future__ import annotations

from apr_core.plugin import Backend, hookimpl


@hookimpl
def apr_backends() -> list[Backend]:
    """Declare torch on the CPU as a backend."""
    return [
        Backend(
            "torch",
            "apr_backend_torch.backend:Torch",
            summary="torch arrays on the CPU, every op by its reference",
            requires=("numpy", "torch"),
        )
    ]
