"""Memory at addresses, as arrays that compiled code may vectorize over.

What is known to be contiguous is typed so. Addresses and sizes are int64 in compiled code; numbers
mixed of int64 and uint64 would become floating point.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from apr_backend_cpu.compiling import serial

U = np.uint64


def address(array: NDArray[Any]) -> int:
    """Where an array's values begin; `array.ctypes` would make several objects to say so."""
    found: int = array.__array_interface__["data"][0]
    return found


def bits(value: float) -> int:
    """A float32 as an argument of an instruction; `as_float` reads it."""
    return int(np.float32(value).view(np.uint32))


@intrinsic
def pointer(typing: Any, address: Any) -> Any:
    """An address as what `carray` takes."""

    def codegen(context: Any, b: ir.IRBuilder, _: Any, args: Any) -> Any:
        return b.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.uintp), codegen


@serial
def row(x):  # noqa: ANN001, ANN201
    """A float32 vector whose elements stand side by side, as a contiguous array."""
    return carray(pointer(U(x.ctypes.data)), (x.size,), np.float32)


@serial
def as_float(word):  # noqa: ANN001, ANN201
    """The float32 that `bits` made."""
    return np.uint32(word).view(np.float32)


@serial
def words_at(address, size):  # noqa: ANN001, ANN201
    """`size` uint64 at an address."""
    return carray(pointer(U(address)), (size,), np.uint64)


@serial
def ints_at(address, size):  # noqa: ANN001, ANN201
    """`size` int64 at an address."""
    return carray(pointer(U(address)), (size,), np.int64)


@serial
def floats_at(address, size):  # noqa: ANN001, ANN201
    """`size` contiguous float32 at an address."""
    return carray(pointer(U(address)), (size,), np.float32)


@serial
def matrix_at(address, rows, cols):  # noqa: ANN001, ANN201
    """Contiguous float32 [rows, cols] at an address."""
    return carray(pointer(U(address)), (rows, cols), np.float32)


@serial
def alive(array):  # noqa: ANN001, ANN201
    """Mention an array whose address is in use: Numba frees one after its last mention."""
    return array.size
