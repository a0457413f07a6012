"""Compiles the kernels of all ops for a compute capability, in a process without interpreter.

Compiling needs no GPU: Triton brings the assembler. The ops run as they would on a device, on
arrays of the sizes that a model of 9 billion parameters has, but nothing is launched. Prints a line
for each kernel: name, bytes of shared memory, bytes of spilled registers.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from copy import copy
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

from apr_backend_cuda.kernels import attention, convolution, delta, experts, linear, rows
from apr_backend_cuda.launching import tuning
from apr_backend_cuda.launching.tables import TABLES, WHOLE
from apr_backend_cuda.states import device as states
from apr_backend_cuda.weights import matrices
from apr_core.declarations import Layout, Numbers
from apr_core.model.step import make_step
from apr_core.ops.binding import BlockLayout

CAPABILITY = int(sys.argv[1])
FLOATS = {"f32": torch.float32, "f16": torch.float16}
HIDDEN = 4096
WIDE = ("q4_k", "codebook", "bf16")  # formats whose products of many tokens are compiled, too
HEADS = {"f16": ((256, 16, 4), (128, 28, 4)), "f32": ((256, 16, 4),)}  # D, H, Hkv
SCALE = Numbers(0, "f16")
FIVES = Layout(32, 6, 4, (SCALE,), order="halves", zero=16, high=2)
CODEBOOK = Layout(32, 2, 4, (SCALE,), codebook=tuple(map(float, range(16))))


class NoDevice:
    """What Triton asks of a driver before it compiles."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_active_torch_device(self):
        return torch.device("cpu")


def compile_only(self, *arguments, grid, warmup, **more):
    kernel = compiled(self, *arguments, grid=grid, warmup=True, **more)
    if id(kernel) not in seen:
        seen[id(kernel)] = kernel
        print(self.__name__, kernel.metadata.shared, spilled(kernel.asm["cubin"]), flush=True)


def spilled(cubin: bytes) -> int:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True)
    return int(re.search(r"STACK:(\d+)", usage.stdout)[1])


def empty_matrix(format: str, height: int, layout: BlockLayout | None = None) -> matrices.Matrix:
    form = matrices.form_of(format, HIDDEN, layout)
    return matrices.in_planes(form, (height, HIDDEN), form.empty(height, torch.device("cpu")))


def products() -> None:
    layouts = {"codebook": BlockLayout(CODEBOOK, 32, 18), "fives": BlockLayout(FIVES, 32, 22)}
    for format in ("q4_k", "q5_k", "q6_k", "q8_0", "fives", "codebook", *WHOLE):
        matrix = empty_matrix(format, HIDDEN, layouts.get(format))
        for tokens in (1, 64) if format in WIDE else (1,):
            linear.multiply(torch.zeros(tokens, HIDDEN), matrix)
        pair = (SimpleNamespace(data=matrix), SimpleNamespace(data=copy(matrix)))
        linear.linears(torch.zeros(1, HIDDEN), pair)
        linear.embed(torch.zeros(4, dtype=torch.int64), SimpleNamespace(data=matrix))
        stack = SimpleNamespace(data=matrix, shape=(8, HIDDEN // 8, HIDDEN))
        for tokens in (1, 512) if format in WIDE else (1,):
            ids, _ = experts.route(torch.zeros(tokens, 8), 2)
            experts.expert_linear(torch.zeros(tokens, HIDDEN), ids, stack)
    for height in (HIDDEN, 6 * HIDDEN):  # in parts, and whole
        matrix = empty_matrix("q4_k", height)
        for tokens in (512, 4096):
            linear.multiply(torch.zeros(tokens, HIDDEN), matrix)


def by_rows() -> None:
    x, w = torch.zeros(7, HIDDEN), torch.zeros(HIDDEN)
    rows.rms_norm(x, w, 1e-6, 1.0)
    rows.add_rms_norm(x, x, w, 1e-6, 0.0)
    heads = torch.zeros(7, 32, 128)
    rows.gated_rms_norm(heads, torch.zeros(128), heads, 1e-6)
    for op in (rows.sigmoid, rows.silu, rows.softplus):
        op(x)
    rows.swiglu(x, x)
    experts.mix_experts(torch.zeros(7, 2, HIDDEN), torch.zeros(7, 2), x, torch.zeros(7, 1))
    rows.sigmoid_gate(x, x)
    rows.rope(torch.zeros(7, 16, 256), torch.arange(7), torch.zeros(32))
    delta.delta_gates(torch.zeros(9, 32), torch.zeros(9, 32), torch.zeros(32), torch.zeros(32))


def device_states(kv_type: str) -> states.DeviceStates:
    def zeros(shape, dtype="f32"):
        return torch.zeros(shape, dtype=FLOATS[dtype])

    return states.DeviceStates(zeros, kv_type, torch.device("cpu"), 1 << 15)


def sequences() -> None:
    one_each, prompt = [(0, 1, 5), (1, 1, 5000)], [(0, 300, 0)]
    for kv_type in FLOATS:
        for dim, heads, kv_heads in HEADS[kv_type]:
            state = device_states(kv_type).kv(kv_heads, dim)
            state.open(0), state.open(1)
            for parts in (one_each, [(0, 1, 5)], prompt):
                step = make_step(parts, torch.from_numpy)
                k = torch.zeros(step.n_rows, kv_heads, dim)
                q = torch.zeros(step.n_rows, heads, dim)
                attention.attention(q, k, k, state, step, 0.1)
    state = device_states("f16").recurrent(conv=(3, 8192), delta=(32, 128, 128))
    state.open(0), state.open(1)
    for parts in (one_each, prompt):
        step = make_step(parts, torch.from_numpy)
        n = step.n_rows
        convolution.causal_conv1d(torch.zeros(n, 8192), torch.zeros(8192, 1, 4), state, step)
        q, v, gate = torch.zeros(n, 16, 128), torch.zeros(n, 32, 128), torch.zeros(n, 32)
        delta.gated_delta(q, q, v, gate, gate, state, step)


driver.set_active(NoDevice())
seen: dict[int, object] = {}
compiled, jit.JITFunction.run = jit.JITFunction.run, compile_only
choices = tuning.Tuning(TABLES[divmod(CAPABILITY, 10)], None, lambda run: 0.0, "off")
tuning.tuning_of = lambda device: choices
torch.cuda.current_device = lambda: 0
torch.cuda.is_current_stream_capturing = lambda: False
products()
by_rows()
sequences()
