"""What a long context costs: `python benchmarks/context.py [FILE.apr] [--lengths 1024 8192 32768]`.

Time of a decode step and of 512 prompt tokens, after so many tokens. Without a file it builds a
0.8b checkpoint with random weights and imports it as q4_k_m.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from apr_core import Model, load
from benchmarks.checkpoints import write
from benchmarks.engines import random_tokens
from benchmarks.files import imported

CHUNK = 512
STEPS = 15


def seconds(model: Model, slot: int, tokens: list[int]) -> float:
    """Of one forward."""
    started = time.perf_counter()
    model.forward([(slot, tokens)])
    return time.perf_counter() - started


def measure(path: Path, lengths: list[int]) -> None:
    """Grow one sequence and stop at each length: chunks there, then steps."""
    rows = []
    with load(path) as model:
        slot = model.new_slot()
        seconds(model, slot, random_tokens(CHUNK))
        for length in lengths:
            chunks = []
            while model.length(slot) < length:
                size = min(CHUNK, length - model.length(slot))
                chunks.append((size, seconds(model, slot, random_tokens(size))))
            prefill = statistics.median(s / n for n, s in chunks[-3:])
            kept = model.snapshot(slot)
            steps = [seconds(model, slot, [7]) for _ in range(STEPS)]
            rows.append((length, statistics.median(steps), prefill, model.state_bytes()))
            model.restore(slot, kept)
    base_step, base_prefill = rows[0][1], rows[0][2]
    print("| tokens before | decode step | ratio | prefill, ms a token | ratio | state |")
    print("|---|---|---|---|---|---|")
    for length, step, prefill, state in rows:
        print(
            f"| {length} | {1e3 * step:.1f} ms | {step / base_step:.2f} | {1e3 * prefill:.2f} "
            f"| {prefill / base_prefill:.2f} | {state / 2**20:.0f} MiB |"
        )


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 8192, 32768])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.file
        if path is None:
            checkpoint = write("0.8b", Path(folder) / "checkpoint")
            path = imported(checkpoint, Path(folder) / "model.apr", "q4_k_m")
        measure(path, options.lengths)


if __name__ == "__main__":
    main()
