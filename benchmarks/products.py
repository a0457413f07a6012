"""Matrix products of the CPU backend alone: bytes a second for one row, multiply-adds for many.

    python -m benchmarks.products [--formats q4_k q8_0] [--rows 1 2 8 256] [--shape 3584x1024]

The level is the processor's best, or the one in APR_CPU_LEVEL. A format is any quantizer's that is
installed, or a float; `by bytes` is its bytes a second over those of the first, in turns of one
process. There are enough copies of the weights that caches do not help.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np

from apr_backend_cpu.backend import Cpu
from apr_backend_cpu.native import library
from apr_core.ops.binding import Binder, BlockLayout, HostMatrix, Weight
from apr_core.plugin import from_float32, to_float32
from apr_core.registry import get_registry

FLOATS = ("f32", "f16", "bf16")
KNOWN = ("q4_k", "q5_k", "q6_k", "q8_0", *FLOATS)
COLD = 256 << 20  # bytes of weights in all
ROUNDS = 9
MADE = 64  # rows that are encoded, and then repeated


def weights(backend: Cpu, format: str, rows: int, cols: int) -> tuple[list[Weight], int]:
    """Matrices of bell-shaped values, and the bytes of one."""
    some, layout = np.random.default_rng(0).standard_normal((MADE, cols), np.float32), None
    if format in FLOATS:
        raw = from_float32(some, format).view(np.uint8).reshape(MADE, -1)
        decode = lambda raw, cols: to_float32(raw.reshape(-1), format, (len(raw), cols))  # noqa: E731
    else:
        d = get_registry().get("quantizer", format).declaration
        codec = get_registry().make("quantizer", format)
        raw, decode = codec.encode(some), codec.decode
        layout = BlockLayout(d.layout, d.block, d.bytes_per_block) if d.layout else None
    raw = np.tile(raw, (-(-rows // MADE), 1))[:rows]
    binder, nbytes = Binder(backend, {}), raw.nbytes
    names = [f"{format} {i}" for i in range(max(1, COLD // nbytes))]
    hosts = (HostMatrix(n, format, (rows, cols), raw.copy(), decode, layout) for n in names)
    return [binder.weight(host, ("linear",)) for host in hosts], nbytes


clock = time.perf_counter


def turn(ws: list[Weight], tokens: int, cols: int) -> float:
    """Seconds that a product takes, of all weights one after the other."""
    x = np.random.default_rng(1).standard_normal((tokens, cols), np.float32)
    few = ws[: max(1, len(ws) // tokens)]
    started = clock()
    for w in few:
        w.linear(x, w)
    return (clock() - started) / len(few)


def compare(backend: Cpu, formats: list[str], rows: int, cols: int, tokens: list[int]) -> None:
    """Print a row for each number of tokens and format."""
    made = {format: weights(backend, format, rows, cols) for format in formats}
    for n in tokens:
        times: dict[str, list[float]] = {format: [] for format in formats}
        for i in range(ROUNDS + 1):
            for format, (ws, _) in made.items():
                times[format] += [turn(ws, n, cols)] * (i > 0)
        for format, (_, nbytes) in made.items():
            seconds = median(times[format])
            pairs = zip(times[formats[0]], times[format], strict=True)
            ratio = median(a / b for a, b in pairs) * nbytes / made[formats[0]][1]
            print(
                f"{rows}x{cols:<6}{format:>7} x {n:<4}{nbytes / seconds / 1e9:6.1f} GB/s"
                f"{rows * cols * n / seconds / 1e9:8.1f} GMAC/s{ratio:6.2f} by bytes",
                flush=True,
            )


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--formats", nargs="+", default=list(KNOWN))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 8, 256])
    parser.add_argument("--shape", nargs="+", default=["3584x1024"])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    backend = Cpu(options.threads)
    if options.threads == 1:  # of one thread, what others do on the machine can be left out
        global clock
        clock = time.thread_time
    print(f"{library().level.name}, {options.threads} threads")
    for shape in options.shape:
        rows, cols = map(int, shape.split("x"))
        compare(backend, options.formats, rows, cols, options.rows)


if __name__ == "__main__":
    main()
