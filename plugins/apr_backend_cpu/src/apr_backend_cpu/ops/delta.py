"""The causal convolution and the gated delta rule: the instructions they add to a program.

The rule runs token by token in prefill as in decode: state that stays in the first-level cache
makes the recurrence cheaper than the chunked form's extra products (benchmarks/gated_delta.py), and
its result does not depend on where a prompt was cut. A task is one value head of one sequence and
32 columns of its state, copied together for the whole segment; a single token goes over the whole
head in place, which reads and writes the state once, in order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_backend_cpu.constants import CHANNELS, NARROW, STATE
from apr_backend_cpu.run.arrays import address
from apr_backend_cpu.run.program import constant, each_time, instructions, new, strided

Floats = NDArray[np.float32]


def _segments(step: Any) -> NDArray[np.int64]:
    """Return [segments, 3]: first row, end row, and a column for the address of a state."""
    return np.array([(seg.start, seg.stop, 0) for seg in step.segments], np.int64)


def _find_states(table: NDArray[np.int64], state: Any, name: str) -> Any:
    """Return a refresh that looks up each sequence's array of that name before a step."""

    def refresh(ids: Any, step: Any) -> None:
        for i, seg in enumerate(step.segments):
            table[i, STATE] = address(state.get(name, seg.slot))

    return refresh


def _taps(w: Floats) -> Floats:
    """Transpose w [C, 1, K] to [K, C]."""
    return np.ascontiguousarray(w[:, 0, :].T)


def causal_conv1d(x: Floats, w: Floats, state: Any, step: Any) -> Floats:
    """Return silu of the depthwise causal convolution: x [T, C], w [C, 1, K].

    The state is [K - 1, C].
    """
    x, taps, table = strided(x, whole=True).array, constant(w, _taps), _segments(step)
    out = new(x.shape)
    blocks = -(-x.shape[1] // CHANNELS)
    with instructions(x, taps, table, out) as p:
        each_time(p, _find_states(table, state, "conv"), step=step)
        p.add(
            "conv_task",
            len(table) * blocks,
            address(x),
            address(taps),
            address(table),
            x.shape[1],
            taps.shape[0],
            blocks,
            address(out),
        )
    return out


def gated_delta(
    q: Floats, k: Floats, v: Floats, log_decay: Floats, beta: Floats, state: Any, step: Any
) -> Floats:
    """Run the gated delta rule: q, k [T, Hk, Dk]; v [T, Hv, Dv]; `delta` [Hv, Dk, Dv] a slot."""
    x, y, z, table = strided(q), strided(k), strided(v), _segments(step)
    log_decay, beta = strided(log_decay, whole=True).array, strided(beta, whole=True).array
    tokens, heads, width = v.shape
    unit_q, unit_k, decay = new(q.shape), new(k.shape), new(log_decay.shape)
    out = new(v.shape)
    single = len(table) == tokens and width % NARROW == 0
    blocks = 1 if single else -(-width // NARROW)
    with instructions(
        x.array, y.array, z.array, log_decay, beta, table, unit_q, unit_k, decay, out
    ) as p:
        each_time(p, _find_states(table, state, "delta"), step=step)
        p.add(
            "units_task",
            tokens,
            x.address,
            x.outer,
            x.inner,
            y.address,
            y.outer,
            y.inner,
            x.count,
            x.size,
            address(log_decay),
            heads,
            address(unit_q),
            address(unit_k),
            address(decay),
        )
        p.add(
            "delta_task",
            len(table) * heads * blocks,
            address(unit_q),
            address(unit_k),
            z.address,
            z.outer,
            z.inner,
            address(decay),
            address(beta),
            address(table),
            x.count,
            heads,
            x.size,
            width,
            blocks,
            address(out),
            single,
            scratch=0 if single else 4 * NARROW * (x.size + 2 * tokens),
        )
    return out
