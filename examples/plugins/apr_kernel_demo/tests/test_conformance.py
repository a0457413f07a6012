"""The example passes what every kernel passes."""

from __future__ import annotations

from apr_devkit.kits import KernelConformance


class TestSwiglu(KernelConformance):
    kernel = "torch/swiglu"
