"""Memory at addresses, as arrays that compiled code may vectorize over.

What is known to be contiguous is typed so. Addresses and sizes are int64 in compiled code: mixing
int64 and uint64 would give floating point.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from apr_backend_cpu.kernels.source import helper

U = np.uint64


@intrinsic
def pointer(typing: Any, address: Any) -> Any:
    """Convert an address to the pointer that `carray` takes."""

    def codegen(context: Any, b: ir.IRBuilder, _: Any, args: Any) -> Any:
        return b.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.uintp), codegen


@intrinsic
def call(typing: Any, function: Any, arguments: Any) -> Any:
    """Call the function at an address with a tuple of words; it returns nothing."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        values = [b.extract_value(args[1], i) for i in range(len(signature.args[1]))]
        kind = ir.FunctionType(ir.VoidType(), [v.type for v in values])
        b.call(b.inttoptr(args[0], kind.as_pointer()), values)
        return context.get_dummy_value()

    return types.void(types.uintp, arguments), codegen


@helper
def row(x):
    """Return a contiguous float32 vector as an array typed contiguous."""
    return carray(pointer(U(x.ctypes.data)), (x.size,), np.float32)


@helper
def as_float(word):
    """Return the float32 whose bits are an argument of an instruction."""
    return np.uint32(word).view(np.float32)


@helper
def words_at(address, size):
    """Return `size` uint64 at an address."""
    return carray(pointer(U(address)), (size,), np.uint64)


@helper
def ints_at(address, size):
    """Return `size` int64 at an address."""
    return carray(pointer(U(address)), (size,), np.int64)


@helper
def floats_at(address, size):
    """Return `size` contiguous float32 at an address."""
    return carray(pointer(U(address)), (size,), np.float32)


@helper
def matrix_at(address, rows, cols):
    """Return contiguous float32 [rows, cols] at an address."""
    return carray(pointer(U(address)), (rows, cols), np.float32)
