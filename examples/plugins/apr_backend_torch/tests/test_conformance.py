"""The example passes what every backend passes, with no kernel at all."""

from __future__ import annotations

from apr_backend_torch.backend import Torch
from apr_devkit.kits import BackendConformance


class TestTorch(BackendConformance):
    backend = "torch"


def test_it_has_no_kernels():
    assert Torch.kernels == {}
