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
from apr_quant_q4k.search.lanes import I64, LANES, VECTOR, Value, f32, i64, nearest, pointers, splat
from apr_quant_q4k.search.uneven import level_code

LEVELS = np.array(IQ4_NL, np.float32)
RUN = 128  # FEEDBACK of apr_core
ROWS = 4  # whose blocks of two runs go side by side


def _vector(b: ir.IRBuilder, data: Value, row: Value, column: Value) -> Value:
    at = b.add(b.mul(row, I64(RUN)), column)
    return b.bitcast(b.gep(data, [at]), VECTOR.as_pointer())


def _load(b: ir.IRBuilder, at: Value) -> Value:
    vector = b.load(at)
    vector.align = 4
    return vector


def _store(b: ir.IRBuilder, vector: Value, at: Value) -> None:
    b.store(vector, at).align = 4


@intrinsic
def hand_on(typing: Any, y: Any, run: Any, to: Any, error: Any, feedback: Any, row: Any) -> Any:
    """Add error * feedback[row, k], which may be 0, to y[run, k] for k in to..to + 16."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        values, factors = pointers(context, b, sig.args, args)
        _, run, to, error, _, row = args
        at = _vector(b, values, run, to)
        change = b.fmul(splat(b, error), _load(b, _vector(b, factors, row, to)))
        _store(b, b.fadd(_load(b, at), change), at)
        return context.get_dummy_value()

    return types.void(y, i64, i64, f32, feedback, i64), codegen


@intrinsic
def catch_up(
    typing: Any, y: Any, run: Any, first: Any, errors: Any, feedback: Any, row: Any
) -> Any:
    """Add errors[run, j] * feedback[row + j, k] to y[run, k] for 16 j and all k from `first` on."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        values, errors, factors = pointers(context, b, sig.args, args)
        _, run, first, _, _, row = args
        own, slot = b.mul(run, I64(LANES)), cgutils.alloca_once(b, VECTOR)
        with cgutils.for_range_slice(b, first, I64(RUN), I64(LANES), I64) as (k, _):
            at = _vector(b, values, run, k)
            b.store(_load(b, at), slot)
            with cgutils.for_range(b, I64(LANES), intp=I64) as loop:
                error = splat(b, b.load(b.gep(errors, [b.add(own, loop.index)])))
                factor = _load(b, _vector(b, factors, b.add(row, loop.index), k))
                b.store(b.fadd(b.load(slot), b.fmul(error, factor)), slot)
            _store(b, b.load(slot), at)
        return context.get_dummy_value()

    return types.void(y, i64, i64, errors, feedback, i64), codegen


@serial
def part_of(n, stop, rows, most):
    """Return (part, row, number of rows) where part n // rows of up to `most` rows is encoded next.

    The same part of all rows follows, because it takes the same part of the feedback.
    """
    return n // rows, n % rows, min(most, stop - n, rows - n % rows)


@serial
def round_in_turn(y, counts, start, stop, steps, offsets, width, low, high, feedback, uneven):
    """Make the values of columns start..stop what they are when their turn comes.

    y [N, 128] are runs, of which N / len(counts) rows have as many as `counts`, and that many real
    values in each. Groups of `width` have values step * q - offset with q in low..high: steps and
    offsets are [N, 128 / width]. `uneven`: q is one of iq4_nl's levels. `feedback` is
    [runs * 128, 128]. All runs go side by side, so that the processor need not wait; columns after
    the sixteen at work get all their errors at once.
    """
    runs, inverses, errors = (
        len(counts),
        np.empty_like(steps),
        np.zeros((len(y), LANES), np.float32),
    )
    for n in range(len(y)):
        for g in range(start // width, (stop - 1) // width + 1):
            step = steps[n, g]
            inverses[n, g] = np.float32(1.0) / step if step != 0 else np.float32(0)
    for first in range(start, stop, LANES):
        for column in range(first, first + LANES):
            g = column // width
            for h in range(runs):
                if column < counts[h]:
                    for n in range(h, len(y), runs):
                        value = y[n, column]
                        scaled = (value + offsets[n, g]) * inverses[n, g]
                        q = LEVELS[level_code(scaled)] if uneven else nearest(scaled)
                        error = value - (steps[n, g] * min(max(q, low), high) - offsets[n, g])
                        errors[n, column - first] = error
                        hand_on(y, n, first, error, feedback, RUN * h + column)
        for h in range(runs):
            for n in range(h, len(y), runs):
                catch_up(y, n, first + LANES, errors, feedback, RUN * h + first)


@serial
def round_blocks(x, count, steps, offsets, low, high, feedback):
    """Do this with blocks of 256: x [N, 256], with steps and offsets [N, groups].

    `count` values of each are real. `feedback` is [2 * 128, 128].
    """
    y, runs = x.reshape(2 * len(x), RUN), 2 * len(x)
    counts, groups = (min(count, RUN), count - RUN), steps.shape[1] // 2
    steps, offsets = steps.reshape(runs, groups), offsets.reshape(runs, groups)
    width = RUN // groups
    round_in_turn(y, counts, 0, RUN, steps, offsets, width, low, high, feedback, False)
