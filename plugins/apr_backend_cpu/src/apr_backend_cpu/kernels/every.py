"""All modules with kernels: importing this registers their functions in `source`."""

from __future__ import annotations

from apr_backend_cpu.kernels import elementwise, embedding, team
from apr_backend_cpu.kernels.attention import q8, tasks
from apr_backend_cpu.kernels.linear import dense, experts, layouts, one_row, products, tiles
from apr_backend_cpu.kernels.recurrent import convolution, delta

MODULES = (
    elementwise, embedding, team, q8, tasks, dense, experts, layouts, one_row, products, tiles,
    convolution, delta,
)  # fmt: skip
