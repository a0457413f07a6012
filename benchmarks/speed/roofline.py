"""What a model asks of the machine, and the most that the machine can do of it."""

from __future__ import annotations

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier

from llvmlite import binding, ir

from apr_core.format import AprFile

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
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
            names = {n: e.shape for n, e in file.tensors.items() if len(e.shape) == 2}
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
    registers: str = "xmm"


def _independent(line: str, count: int, products: int, registers: str) -> Body:
    """One instruction into `count` sums, so that none waits for the one before."""
    return Body(tuple(line.format(n) for n in range(count)), count * products, registers)


def _byte_pairs(groups: int = 3) -> Body:
    """AVX2: four products of bytes summed in int16, then one product with scales, into int32."""
    lines = []
    for n in range(groups):
        four = [f"%ymm{3 + 4 * n + i}" for i in range(4)]
        lines += [f"vpmaddubsw %ymm15, %ymm15, {t}" for t in four]
        lines += [f"vpaddw {four[i + 1]}, {four[i]}, {four[i]}" for i in (0, 2)]
        lines += [f"vpaddw {four[2]}, {four[0]}, {four[0]}"]
        lines += [f"vpmaddwd %ymm15, {four[0]}, {four[0]}", f"vpaddd {four[0]}, %ymm{n}, %ymm{n}"]
    return Body(tuple(lines), groups * 128, "ymm")


def _word_pairs(groups: int = 7) -> Body:
    """SSE2: products of int16 in pairs, into int32."""
    lines = []
    for n in range(groups):
        product = f"%xmm{7 + n}"
        lines += [f"movdqa %xmm15, {product}", f"pmaddwd %xmm15, {product}"]
        lines += [f"paddd {product}, %xmm{n}"]
    return Body(tuple(lines), groups * 8)


BODIES = {  # (level, what the weights' products are computed in)
    ("vnni", "bytes"): _independent("vpdpbusd %zmm31, %zmm30, %zmm{}", 16, 64, "zmm"),
    ("vnni", "floats"): _independent("vfmadd231ps %zmm31, %zmm30, %zmm{}", 16, 16, "zmm"),
    ("avx2", "bytes"): _byte_pairs(),
    ("avx2", "floats"): _independent("vfmadd231ps %ymm15, %ymm14, %ymm{}", 12, 8, "ymm"),
    ("generic", "bytes"): _word_pairs(),
}


def multiply_rate(level: str, kind: str, threads: int) -> float | None:
    """Multiply-adds a second that `threads` do together with the level's instructions.

    `kind` is bytes or floats. The best of some rounds; None for what has no loop here.
    """
    body = BODIES.get((level, kind))
    if body is None or "x86_64" not in binding.get_process_triple():
        return None
    engine = _compiled(body)
    loop = ctypes.CFUNCTYPE(None, ctypes.c_int64)(engine.get_function_address("multiply"))
    started = time.perf_counter()
    loop(100_000)
    times = max(100_000, int(100_000 * SPIN / (time.perf_counter() - started)))
    gate = Barrier(threads)

    def one() -> float:
        gate.wait()
        started = time.perf_counter()
        loop(times)
        return time.perf_counter() - started

    with ThreadPoolExecutor(threads) as pool:
        rounds = [[pool.submit(one) for _ in range(threads)] for _ in range(ROUNDS)]
        fastest = min(max(f.result() for f in futures) for futures in rounds)
    return threads * times * body.multiply_adds / fastest


def _compiled(body: Body) -> binding.ExecutionEngine:
    """`multiply(times)`: the body that many times. Registers start as zeros, no number is odd."""
    module = ir.Module("multiply")
    module.triple = binding.get_process_triple()
    count = ir.IntType(64)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [count]), "multiply")
    entry, again, done = (function.append_basic_block() for _ in range(3))
    nothing = ir.FunctionType(ir.VoidType(), [])
    number = 32 if body.registers == "zmm" else 16
    clobbers = ",".join(f"~{{{body.registers}{n}}}" for n in range(number))

    def put(b: ir.IRBuilder, lines: tuple[str, ...]) -> None:
        b.call(ir.InlineAsm(nothing, "\n".join(lines), clobbers, side_effect=True), [])

    zero = {
        "zmm": "vpxord %zmm{0}, %zmm{0}, %zmm{0}", "ymm": "vpxor %ymm{0}, %ymm{0}, %ymm{0}",
        "xmm": "pxor %xmm{0}, %xmm{0}",
    }[body.registers]  # fmt: skip
    b = ir.IRBuilder(entry)
    put(b, tuple(zero.format(n) for n in range(number)))
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
