"""Error feedback: what a column loses when it is rounded, the later ones of its run make up for.

Column after column gets the code nearest to its value, and `error * feedback[column, k]` is added
to each later column k of the same run of 128 (`apr_core.plugin.Inputs`). Here values become what
they are when their turn comes, so that the nearest codes to the result are those to store.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from apr_quant_q4k.hooks import IQ4_NL
from apr_quant_q4k.loops.compiling import serial
from apr_quant_q4k.search.lanes import I64, LANES, VECTOR, Value, f32, i64, nearest, splat
from apr_quant_q4k.search.uneven import level_code

LEVELS = np.array(IQ4_NL, np.float32)
RUN, PART = 128, 32  # FEEDBACK of apr_core; columns after which the others catch up
ROWS = 4  # whose blocks of two runs go side by side


def _vector(b: ir.IRBuilder, data: Value, at: Value) -> Value:
    return b.bitcast(b.gep(data, [at]), VECTOR.as_pointer())


def _load(b: ir.IRBuilder, at: Value) -> Value:
    vector = b.load(at)
    vector.align = 4
    return vector


def _store(b: ir.IRBuilder, vector: Value, at: Value) -> None:
    b.store(vector, at).align = 4


def _later(b: ir.IRBuilder, first: Value, stop: Value) -> Any:
    """Loop over columns first..stop, sixteen at a time."""
    return cgutils.for_range_slice(b, first, stop, I64(LANES), I64)


def _pointers(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> list[Value]:
    """Return pointers to the first values of all arrays among the arguments."""
    pairs = [(t, a) for t, a in zip(sig.args, args, strict=True) if isinstance(t, types.Array)]
    return [context.make_array(t)(context, b, value=a).data for t, a in pairs]


@intrinsic
def hand_on(
    typing: Any, y: Any, run: Any, column: Any, stop: Any, error: Any, feedback: Any, row: Any
) -> Any:
    """Add error * feedback[row + column, k] to y[run, k], for columns k > column up to `stop`.

    `feedback` [., 128] is 0 where k <= column, `stop` a multiple of 16.
    """

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        values, factors = _pointers(context, b, sig, args)
        _, run, column, stop, error, _, row = args
        start, row = b.mul(run, I64(RUN)), b.mul(b.add(row, column), I64(RUN))
        error = splat(b, error)
        with _later(b, b.and_(b.add(column, I64(1)), I64(-LANES)), stop) as (k, _):
            to, by = _vector(b, values, b.add(start, k)), _vector(b, factors, b.add(row, k))
            _store(b, b.fadd(_load(b, to), b.fmul(error, _load(b, by))), to)
        return context.get_dummy_value()

    return types.void(y, i64, i64, i64, f32, feedback, i64), codegen


@intrinsic
def catch_up(typing: Any, y: Any, run: Any, stop: Any, errors: Any, feedback: Any, row: Any) -> Any:
    """Add errors[run, j] * feedback[row + j, k] to y[run, k] for all j, and k from `stop` on."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        values, errors, factors = _pointers(context, b, sig, args)
        _, run, stop, _, _, row = args
        start, own = b.mul(run, I64(RUN)), b.mul(run, I64(PART))
        slot = cgutils.alloca_once(b, VECTOR)
        with _later(b, stop, I64(RUN)) as (k, _):
            to = _vector(b, values, b.add(start, k))
            b.store(_load(b, to), slot)
            with cgutils.for_range(b, I64(PART), intp=I64) as loop:
                by = _vector(b, factors, b.add(b.mul(b.add(row, loop.index), I64(RUN)), k))
                error = splat(b, b.load(b.gep(errors, [b.add(own, loop.index)])))
                b.store(b.fadd(b.load(slot), b.fmul(error, _load(b, by))), slot)
            _store(b, b.load(slot), to)
        return context.get_dummy_value()

    return types.void(y, i64, i64, errors, feedback, i64), codegen


@serial
def part_of(n, stop, rows, most):
    """Return (part, row, number of rows) where part n // rows of up to `most` rows is encoded next.

    The same part of all rows follows, because it takes the same part of the feedback.
    """
    return n // rows, n % rows, min(most, stop - n, rows - n % rows)


@serial
def round_in_turn(y, counts, first, steps, offsets, width, low, high, feedback, uneven):
    """Make the values of 32 columns from `first` on what they are when their turn comes.

    y [N, 128] are runs, of which N / len(counts) rows have as many as `counts`, and that many real
    values in each. Groups of `width` have values step * q - offset with q in low..high: steps and
    offsets are [N, 128 / width]. `uneven`: q is one of iq4_nl's levels. `feedback` is
    [runs * 128, 128]. All runs go side by side, so that
    the processor need not wait.
    """
    runs, inverses, errors = len(counts), np.empty_like(steps), np.zeros((len(y), PART), np.float32)
    for n in range(len(y)):
        for g in range(first // width, (first + PART) // width):
            step = steps[n, g]
            inverses[n, g] = np.float32(1.0) / step if step != 0 else np.float32(0)
    stop = first + PART
    for column in range(first, stop):
        g = column // width
        for h in range(runs):
            if column < counts[h]:
                for n in range(h, len(y), runs):
                    value = y[n, column]
                    scaled = (value + offsets[n, g]) * inverses[n, g]
                    q = LEVELS[level_code(scaled)] if uneven else nearest(scaled)
                    error = value - (steps[n, g] * min(max(q, low), high) - offsets[n, g])
                    errors[n, column - first] = error
                    hand_on(y, n, column, stop, error, feedback, RUN * h)
    for h in range(runs):
        for n in range(h, len(y), runs):
            catch_up(y, n, stop, errors, feedback, RUN * h + first)


@serial
def round_blocks(x, count, steps, offsets, low, high, feedback):
    """Do this with blocks of 256: x [N, 256], with steps and offsets [N, groups].

    `count` values of each are real. `feedback` is [2 * 128, 128].
    """
    y, runs = x.reshape(2 * len(x), RUN), 2 * len(x)
    counts, groups = (min(count, RUN), count - RUN), steps.shape[1] // 2
    steps, offsets = steps.reshape(runs, groups), offsets.reshape(runs, groups)
    for first in range(0, RUN, PART):
        round_in_turn(y, counts, first, steps, offsets, RUN // groups, low, high, feedback, False)
