"""Views that compiled code may vectorize over: what is known to be contiguous is typed so."""

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


@intrinsic
def _pointer(typing: Any, address: Any) -> Any:
    def codegen(context: Any, b: ir.IRBuilder, _: Any, args: Any) -> Any:
        return b.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.uintp), codegen


@serial
def row(x):  # noqa: ANN001, ANN201
    """A float32 vector whose elements stand side by side, as a contiguous array."""
    return carray(_pointer(U(x.ctypes.data)), (x.size,), np.float32)


@serial
def words_at(address, size):  # noqa: ANN001, ANN201
    """`size` uint64 at an address."""
    return carray(_pointer(address), (size,), np.uint64)


@serial
def cube_at(address, shape):  # noqa: ANN001, ANN201
    """Contiguous float32 of a shape of three numbers, at an address."""
    return carray(_pointer(address), shape, np.float32)
