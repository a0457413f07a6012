"""Matrix products of the CPU backend alone: bytes a second for one row, multiply-adds for many.

    python -m benchmarks.products [--formats q4_k q8_0] [--rows 1 2 8 256] [--shape 3584x1024]

The level is the processor's best, or the one in APR_CPU_LEVEL. Weights are random bytes, enough
copies of them that caches do not help.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from apr_backend_cpu.backend import Cpu
from apr_backend_cpu.native import library
from apr_backend_cpu.ops.linear import linear
from apr_core.ops.binding import HostMatrix, Weight

BYTES = {"q4_k": (256, 144), "q5_k": (256, 176), "q6_k": (256, 210), "q8_0": (32, 34),
         "f32": (1, 4), "f16": (1, 2), "bf16": (1, 2)}  # fmt: skip
COLD = 256 << 20  # bytes of weights in all


def weights(backend: Cpu, format: str, rows: int, cols: int) -> list[Weight]:
    """Matrices of random blocks whose scales are ordinary numbers."""
    block, nbytes = BYTES[format]
    row_bytes = -(-cols // block) * nbytes
    rng, matrices = np.random.default_rng(0), []
    for _ in range(max(1, COLD // (rows * row_bytes))):
        raw = rng.integers(0, 256, (rows, row_bytes), np.uint8)
        if format in ("f32", "f16", "bf16"):
            values = rng.standard_normal((rows, cols), np.float32)
            if format == "bf16":
                raw = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
            else:
                raw = values.astype(np.float16 if format == "f16" else np.float32).view(np.uint8)
        else:
            blocks = raw.reshape(rows, -1, nbytes)
            at = {"q6_k": (208,), "q8_0": (0,)}.get(format, (0, 2))
            for offset in at:
                scale = np.float16(0.01).view(np.uint16)
                blocks[:, :, offset] = scale & 255
                blocks[:, :, offset + 1] = scale >> 8
        matrix = HostMatrix("w", format, (rows, cols), raw.reshape(rows, -1), None)  # type: ignore[arg-type]
        if format == "f32":
            data = backend.upload_matrix(raw.view(np.float32).reshape(rows, cols))
        else:
            data = backend.upload_packed(matrix)
        weight = Weight("w", format, (rows, cols), data)
        weight.linear = backend.bind(linear)
        matrices.append(weight)
    return matrices


clock = time.perf_counter


def measure(format: str, tokens: int, rows: int, cols: int, ws: list[Weight]) -> str:
    """One cell: what limits it, a second."""
    x = np.random.default_rng(1).standard_normal((tokens, cols), np.float32)
    times = []
    for i in range(max(8, min(2 * len(ws), 400))):
        started = clock()
        w = ws[i % len(ws)]
        w.linear(x, w)
        times.append(clock() - started)
    seconds = float(np.min(times[2:]) if clock is time.thread_time else np.median(times[2:]))
    block, nbytes = BYTES[format]
    gigabytes = rows * cols / block * nbytes / seconds / 1e9
    return f"{gigabytes:6.1f} GB/s {rows * cols * tokens / seconds / 1e9:7.1f} GMAC/s"


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--formats", nargs="+", default=list(BYTES))
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
        for format in options.formats:
            ws = weights(backend, format, rows, cols)
            for tokens in options.rows:
                print(
                    f"{shape:>11} {format:>5} x {tokens:<4}"
                    f"{measure(format, tokens, rows, cols, ws)}"
                )


if __name__ == "__main__":
    main()
