"""All modules with kernels: importing this lists their functions in `source`."""

from __future__ import annotations

from apr_backend_cpu.kernels import elementwise, embedding, team
from apr_backend_cpu.kernels.attention import tasks
from apr_backend_cpu.kernels.linear import (
    few_rows,
    floats,
    many_rows,
    one_row,
    products,
    unpack,
)
from apr_backend_cpu.kernels.recurrent import convolution, delta

MODULES = (
    elementwise, embedding, team, tasks, few_rows, floats, many_rows, one_row, products, unpack,
    convolution, delta,
)  # fmt: skip
