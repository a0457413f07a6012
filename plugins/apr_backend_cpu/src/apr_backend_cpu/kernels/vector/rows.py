"""Rows in memory: where each begins, and a shared offset that advances all of them."""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from apr_backend_cpu.constants import CACHE_LINE
from apr_backend_cpu.kernels.source import vector
from apr_backend_cpu.kernels.vector.builder import Builder
from apr_backend_cpu.kernels.vector.ir import I64, Value

Values = list[Value]


def number(value: int) -> Value:
    """Return an int64 constant, for counts and addresses."""
    return ir.Constant(I64, value)


def opaque(b: Builder, value: Value) -> Value:
    """Return the value, hidden from LLVM's optimizer.

    Otherwise LLVM would derive each row's address from the one before, or increment 24 addresses in
    memory instead of one offset in a register; products would wait, up to twice as long.
    """
    return b.asm(ir.FunctionType(value.type, [value.type]), "", "=r,0", [value], False)


@dataclass(frozen=True, slots=True)
class Rows:
    """Addresses: where rows begin, and an offset that all of them share."""

    starts: Values
    offset: Value

    def advance(self, b: Builder, index: Value, stride: int) -> Rows:
        """Return these rows index * stride bytes further on."""
        return Rows(self.starts, b.advance(self.offset, index, stride))

    def __call__(self, b: Builder) -> Values:
        """Return the current address in each row."""
        offset = opaque(b, self.offset)
        return [b.add(start, offset) for start in self.starts]


def addresses(b: Builder, start: Value, stride: Value, size: int, count: Value) -> Values:
    """Return the addresses of `size` rows; from the count-th on, the last one again."""
    last, rows = b.sub(count, number(1)), []
    for t in range(size):
        rows.append(opaque(b, b.advance(start, b.least(number(t), last), stride)))
    return rows


def _fetch(b: Builder, args: tuple[Value, ...]) -> None:
    """Prefetch one or more cache lines from an address on."""

    def line(i: Value, values: Values) -> Values:
        b.prefetch(b.advance(args[0], i, CACHE_LINE), 1)
        return values

    b.count_loop(args[1], [], line)


fetch = vector("fetch", "pp", _fetch, inline=True)
