"""Programs: what the ops of this backend turn into.

An op does not compute. It adds instructions to a program: a kernel, a number of tasks, and
addresses. Outside of a recording, the program runs at once. While a step is recorded
(`recording.py`), all ops of the step add to one program, which is then run again for every
further token without any Python in between.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_backend_cpu.constants import COLUMNS, RECORD, ROW_GAP, SUPERBLOCK
from apr_backend_cpu.native import address as kernel
from apr_backend_cpu.run.arrays import address
from apr_backend_cpu.run.resources import resources
from apr_backend_cpu.run.team import program_words, team

Floats = NDArray[np.float32]
Refresh = Callable[[Any, Any], None]  # called with (ids, step) to update arguments before a step


LEAST_SCRATCH = 4 * SUPERBLOCK  # a superblock of float32, for any task that rounds


class Program:
    """Instructions, in order, and everything that has to live as long as they may run.

    `threads` is how many it runs on.
    """

    def __init__(self) -> None:
        self.threads = resources().threads
        self._rows: list[list[int]] = []
        self._kept: list[Any] = []
        self._rounding: dict[int, tuple[NDArray[np.int64] | None, NDArray[np.uint8], int]] = {}
        self._refreshers: list[Refresh] = []
        self._words: NDArray[np.uint64] | None = None
        self._scratch = LEAST_SCRATCH

    def add(self, task: str, tasks: int, *arguments: int, scratch: int = 0) -> NDArray[np.int64]:
        """Add an instruction; return its arguments, which may still change.

        `task` is a kernel's name; `scratch` is the bytes of scratch memory per task.
        """
        values = np.array(arguments, np.int64)
        self._kept.append(values)
        self._rows.append([kernel(task), tasks, address(values)])
        self._scratch = max(self._scratch, scratch)
        return values

    @property
    def last(self) -> int:
        """The number of the newest instruction, for `set_tasks`."""
        return len(self._rows) - 1

    def set_tasks(self, number: int, tasks: int) -> None:
        """Change the number of tasks of an instruction."""
        self._rows[number][1] = tasks
        if self._words is not None:
            self._words[COLUMNS * number + 1] = tasks

    def keep(self, *things: Any) -> None:
        """Keep objects alive whose addresses the instructions use."""
        self._kept += things

    def each_time(self, refresh: Refresh) -> None:
        """Call `refresh` before every run."""
        self._refreshers.append(refresh)

    def rounds(self, out: Floats, size: int) -> None:
        """Declare that the newest instruction can round its result rows to int8.

        Rows have `size` values. The instruction's first argument says where to; it is 0 until
        `records` is asked for. The buffer is allocated now: one allocated later might still be in
        use by something else when the instruction runs.
        """
        rows = out.size // size
        self._rounding[address(out)] = (self._kept[-1], self._buffer(rows, size), size)

    def records(self, x: Floats) -> NDArray[np.uint8]:
        """Return x [T, K] rounded to int8, once: by its instruction if that can, else a new one."""
        entry = self._rounding.get(address(x))
        if entry is None or entry[2] != x.shape[1]:
            records, blocks = self._buffer(*x.shape), -(-x.shape[1] // SUPERBLOCK)
            self.add(
                "quantize_task",
                x.shape[0] * blocks,
                address(x),
                4 * x.shape[1],
                x.shape[1],
                address(records),
                blocks,
            )
            self._rounding[address(x)] = (None, records, x.shape[1])
            return records
        producer, records, _ = entry
        if producer is not None:
            producer[0] = address(records)
        return records

    def _buffer(self, rows: int, size: int) -> NDArray[np.uint8]:
        buffer = new((rows, -(-size // SUPERBLOCK) * RECORD + ROW_GAP), np.uint8)
        if recorder() is None:
            self._kept.append(buffer)
        return buffer

    def forget(self, where: int) -> None:
        """Forget records of the memory at an address, which is about to be overwritten."""
        self._rounding.pop(where, None)

    def run(self, ids: Any = None, step: Any = None) -> None:
        """Run all instructions."""
        for refresh in self._refreshers:
            refresh(ids, step)
        size = len(self._rows)
        if self._words is None:
            self._words = program_words(size, self.threads)
            self._words[: COLUMNS * size] = np.array(self._rows, np.uint64).ravel()
        team(self.threads).run(self._words, size, self._scratch)


class _Local(threading.local):
    """The program a thread is building. `recorder` is a `recording.Recorder`."""

    program: Program | None = None
    recorder: Any = None


_local = _Local()


def recorder() -> Any:
    """Return the recorder of the step that this thread is recording, or None."""
    return _local.recorder


def set_recorder(recorder: Any) -> None:
    """Begin (a recorder) or end (None) recording on this thread."""
    _local.recorder = recorder


@contextmanager
def instructions(*arrays: Any) -> Iterator[Program]:
    """Yield the program to add to; unless recorded, it runs after the outermost block.

    `arrays` are those that the instructions use.
    """
    if _local.recorder is not None:
        program: Program = _local.recorder.program
        program.keep(*(a for a in arrays if type(a) is np.ndarray))
        yield program
    elif _local.program is not None:
        _local.program.keep(*arrays)
        yield _local.program
    else:
        _local.program = Program()
        try:
            _local.program.keep(*arrays)
            yield _local.program
            _local.program.run()
        finally:
            _local.program = None


def each_time(program: Program, refresh: Refresh, ids: Any = None, step: Any = None) -> None:
    """Call `refresh` now, with the current step, or before every run of a recorded one."""
    if _local.recorder is not None:
        program.each_time(refresh)
    else:
        refresh(ids, step)


def new(shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
    """Return an uninitialized array for a result."""
    if _local.recorder is None:
        return resources().memory.new(shape, dtype)
    buffer: NDArray[Any] = _local.recorder.new(shape, dtype)
    return buffer


@dataclass(frozen=True, slots=True)
class Strided:
    """Float32 rows [rows, size] of an array of two or three axes, each row contiguous.

    Row i begins at address + i // count * outer + i % count * inner, strides in bytes.
    """

    array: Floats
    address: int
    rows: int
    outer: int
    count: int
    inner: int
    size: int


def strided(x: Floats, whole: bool = False) -> Strided:
    """Describe the rows of x, copying it only if rows are not contiguous (`whole`: or x is not)."""
    fits = x.dtype == np.float32 and x.ndim in (2, 3)
    fits = fits and (x.flags.c_contiguous if whole else x.strides[-1] == 4 or x.shape[-1] == 1)
    if not fits:
        if _local.recorder is not None:
            _local.recorder.materialize()
        x = np.ascontiguousarray(x, np.float32).reshape(-1, *x.shape[max(1, x.ndim - 2) :])
    size = x.shape[-1]
    count, inner = (x.shape[1], x.strides[1]) if x.ndim == 3 else (1, 0)
    return Strided(x, address(x), x.shape[0] * count, x.strides[0], count, inner, size)


_constants: dict[tuple[int, Any], tuple[weakref.ref[Any], NDArray[Any]]] = {}


def constant(source: NDArray[Any], make: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[Any]:
    """Return make(source) of a weight, kept as long as the weight lives."""
    key = (id(source), make)
    entry = _constants.get(key)
    if entry is None or entry[0]() is not source:
        forget = _constants.pop  # bound now: at interpreter exit the global is None
        reference = weakref.ref(source, lambda _: forget(key, None))
        entry = _constants[key] = reference, make(source)
    return entry[1]
