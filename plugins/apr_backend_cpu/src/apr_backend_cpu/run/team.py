"""The threads that run programs; `kernels/team.py` is how they share one.

Numba's own parallel loops start and end with every operation, some four hundred times per token,
and each start costs tens of microseconds; here threads start once per program and meet in less
than one.
"""

from __future__ import annotations

import os
import threading

import numpy as np
from numpy.typing import NDArray

from apr_backend_cpu.constants import COLUMNS, LINE, PARKED, SCRATCH, THREADS
from apr_backend_cpu.native import function
from apr_backend_cpu.run.arrays import address

ALIGNED = 64


class Team:
    """A team of `threads` threads, including the calling one. One program at a time."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        words = np.zeros(PARKED + LINE * (threads + 1), np.uint64)
        skip = -(address(words) // 8) % LINE
        self._control = words[skip : skip + PARKED + LINE * threads]
        self._control[THREADS] = threads
        self._at = address(self._control)
        self._scratch: list[NDArray[np.uint8]] = []
        self._scratch_starts = np.zeros(threads, np.uint64)
        self._control[SCRATCH] = address(self._scratch_starts)
        self._scratch_bytes = -1
        self._execute, self._publish = function("execute", 2), function("publish", 3)
        self._wake = function("wake", 2)
        self._running = threading.Lock()
        self._beds = [threading.Semaphore(0) for _ in range(threads)]
        for me in range(1, threads):
            threading.Thread(target=self._serve, args=(me,), daemon=True).start()

    def _serve(self, me: int) -> None:
        await_programs, seen = function("await_programs", 3), 0
        while True:
            seen = await_programs(self._at, me, seen)
            self._beds[me].acquire()

    def run(self, program: NDArray[np.uint64], size: int, scratch: int) -> None:
        """Run a program: a table of `size` rows, then its counters, which are zeroed here.

        Each thread has `scratch` bytes, aligned to a cache line, for the scratch memory of a task.
        """
        with self._running:
            if scratch > self._scratch_bytes:
                self._grow(scratch)
            program[size * COLUMNS :] = 0
            self._publish(self._at, address(program), size)
            for me in range(1, self.threads):
                if self._wake(self._at, me):
                    self._beds[me].release()
            self._execute(self._at, 0)

    def _grow(self, scratch: int) -> None:
        self._scratch = [np.empty(scratch + ALIGNED, np.uint8) for _ in range(self.threads)]
        self._scratch_starts[:] = [
            -(-address(block) // ALIGNED) * ALIGNED for block in self._scratch
        ]
        self._scratch_bytes = scratch


_teams: dict[int, Team] = {}
_starting = threading.Lock()


def team(threads: int) -> Team:
    """Return the team of that size, shared by all models with as many threads. Idle ones sleep."""
    ready = _teams.get(threads)
    if ready is None:
        with _starting:
            ready = _teams.get(threads) or Team(threads)
            _teams[threads] = ready
    return ready


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_teams.clear)  # a forked process has no such threads


def program_words(size: int, threads: int) -> NDArray[np.uint64]:
    """Return an array for a program of `size` instructions."""
    return np.zeros(size * (COLUMNS + threads), np.uint64)
