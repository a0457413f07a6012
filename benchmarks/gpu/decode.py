"""Decode: one token for each sequence of a batch, at the end of a context, against the floor.

The floor is the time in which all weights that a step multiplies with are read once, at the rate
of a measured copy. States are what a step reads beside them: keys, values, recurrent matrices. One
sequence of the context is read token by token as a prompt; the others of a batch are its copies.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from apr_core import Model
from apr_core.model.model import Snapshot
from apr_eval.measuring import prefill
from benchmarks.engines import random_tokens
from benchmarks.gpu.arithmetic import seconds, share
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.machine import GIB
from benchmarks.gpu.table import Column
from benchmarks.gpu.tokens import step
from benchmarks.gpu.weights import Built

RATIO = (64, 1)  # batches whose speeds are compared
COLUMNS = (
    Column("batch", "batch"), Column("context", "context"), Column("tok_s", "tok/s", ".1f"),
    Column("ms", "ms a step", ".3f"), Column("range", "rounds, ms"),
    Column("floor_ms", "floor: weights, ms", ".3f"), Column("of_floor", "of floor", ".0%"),
    Column("state_gib", "states, GiB", ".2f"),
    Column("of_both", "of floor with states", ".0%"),
    Column("tok_s_logits", "tok/s, logits to host", ".1f"), Column("peak_gib", "peak, GiB", ".1f"),
    Column("note", ""),
)  # fmt: skip


def run(bench: Bench) -> None:
    """Print the table, and how much faster a large batch is."""
    built = bench.built()
    table = bench.report.table("Decode", COLUMNS)
    a = bench.amounts
    bench.report.note(
        f"Decode: medians of {a.rounds} rounds of {a.steps} steps after {a.warm_steps} to compile "
        f"and capture. The likeliest token is chosen on the device and fed back; beside it, the "
        "same with all logits brought to the host. Weights of a step: "
        f"{built.model.bytes_read(1) / GIB:.2f} GiB for one sequence."
    )
    speeds: dict[tuple[int, int], float] = {}
    for context in a.contexts:
        prefix = Prefix(built, context - a.decode_steps)
        for batch in a.batches:
            keys = {"batch": batch, "context": context}
            figures = bench.attempt(table, keys, partial(_measure, bench, built, prefix, batch))
            if figures:
                speeds[batch, context] = figures["tok_s"]
        del prefix
    _ratios(bench, speeds)


def _ratios(bench: Bench, speeds: dict[tuple[int, int], float]) -> None:
    many, one = RATIO
    for context in bench.amounts.contexts:
        if (many, context) in speeds and (one, context) in speeds:
            ratio = speeds[many, context] / speeds[one, context]
            bench.report.note(
                f"At {context} tokens a batch of {many} decodes {ratio:.1f}x as many tokens a "
                f"second as a batch of {one}."
            )


class Prefix:
    """A sequence of random tokens, read when it is first needed."""

    def __init__(self, built: Built, length: int) -> None:
        self.length, self._model = length, built.model
        self._snapshot: Snapshot | None = None

    def restore(self, slot: int) -> None:
        """Make a slot's sequence this one."""
        if self._snapshot is None:
            self._snapshot = self._read()
        self._model.restore(slot, self._snapshot)

    def _read(self) -> Snapshot:
        slot = self._model.new_slot()
        try:
            ids = random_tokens(self.length, self._model.config.vocab_size)
            prefill(self._model, slot, ids)
            return self._model.snapshot(slot)
        finally:
            self._model.free_slot(slot)


@contextmanager
def sequences(model: Model, prefix: Prefix, count: int) -> Iterator[list[int]]:
    """Slots, each with a copy of the prefix; freed at the end."""
    slots: list[int] = []
    try:
        for _ in range(count):
            slots.append(model.new_slot())
            prefix.restore(slots[-1])
            _own_pages(model, slots[-1], prefix.length)
        yield slots
    finally:
        for slot in slots:
            model.free_slot(slot)


def _own_pages(model: Model, slot: int, length: int) -> None:
    """Copies of a sequence share its pages: read once for all, they would cost too little."""
    for state in model._states:
        if hasattr(state, "reserve"):
            state.reserve(slot, length)


def _measure(bench: Bench, built: Built, prefix: Prefix, batch: int) -> dict[str, Any]:
    a, model = bench.amounts, built.model
    end = prefix.length + a.decode_steps
    bench.check_fits(model, batch, end)
    with sequences(model, prefix, batch) as slots:
        ids, _ = _steps(built, slots, [0] * batch, a.warm_steps)
        rounds = []
        for _ in range(a.rounds):
            ids, took = _steps(built, slots, ids, a.steps)
            rounds.append(took)
        with_logits = _timed(partial(_logits, model, slots), a.steps)
    return _row(bench, model, batch, end, rounds, with_logits)


def _steps(
    built: Built, slots: Sequence[int], ids: list[int], count: int
) -> tuple[list[int], float]:
    """The ids after so many steps, and seconds a step: each ends with its ids on the host."""
    started = time.perf_counter()
    for _ in range(count):
        ids = step(built, [(slot, [token]) for slot, token in zip(slots, ids, strict=True)])
    return ids, (time.perf_counter() - started) / count


def _logits(model: Model, slots: Sequence[int]) -> None:
    model.forward([(slot, [0]) for slot in slots])


def _timed(run: Callable[[], None], count: int) -> float:
    """Median seconds."""
    times = []
    for _ in range(count):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _row(
    bench: Bench, model: Model, batch: int, end: int, rounds: list[float], with_logits: float
) -> dict[str, Any]:
    took, rate = statistics.median(rounds), bench.machine.copy_rate
    weights, states = model.bytes_read(batch), batch * model.sequence_bytes(end)
    floor = seconds(weights, rate)
    return {
        "tok_s": batch / took, "ms": 1e3 * took,
        "range": f"{1e3 * min(rounds):.3f} to {1e3 * max(rounds):.3f}",
        "floor_ms": 1e3 * floor, "of_floor": share(floor, took), "state_gib": states / GIB,
        "of_both": share(seconds(weights + states, rate), took),
        "tok_s_logits": batch / with_logits, "weight_bytes": weights, "state_bytes": states,
    }  # fmt: skip
