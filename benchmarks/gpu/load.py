"""Loading: from a file to a model on the device, by the host's clock."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apr_core import Model, load
from apr_devkit.tiny import tiny_apr
from benchmarks.checkpoints import write
from benchmarks.files import imported
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.shapes import FAMILY, TINY
from benchmarks.gpu.table import Column
from benchmarks.gpu.weights import BACKEND

CONTEXT = 4096  # tokens: a file is not refused for the longest context it could have
PROMPT = 16  # tokens that are read after the first load
WRITTEN = "0.8b"  # the shape of the file that is made where none is given
COLUMNS = (
    Column("file", "file"), Column("gb", "GB", ".2f"), Column("first_s", "first load, s", ".2f"),
    Column("s", "load, s", ".2f"), Column("gb_s", "GB/s", ".2f"),
    Column("warm_s", "first tokens, s", ".2f"), Column("peak_gib", "peak, GiB", ".1f"),
    Column("note", ""),
)  # fmt: skip


def run(bench: Bench) -> None:
    """Print a row: the first load, the median of more, and what the first tokens take."""
    table = bench.report.table("Load", COLUMNS)
    with _file(bench) as path:
        bench.report.note(
            f"Load: the first one, the median of {bench.amounts.loads} more, and a prompt of "
            f"{PROMPT} tokens and one more after the first load, which compile kernels."
        )
        bench.attempt(table, {"file": path.name}, lambda: _measure(bench, path))


@contextmanager
def _file(bench: Bench) -> Iterator[Path]:
    """The file that was given, or one with random weights of a small shape."""
    if bench.file:
        yield bench.file
        return
    with tempfile.TemporaryDirectory() as folder:
        if bench.shape == TINY:
            yield tiny_apr(FAMILY, Path(folder), bench.recipe, registry=bench.registry)
            return
        checkpoint = write(WRITTEN, Path(folder) / "checkpoint")
        yield imported(checkpoint, Path(folder) / f"{WRITTEN}-{bench.recipe}.apr", bench.recipe)


def _begin(model: Model) -> None:
    """A short prompt, and one token."""
    slot = model.new_slot()
    model.forward([(slot, [0] * PROMPT)])
    model.forward([(slot, [0])])
    model.free_slot(slot)


def _measure(bench: Bench, path: Path) -> dict[str, Any]:
    warm: list[float] = []
    sizes: list[int] = []

    def once(warming: bool) -> float:
        opened: list[Any] = []
        took = bench.machine.seconds(lambda: opened.append(load(path, BACKEND, max_len=CONTEXT)))
        with opened[0] as model:
            sizes.append(model.file.size)  # of all shards
            if warming:
                warm.append(bench.machine.seconds(lambda: _begin(model)))
        return took

    first = once(warming=True)
    others = []
    for _ in range(bench.amounts.loads):
        bench.machine.clean()
        others.append(once(warming=False))
    took, size = statistics.median(others), sizes[0]
    return {
        "gb": size / 1e9, "first_s": first, "s": took, "gb_s": size / took / 1e9, "warm_s": warm[0]
    }  # fmt: skip
