"""Words that threads share: atomic reads and writes, and ways to wait, as LLVM IR."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from apr_backend_cpu.kernels.source import vector
from apr_backend_cpu.kernels.vector.builder import Builder
from apr_backend_cpu.kernels.vector.ir import I32, I64, Value
from apr_backend_cpu.levels import ARM, X86

WORD = I64.as_pointer()
ORDER = "seq_cst"


def _fetch_add(b: Builder, args: tuple[Value, ...]) -> Value:
    """Add to the word at an address; return its old value."""
    return b.atomic_rmw("add", b.inttoptr(args[0], WORD), args[1], ORDER)


def _exchange(b: Builder, args: tuple[Value, ...]) -> Value:
    """Store a value in the word at an address; return its old value."""
    return b.atomic_rmw("xchg", b.inttoptr(args[0], WORD), args[1], ORDER)


def _read_word(b: Builder, args: tuple[Value, ...]) -> Value:
    """Read the word at an address atomically."""
    return b.load_atomic(b.inttoptr(args[0], WORD), ORDER, 8)


def _function(b: Builder, name: str, result: Any, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, arguments)
    return b.module.globals.get(name) or ir.Function(b.module, kind, name)


def _pause(b: Builder, args: tuple[Value, ...]) -> None:
    """Tell the processor that this thread is spinning."""
    if b.level.arch == X86:
        b.call(_function(b, "llvm.x86.sse2.pause", ir.VoidType()), [])
    elif b.level.arch == ARM:
        hint = _function(b, "llvm.aarch64.hint", ir.VoidType(), I32)
        b.call(hint, [ir.Constant(I32, 1)])  # yield


def _give_way(b: Builder, args: tuple[Value, ...]) -> None:
    """Yield the core to another thread if one is waiting (sched_yield of POSIX)."""
    b.call(_function(b, "sched_yield", I32), [])


fetch_add = vector("fetch_add", "pp", _fetch_add, "p", inline=True)
exchange = vector("exchange", "pp", _exchange, "p", inline=True)
read_word = vector("read_word", "p", _read_word, "p", inline=True)
pause = vector("pause", "", _pause, inline=True)
give_way = vector("give_way", "", _give_way, inline=True)
