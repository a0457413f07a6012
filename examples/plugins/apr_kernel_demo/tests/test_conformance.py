"""The example passes what every kernel passes."""

from __future__ import annotations

from apr_core.testing import KernelConformance


class TestSwiglu(KernelConformance):
    kernel = "torch/swiglu"
