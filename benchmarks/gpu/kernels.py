"""Each kernel alone: time, bytes a second against a copy, operations a second against a matmul.

Bytes are what has to be read and written at least: weights as they are packed, inputs, outputs,
states. Arrays are float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.machine import Run
from benchmarks.gpu.table import Column
from benchmarks.gpu.work import Case, matrix_cases, row_cases
from benchmarks.gpu.work_states import state_cases

COLUMNS = (
    Column("kernel", "kernel"), Column("what", "of"), Column("rows", "rows"),
    Column("us", "us", ".1f"), Column("mb", "MB", ".2f"), Column("gb_s", "GB/s", ".0f"),
    Column("of_copy", "of copy", ".0%"), Column("tflops", "TFLOP/s", ".2f"),
    Column("of_matmul", "of matmul", ".1%"), Column("note", ""),
)  # fmt: skip


def run(bench: Bench) -> None:
    """Print a row a kernel and shape."""
    table = bench.report.table("Kernels", COLUMNS)
    bench.built()
    bench.report.note(
        f"Kernels: {_clock(bench)}, the cache emptied before each run, after runs that compile and "
        "tune."
    )
    for case in _cases(bench):
        keys = {"kernel": case.kernel, "what": case.what, "rows": case.rows}
        bench.attempt(table, keys, partial(_measure, bench, case))


def _clock(bench: Bench) -> str:
    if bench.machine.has_profiler:
        return "time of the kernels alone, as the driver records them"
    return "time between events; where launches last longer than kernels, it is that of launches"


def _cases(bench: Bench) -> Iterator[Case]:
    yield from matrix_cases(bench)
    yield from row_cases(bench)
    yield from state_cases(bench)


def _measure(bench: Bench, case: Case) -> dict[str, Any]:
    work = case.prepare()
    return figures(bench, work.run, work.nbytes, work.flops)


def figures(bench: Bench, run: Run, nbytes: int, flops: int) -> dict[str, Any]:
    """A row's numbers."""
    took = bench.machine.kernel_seconds(run)
    row: dict[str, Any] = {
        "us": 1e6 * took, "mb": nbytes / 1e6, "gb_s": nbytes / took / 1e9,
        "of_copy": nbytes / took / bench.machine.copy_rate,
    }  # fmt: skip
    if flops:
        row["tflops"] = flops / took / 1e12
        row["of_matmul"] = flops / took / bench.machine.matmul_rate
    return row
