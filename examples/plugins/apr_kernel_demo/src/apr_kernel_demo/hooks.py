"""Declarations of this distribution. Imports nothing but apr_core's declarations."""

from __future__ import annotations

from apr_core.plugin import Kernel, hookimpl


@hookimpl
def apr_kernels() -> list[Kernel]:
    """Declare `swiglu` for the torch backend of apr-backend-torch."""
    return [
        Kernel(
            "torch/swiglu",
            "apr_kernel_demo.kernels:swiglu",
            summary="silu(gate) * up in two passes over memory instead of nine",
            backend="torch",
            op="swiglu",
        )
    ]
