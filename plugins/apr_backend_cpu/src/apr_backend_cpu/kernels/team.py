"""How threads share a program: a table of instructions, each with independent tasks.

Each thread begins with its own contiguous share of an instruction's tasks, so that it streams
memory in order, then helps the others with theirs; at the end of an instruction all threads meet.
A task gives the same result on any thread.
"""

from __future__ import annotations

import numpy as np

from apr_backend_cpu.constants import (
    ARGUMENTS,
    BEFORE_PHASE,
    COLUMNS,
    FUNCTION,
    GENERATION,
    LINE,
    MET,
    PARKED,
    PHASE,
    PROGRAM,
    SCRATCH,
    SIZE,
    TASKS,
    THREADS,
)
from apr_backend_cpu.kernels.source import helper, kernel
from apr_backend_cpu.kernels.vector.atomics import exchange, fetch_add, give_way, pause, read_word
from apr_backend_cpu.kernels.vector.memory import call, words_at

U = np.uint64
# MET counts arrivals and PHASE meetings, and neither is reset: a thread may not have left the
# last meeting of one program when the next begins. BEFORE_PHASE is PHASE when the program began.
SPINS = 2000  # polls of a word before yielding the core
PATIENCE = 20_000  # polls before an idle thread sleeps: about 0.3 ms


@helper
def _meet(control, phase):
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


@helper
def _work(function, tasks, arguments, counters, me, threads, scratch):
    """Run this thread's share of an instruction's tasks, then what is left of the others'."""
    for turn in range(threads):
        whose = (me + U(turn)) % threads
        first, last = tasks * whose // threads, tasks * (whose + U(1)) // threads
        counter = counters + U(8) * whose
        while True:
            i = first + fetch_add(counter, U(1))
            if i >= last:
                break
            call(function, (arguments, i, scratch))


@kernel("pp")
def execute(control, me):
    """Run the program of the control block as thread number `me`."""
    block = words_at(control, PARKED)
    size, threads, before = block[SIZE], block[THREADS], block[BEFORE_PHASE]
    table = words_at(block[PROGRAM], size * U(COLUMNS))
    counters = block[PROGRAM] + size * U(8 * COLUMNS)  # [instructions, threads], zeros
    scratch = words_at(block[SCRATCH], threads)[me]
    for i in range(size):
        at = U(i) * U(COLUMNS)
        _work(
            table[at + U(FUNCTION)],
            table[at + U(TASKS)],
            table[at + U(ARGUMENTS)],
            counters + U(8) * U(i) * threads,
            me,
            threads,
            scratch,
        )
        if threads > U(1):
            _meet(control, before + U(i) + U(1))


@kernel("ppp")
def publish(control, program, size):
    """Give the team a program of `size` instructions."""
    block = words_at(control, PARKED)
    block[PROGRAM], block[SIZE], block[BEFORE_PHASE] = program, size, block[PHASE]
    fetch_add(control + U(8 * GENERATION), U(1))


@kernel("ppp", "p")
def await_programs(control, me, seen):
    """Run programs as they come; return the last one's number after a while without one."""
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
                return seen  # asleep, or just being woken
            looks = 0


@kernel("pp", "p")
def wake(control, me):
    """Return whether thread `me` sleeps and has to be woken; from now on it counts as awake."""
    return exchange(control + U(8) * (U(PARKED) + U(LINE) * me), U(0))
