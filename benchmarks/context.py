"""What a long context costs: `python benchmarks/context.py [FILE.apr] [--lengths 1024 8192 32768]`.

Time of a decode step and of 512 prompt tokens, after so many tokens, with keys and values in
float16 and in 8 bits. Without a file it builds a checkpoint with random weights and imports it as
q4_k_m.
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
STEPS, ROUNDS = 8, 5


def seconds(model: Model, slot: int, tokens: list[int]) -> float:
    """Of one forward."""
    started = time.perf_counter()
    model.forward([(slot, tokens)])
    return time.perf_counter() - started


def grow(model: Model, lengths: list[int]) -> tuple[dict[int, int], dict[int, float]]:
    """One sequence that is read once and kept at each length: slots, and seconds a prompt token."""
    reader, slots, prefill = model.new_slot(), {}, {}
    seconds(model, reader, random_tokens(CHUNK))
    for length in lengths:
        chunks = []
        while model.length(reader) < length:
            size = min(CHUNK, length - model.length(reader))
            chunks.append(seconds(model, reader, random_tokens(size)) / size)
        prefill[length] = statistics.median(chunks[-3:])
        slots[length] = model.new_slot()
        model.restore(slots[length], model.snapshot(reader))
    model.free_slot(reader)
    return slots, prefill


def measure(path: Path, lengths: list[int], kv_type: str) -> None:
    """Print a table. Steps at all lengths are timed in turns, so that they see the same machine."""
    with load(path, kv_type=kv_type) as model:  # type: ignore[arg-type]
        slots, prefill = grow(model, lengths)
        steps: dict[int, list[float]] = {length: [] for length in lengths}
        for _ in range(ROUNDS):
            for length, slot in slots.items():
                timed = [seconds(model, slot, [7]) for _ in range(STEPS)]
                steps[length].append(statistics.median(timed))
        ratios = {
            n: [a / b for a, b in zip(steps[n], steps[lengths[0]], strict=True)] for n in steps
        }
        print(f"\n| {kv_type}, tokens before | decode step | ratio | prefill, ms a token | ratio |")
        print("|---" * 5 + "|")
        for length in lengths:
            print(
                f"| {length} | {1e3 * statistics.median(steps[length]):.1f} ms "
                f"| {statistics.median(ratios[length]):.2f} | {1e3 * prefill[length]:.2f} "
                f"| {prefill[length] / prefill[lengths[0]]:.2f} |"
            )


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 8192, 32768])
    parser.add_argument("--kv-types", nargs="+", default=["f16", "q8"])
    parser.add_argument("--size", default="0.8b", help="of the checkpoint that is built")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.file
        if path is None:
            checkpoint = write(options.size, Path(folder) / "checkpoint")
            path = imported(checkpoint, Path(folder) / "model.apr", "q4_k_m")
        for kv_type in options.kv_types:
            measure(path, options.lengths, kv_type)


if __name__ == "__main__":
    main()
