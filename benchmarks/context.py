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


def grow(model: Model, lengths: list[int]) -> dict[int, int]:
    """A sequence of each length, by its slot: one is read once and kept at each."""
    reader, slots = model.new_slot(), {}
    for length in lengths:
        while model.length(reader) < length:
            size = min(CHUNK, length - model.length(reader))
            seconds(model, reader, random_tokens(size))
        slots[length] = copied(model, reader)
    model.free_slot(reader)
    return slots


def copied(model: Model, slot: int) -> int:
    """Another slot with the same sequence."""
    other = model.new_slot()
    model.restore(other, model.snapshot(slot))
    return other


def chunk_seconds(model: Model, slot: int) -> float:
    """A token of a chunk of prompt after a sequence, which stays as it is."""
    other = copied(model, slot)
    taken = seconds(model, other, random_tokens(CHUNK)) / CHUNK
    model.free_slot(other)
    return taken


def measure(path: Path, lengths: list[int], kv_type: str) -> None:
    """Print a table. All lengths are timed in turns, so that they see the same machine.

    Of the prompt the last chunk that ends at a length is timed, of decoding the steps after it.
    """
    with load(path, kv_type=kv_type) as model:  # type: ignore[arg-type]
        slots = grow(model, sorted({n for length in lengths for n in (length - CHUNK, length)}))
        chunks: dict[int, list[float]] = {length: [] for length in lengths}
        for turn in range(ROUNDS + 1):
            for length in lengths:
                taken = chunk_seconds(model, slots[length - CHUNK])
                if turn:  # the first warms up
                    chunks[length].append(taken)
        steps: dict[int, list[float]] = {length: [] for length in lengths}
        for _ in range(ROUNDS):
            for length in lengths:
                timed = [seconds(model, slots[length], [7]) for _ in range(STEPS)]
                steps[length].append(statistics.median(timed))
        print(f"\n| {kv_type}, tokens before | decode step | ratio | prefill, ms a token | ratio |")
        print("|---" * 5 + "|")
        for length in lengths:
            cells = [
                f"{1e3 * statistics.median(timed[length]):.2f} ms | {ratio(timed, length):.2f}"
                for timed in (steps, chunks)
            ]
            print(f"| {length} | {' | '.join(cells)} |")


def ratio(timed: dict[int, list[float]], length: int) -> float:
    """The median of what a length took to what the shortest did in the same turn."""
    shortest = timed[min(timed)]
    return statistics.median(a / b for a, b in zip(timed[length], shortest, strict=True))


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
