"""Words that threads share: atomic reads and writes, and ways to wait, as LLVM IR."""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from apr_backend_cpu.vector_ir import I32, I64

WORD = I64.as_pointer()
ORDER = "seq_cst"
PAUSES = {"x86_64": "llvm.x86.sse2.pause", "AMD64": "llvm.x86.sse2.pause"}


@intrinsic
def fetch_add(typing: Any, address: Any, value: Any) -> Any:
    """Add to the word at an address; returns what stood there before."""

    def codegen(context: Any, b: ir.IRBuilder, _: Any, args: Any) -> Any:
        return b.atomic_rmw("add", b.inttoptr(args[0], WORD), args[1], ORDER)

    return types.uintp(types.uintp, types.uintp), codegen


@intrinsic
def exchange(typing: Any, address: Any, value: Any) -> Any:
    """Put a value into the word at an address; returns what stood there before."""

    def codegen(context: Any, b: ir.IRBuilder, _: Any, args: Any) -> Any:
        return b.atomic_rmw("xchg", b.inttoptr(args[0], WORD), args[1], ORDER)

    return types.uintp(types.uintp, types.uintp), codegen


@intrinsic
def read_word(typing: Any, address: Any) -> Any:
    """The word at an address, now."""

    def codegen(context: Any, b: ir.IRBuilder, _: Any, args: Any) -> Any:
        return b.load_atomic(b.inttoptr(args[0], WORD), ORDER, 8)

    return types.uintp(types.uintp), codegen


def _call(b: ir.IRBuilder, name: str, result: Any) -> None:
    function = b.module.globals.get(name) or ir.Function(
        b.module, ir.FunctionType(result, []), name
    )
    b.call(function, [])


@intrinsic
def pause(typing: Any) -> Any:
    """Tell the processor that this thread only waits."""

    def codegen(context: Any, b: ir.IRBuilder, _: Any, args: Any) -> Any:
        name = PAUSES.get(platform.machine())
        if name:
            _call(b, name, ir.VoidType())
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def give_way(typing: Any) -> Any:
    """Let another thread have the core, if one wants it (sched_yield of POSIX)."""

    def codegen(context: Any, b: ir.IRBuilder, _: Any, args: Any) -> Any:
        if platform.system() != "Windows":
            _call(b, "sched_yield", I32)
        return context.get_dummy_value()

    return types.void(), codegen
