"""The threads that run programs, and how they share a program's work.

A program is a table of instructions; an instruction is a number of independent tasks. Each thread
begins with its own stretch of an instruction's tasks, so that it streams memory in order, and then
helps the others with theirs; at the end of an instruction all meet. Which thread does a task never
changes its result.

Numba's own parallel loops start and end with every operation, some four hundred times a token, and
each start costs tens of microseconds; here threads start once a program and meet in less than one.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_backend_cpu.atomics import exchange, fetch_add, give_way, pause, read_word
from apr_backend_cpu.compiling import serial
from apr_backend_cpu.execute import task
from apr_backend_cpu.rows import words_at

U = np.uint64
LINE = 8  # words of a cache line
# the control block, in lines: what threads share besides the program's own counters
GENERATION, PROGRAM, SIZE, MET, PHASE, THREADS, BEFORE, PARKED = (LINE * i for i in range(8))
# MET counts arrivals and PHASE meetings, both since ever: a thread may still be about to leave the
# last meeting of one program when the next begins. BEFORE is PHASE when the program began.
OPCODE, TASKS, ARGUMENTS = range(3)  # columns of a program's table
COLUMNS = 3
SPINS = 2000  # looks at a word before the core is offered to others
PATIENCE = 20_000  # looks before a thread without work sleeps: about 0.3 ms


@serial
def _meet(control, phase):  # noqa: ANN001, ANN202
    """Wait until all threads have met `phase` times."""
    threads = words_at(control, PARKED)[THREADS]
    arrived = fetch_add(control + U(8 * MET), U(1)) + U(1)
    if arrived == phase * threads:
        exchange(control + U(8 * PHASE), phase)
        return
    looks = 0
    while read_word(control + U(8 * PHASE)) < phase:
        looks += 1
        if looks < SPINS:
            pause()
        else:
            give_way()


@serial
def _work(opcode, tasks, arguments, counters, me, threads):  # noqa: ANN001, ANN202
    """My stretch of an instruction's tasks, then what is left of the others'."""
    for turn in range(threads):
        whose = (me + U(turn)) % threads
        first, last = tasks * whose // threads, tasks * (whose + U(1)) // threads
        counter = counters + U(8) * whose
        while True:
            i = first + fetch_add(counter, U(1))
            if i >= last:
                break
            task(opcode, arguments, i)


@serial
def execute(control, me):  # noqa: ANN001, ANN201
    """Run the program of the control block as thread number `me`."""
    block = words_at(control, PARKED)
    size, threads, before = block[SIZE], block[THREADS], block[BEFORE]
    table = words_at(block[PROGRAM], size * U(COLUMNS))
    counters = block[PROGRAM] + size * U(8 * COLUMNS)  # [instructions, threads], zeros
    for i in range(size):
        at = U(i) * U(COLUMNS)
        tasks = table[at + U(TASKS)]
        _work(table[at + U(OPCODE)], tasks, table[at + U(ARGUMENTS)],
              counters + U(8) * U(i) * threads, me, threads)  # fmt: skip
        if threads > U(1):
            _meet(control, before + U(i) + U(1))


@serial
def _publish(control, program, size):  # noqa: ANN001, ANN202
    block = words_at(control, PARKED)
    block[PROGRAM], block[SIZE], block[BEFORE] = program, size, block[PHASE]
    fetch_add(control + U(8 * GENERATION), U(1))


@serial
def _await(control, me, seen):  # noqa: ANN001, ANN202
    """Run programs as they come; returns the last one's number when none came for a while."""
    parked = control + U(8) * (U(PARKED) + U(LINE) * me)
    looks = 0
    while True:
        generation = read_word(control + U(8 * GENERATION))
        if generation != seen:
            execute(control, me)
            seen, looks = generation, 0
        elif looks < PATIENCE:
            pause()
            looks += 1
        else:
            exchange(parked, U(1))
            if read_word(control + U(8 * GENERATION)) == seen or exchange(parked, U(0)) == U(0):
                return seen  # asleep, or woken at this very moment
            looks = 0


@serial
def _wake(control, me):  # noqa: ANN001, ANN202
    """Whether thread `me` sleeps and has to be woken."""
    return exchange(control + U(8) * (U(PARKED) + U(LINE) * me), U(0))


class Team:
    """`threads` threads, the calling one among them. One program at a time."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        words = np.zeros(PARKED + LINE * (threads + 1), np.uint64)
        skip = -(words.ctypes.data // 8) % LINE
        self._control = words[skip : skip + PARKED + LINE * threads]
        self._control[THREADS] = threads
        self._address = U(self._control.ctypes.data)
        self._running = threading.Lock()
        self._beds = [threading.Semaphore(0) for _ in range(threads)]
        for me in range(1, threads):
            threading.Thread(target=self._serve, args=(me,), daemon=True).start()

    def _serve(self, me: int) -> None:
        seen = 0
        while True:
            seen = _await(self._address, U(me), U(seen))
            self._beds[me].acquire()

    def run(self, program: NDArray[np.uint64], size: int) -> None:
        """Run a program: a table of `size` rows, then its counters, which are zeroed here."""
        with self._running:
            program[size * COLUMNS :] = 0
            _publish(self._address, U(program.ctypes.data), U(size))
            for me in range(1, self.threads):
                if _wake(self._address, U(me)):
                    self._beds[me].release()
            execute(self._address, U(0))


_teams: dict[int, Team] = {}


def team(threads: int) -> Team:
    """The team of that size. Teams that are not used sleep."""
    found = _teams.get(threads)
    if found is None:
        found = _teams[threads] = Team(threads)
    return found


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_teams.clear)  # a forked process has no such threads


def program_words(size: int, threads: int) -> Any:
    """Room for a program of `size` instructions."""
    return np.zeros(size * (COLUMNS + threads), np.uint64)
