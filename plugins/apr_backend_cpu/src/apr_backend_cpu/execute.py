"""One task of one instruction, compiled: the only place that knows what opcodes mean."""

from __future__ import annotations

from apr_backend_cpu.activations import quantize_task
from apr_backend_cpu.attention import append_task, few_task, many_task, merge_task
from apr_backend_cpu.compiling import serial
from apr_backend_cpu.delta import conv_task, delta_task, units_task
from apr_backend_cpu.elementwise import (
    add_norm_task,
    add_task,
    delta_gates_task,
    gated_norm_task,
    norm_task,
    rope_task,
    sigmoid_gate_task,
    swiglu_task,
)
from apr_backend_cpu.products import product_task
from apr_backend_cpu.program import Opcode
from apr_backend_cpu.rows import ints_at

MOST = 32  # arguments of an instruction
(
    QUANTIZE, PRODUCT, NORM, ADD_NORM, SWIGLU, SIGMOID_GATE, ROPE, GATED_NORM, DELTA_GATES, CONV,
    UNITS, DELTA, APPEND, ATTEND_FEW, MERGE, ATTEND_MANY, ADD,
) = map(int, Opcode)  # fmt: skip


@serial
def task(opcode, arguments, number):  # noqa: ANN001, ANN201
    """Do task `number` of an instruction whose arguments are at an address."""
    a, i, kind = ints_at(arguments, MOST), int(number), int(opcode)
    if kind == PRODUCT:
        product_task(a, i)
    elif kind == QUANTIZE:
        quantize_task(a, i)
    elif kind == NORM:
        norm_task(a, i)
    elif kind == ADD_NORM:
        add_norm_task(a, i)
    elif kind == SWIGLU:
        swiglu_task(a, i)
    elif kind == SIGMOID_GATE:
        sigmoid_gate_task(a, i)
    elif kind == ROPE:
        rope_task(a, i)
    elif kind == GATED_NORM:
        gated_norm_task(a, i)
    elif kind == DELTA_GATES:
        delta_gates_task(a, i)
    elif kind == CONV:
        conv_task(a, i)
    elif kind == UNITS:
        units_task(a, i)
    elif kind == DELTA:
        delta_task(a, i)
    elif kind == APPEND:
        append_task(a, i)
    elif kind == ATTEND_FEW:
        few_task(a, i)
    elif kind == MERGE:
        merge_task(a, i)
    elif kind == ATTEND_MANY:
        many_task(a, i)
    elif kind == ADD:
        add_task(a, i)
