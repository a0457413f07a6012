"""What a model asks of the machine, and the most that the machine can do of it."""

from __future__ import annotations

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier

from llvmlite import binding, ir

from apr_backend_cpu.levels import X86, Level
from apr_core.format import AprFile

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
PREDICTORS = "mtp."  # layers that guess further tokens: not run
KINDS = {16: "xmm", 32: "ymm", 64: "zmm"}  # of registers, by their bytes
ROUNDS = 5
SPIN = 0.2  # seconds of multiplying, about, a round


@dataclass(frozen=True)
class Work:
    """Of one token: bytes of weights read by a step, multiply-adds of a prompt's token."""

    weight_bytes: int
    multiply_adds: int

    @classmethod
    def of(cls, path: Path) -> Work:
        """Of a dense model in an .apr file. A prompt's tokens do without the head."""
        nbytes = products = 0
        with AprFile.open(path) as file:
            matrices = (e for e in file.tensors.values() if len(e.shape) == 2)
            names = {e.name: e.shape for e in matrices if not e.name.startswith(PREDICTORS)}
            tied = not any(name.endswith(HEAD) for name in names)
            for name, (rows, columns) in names.items():
                table = name.endswith(EMBEDDING)
                if tied or not table:
                    nbytes += file.raw(name).nbytes
                if not (table or name.endswith(HEAD)):
                    products += rows * columns
        return cls(nbytes, products)


@dataclass(frozen=True)
class Body:
    """Instructions of a loop over registers alone: what runs at the rate of the multipliers."""

    lines: tuple[str, ...]
    multiply_adds: int
    registers: str  # their kind: xmm, ymm or zmm


def body_of(level: Level, kind: str) -> Body | None:
    """The products of bytes or of floats that the level has; None where it says nothing here.

    Sums are independent, so that none waits for the one before.
    """
    if level.arch != X86:
        return None
    registers, wide = KINDS[level.vector], level.vector > 16
    lines: list[str] = []
    if kind == "floats":
        for n in range(12):
            lines += _put("fmadd231ps" if wide else "mulps", 15, 14 if wide else n, n, registers)
            lines += [] if wide else _put("addps", 15, n, n, registers)
        return Body(tuple(lines), 12 * level.vector // 4, registers)
    if level.dot == "vnni":
        for n in range(12):
            lines += _put("pdpbusd", 15, 14, n, registers)
        return Body(tuple(lines), 12 * level.vector, registers)
    for total in range(3):  # four products of bytes in 16 bits, then one with scales, in 32
        a, b, c, d = (3 + 4 * total + i for i in range(4))
        for n in (a, b, c, d):
            lines += _put("pmaddubsw", 15, 15, n, registers)
        for source, target in ((b, a), (d, c), (c, a)):
            lines += _put("paddw", source, target, target, registers)
        lines += _put("pmaddwd", 15, a, a, registers)
        lines += _put("paddd", a, total, total, registers)
    return Body(tuple(lines), 3 * 4 * level.vector, registers)


def _put(name: str, a: int, b: int, target: int, registers: str) -> list[str]:
    """An instruction on numbered registers; those of SSE write over `b`, which is copied first."""
    if registers != "xmm":
        return [f"v{name} %{registers}{a}, %{registers}{b}, %{registers}{target}"]
    copy = [f"movdqa %xmm{b}, %xmm{target}"] if b != target else []
    return [*copy, f"{name} %xmm{a}, %xmm{target}"]


def multiply_rate(level: Level, kind: str, threads: int) -> float | None:
    """Multiply-adds a second that `threads` do together with the level's instructions.

    `kind` is bytes or floats. The best of some rounds; None for a level without a loop here.
    """
    body = body_of(level, kind)
    if body is None:
        return None
    engine = _compiled(body)
    loop = ctypes.CFUNCTYPE(None, ctypes.c_int64)(engine.get_function_address("multiply"))
    gate = Barrier(threads)

    def rate(times: int) -> float:
        gate.wait()
        started = time.thread_time()  # which does not run while others have the processor
        loop(times)
        return times * body.multiply_adds / (time.thread_time() - started)

    with ThreadPoolExecutor(threads) as pool:

        def together(times: int) -> float:
            return sum(pool.map(rate, [times] * threads))

        times = int(SPIN * together(100_000) / threads / body.multiply_adds)
        return max(together(times) for _ in range(ROUNDS))


def _compiled(body: Body) -> binding.ExecutionEngine:
    """`multiply(times)`: the body that many times, on registers of zeros."""
    module = ir.Module("multiply")
    module.triple = binding.get_process_triple()
    count = ir.IntType(64)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [count]), "multiply")
    entry, again, done = (function.append_basic_block() for _ in range(3))
    nothing = ir.FunctionType(ir.VoidType(), [])
    clobbers = ",".join(f"~{{{body.registers}{n}}}" for n in range(16))

    def put(b: ir.IRBuilder, lines: tuple[str, ...]) -> None:
        b.call(ir.InlineAsm(nothing, "\n".join(lines), clobbers, side_effect=True), [])

    b = ir.IRBuilder(entry)
    put(b, tuple(line for n in range(16) for line in _put("xorps", n, n, n, body.registers)))
    b.branch(again)
    b = ir.IRBuilder(again)
    left = b.phi(count)
    left.add_incoming(function.args[0], entry)
    put(b, body.lines)
    less = b.sub(left, ir.Constant(count, 1))
    left.add_incoming(less, again)
    b.cbranch(b.icmp_signed(">", less, ir.Constant(count, 0)), again, done)
    ir.IRBuilder(done).ret_void()
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    binding.initialize_native_asmparser()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten()
    )
    engine = binding.create_mcjit_compiler(binding.parse_assembly(str(module)), machine)
    engine.finalize_object()
    return engine
