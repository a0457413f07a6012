"""A format without a kernel against one with: nf4 through the generic kernel, q4_k through its own.

    python -m benchmarks.generic_layout [--size 0.8b] [--rounds 9] [--work DIR]

Needs the example package: `pip install examples/plugins/apr_quant_nf4`. Builds a checkpoint with
random weights, imports it with the recipes nf4 and q4k, and once more with q4_k for every matrix,
since nf4 has nothing else and q4k gives the head q6_k. Speeds are of turns in one process.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apr_core import Model, load
from apr_core.importing.importer import plan_import, write_import
from apr_core.importing.source import find_source
from apr_core.plugin import TensorClass
from apr_core.registry import get_registry
from benchmarks.checkpoints import write
from benchmarks.engines import random_tokens
from benchmarks.files import imported

OURS, RECIPE, EVERYWHERE = "nf4", "q4k", "q4_k everywhere"
STEPS = 16
BATCHES = (1, 2, 4, 8, 16)
PROMPT = 256


class Q4KEverywhere:
    """The recipe that is to q4_k what nf4's is to nf4."""

    def format_for(self, tensor: TensorClass) -> str:
        """A format's name."""
        return "q4_k"


class WithRecipe:
    """The installed plugins, and the recipe above under the name of `EVERYWHERE`."""

    def __init__(self) -> None:
        self._registry = get_registry()

    def make(self, kind: str, name: str) -> Any:
        """See Registry."""
        if (kind, name) == ("recipe", EVERYWHERE):
            return Q4KEverywhere()
        return self._registry.make(kind, name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registry, name)


def files(size: str, work: Path) -> dict[str, Path]:
    """An .apr file of each kind, made where it is missing."""
    checkpoint = write(size, work / size)
    paths = {
        name: imported(checkpoint, work / f"{size}-{name}.apr", name) for name in (OURS, RECIPE)
    }
    paths[EVERYWHERE] = work / f"{size}-q4_k-everywhere.apr"
    if not paths[EVERYWHERE].exists():
        registry: Any = WithRecipe()
        source = find_source(str(checkpoint), registry)
        plan = plan_import(source, recipe=EVERYWHERE, arch=None, registry=registry)
        write_import(plan, paths[EVERYWHERE])
    return paths


def decode(model: Model, batch: int) -> Callable[[], float]:
    """A turn of decoding `batch` sequences: tokens a second, the median of a few steps."""
    slots = [model.new_slot() for _ in range(batch)]
    for slot in slots:
        model.forward([(slot, random_tokens(16))])

    def turn() -> float:
        times = []
        for i in range(STEPS):
            started = time.perf_counter()
            model.forward([(slot, [i]) for slot in slots])
            times.append(time.perf_counter() - started)
        return batch / statistics.median(times)

    return turn


def prefill(model: Model) -> Callable[[], float]:
    """A turn of reading a prompt: tokens a second."""

    def turn() -> float:
        slot = model.new_slot()
        started = time.perf_counter()
        model.forward([(slot, random_tokens(PROMPT))])
        spent = time.perf_counter() - started
        model.free_slot(slot)
        return PROMPT / spent

    return turn


def compare(what: str, turns: dict[str, Callable[[], float]], rounds: int) -> None:
    """Print a row: medians, and the medians of the rounds' ratios."""
    speeds: dict[str, list[float]] = {name: [] for name in turns}
    for turn in turns.values():
        turn()
    for _ in range(rounds):
        for name, turn in turns.items():
            speeds[name].append(turn())
    cells = [f"{statistics.median(values):.1f}" for values in speeds.values()]
    for other in (RECIPE, EVERYWHERE):
        ratios = [a / b for a, b in zip(speeds[OURS], speeds[other], strict=True)]
        cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"| {what} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", default="0.8b")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, nargs="*", default=list(BATCHES))
    parser.add_argument("--work", type=Path, help="where files are, and stay")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = files(options.size, options.work or Path(folder))
        models = {name: load(path) for name, path in paths.items()}
        for name, path in paths.items():
            print(f"{name}: {path.stat().st_size / 2**20:.0f} MiB")
        columns = [*paths, f"nf4 / {RECIPE}", f"nf4 / {EVERYWHERE}"]
        print(f"\n| {options.size}, tok/s | " + " | ".join(columns) + " |")
        print("|---" * (len(columns) + 1) + "|")
        for batch in options.batches:
            what = "decode" if batch == 1 else f"decode, batch of {batch}"
            turns = {name: decode(model, batch) for name, model in models.items()}
            compare(what, turns, options.rounds)
        turns = {name: prefill(model) for name, model in models.items()}
        compare(f"prefill of {PROMPT}", turns, options.rounds)


if __name__ == "__main__":
    main()
