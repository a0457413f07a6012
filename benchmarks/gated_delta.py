"""The gated delta rule on the CPU: the kernel's recurrence against the chunked reference.

Shapes of a 0.8B model (16 heads of 128 x 128), one layer, prefill of 64 to 1024 tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from apr_backend_cpu.backend import Cpu
from apr_backend_cpu.ops.delta import gated_delta as kernel
from apr_core.model.state import RecurrentState
from apr_core.model.step import make_step
from apr_qwen3_5.ops import gated_delta as chunked

HEADS, DIM = 16, 128


def milliseconds(run: Callable[[], object]) -> float:
    """Median of seven runs after one to warm up."""
    run()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def main() -> None:
    """Print a Markdown table."""
    cpu, rng = Cpu(), np.random.default_rng(0)
    state = RecurrentState(cpu.zeros, {"delta": (HEADS, DIM, DIM)})
    state.open(0)
    print("| tokens | recurrence (kernel) | chunked (NumPy, BLAS) | ratio |\n|---|---|---|---|")
    for tokens in (64, 256, 1024):
        q, k, v = (rng.standard_normal((tokens, HEADS, DIM)).astype(np.float32) for _ in range(3))
        decay = -rng.random((tokens, HEADS)).astype(np.float32)
        beta = rng.random((tokens, HEADS)).astype(np.float32)
        step = make_step([(0, tokens, 0)])
        args = (q, k, v, decay, beta, state, step)
        ours = milliseconds(lambda a=args: kernel(*a))
        theirs = milliseconds(lambda a=args: chunked(np, *a))
        print(f"| {tokens} | {ours:.2f} ms | {theirs:.2f} ms | {theirs / ours:.1f} |")


if __name__ == "__main__":
    main()
