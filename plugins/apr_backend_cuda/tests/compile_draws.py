"""Compiles the kernels of `draws.py` for a compute capability, in a process without interpreter.

Compiling needs no GPU: Triton brings the assembler. Prints a line for each kernel.
"""

from __future__ import annotations

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from apr_backend_cuda.kernels import draws
from apr_backend_cuda.run import sampling

TYPES = {
    "logits": "*fp32", "params": "*fp64", "best": "*fp32", "at": "*i32", "tops": "*fp32",
    "tokens": "*i32", "sums": "*fp64", "blocks_sums": "*fp64", "counts": "*i32", "keys": "*i64",
    "bounds": "*fp32",
}  # fmt: skip
ONE, BLOCK = {"ROWS": 1}, {"BLOCK": sampling.BLOCK}
BLOCKS = {"BLOCKS": 256}  # of a vocabulary of 248320
CAPACITY = {"CAPACITY": sampling.CAPACITY}
KERNELS = [
    (draws.best_of_blocks, ONE | BLOCK),
    (draws.best_of_rows, ONE | BLOCKS),
    (draws.sums_of_blocks, ONE | BLOCK | {"LEAST": True}),
    (draws.sums_of_blocks, ONE | BLOCK | {"LEAST": False}),
    (draws.draw_from_all, ONE | BLOCK | BLOCKS),
    (draws.best_of_columns, ONE | {"N": 256}),
    (draws.list_scores, CAPACITY | BLOCK),
    (draws.draw_from_list, ONE | CAPACITY | BLOCKS | {"NUCLEUS": True, "K": sampling.LONGEST}),
    (draws.draw_from_list, ONE | CAPACITY | BLOCKS | {"NUCLEUS": False, "K": sampling.SHORTEST}),
    (draws.draw_from_list, ONE | CAPACITY | BLOCKS | {"NUCLEUS": False, "K": sampling.LONGEST}),
]

for kernel, constants in KERNELS:
    names = kernel.arg_names
    types = {n: "constexpr" if n in constants else TYPES.get(n, "i32") for n in names}
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    binary = triton.compile(ASTSource(kernel, types, constants), target=target)
    print(kernel.__name__, len(binary.asm["cubin"]))
