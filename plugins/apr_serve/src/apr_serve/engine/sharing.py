"""Prompts that begin alike and arrive together: one is read, the others take over its state.

A waiting job gives its turns to the job it waits for, but does not depend on it: whatever happens
to the other, it continues from the state that was kept. If state is not kept, it reads for itself.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from apr_core.runtime import GRID
from apr_serve.engine.jobs import Job

LONG = 2 * GRID  # tokens; fewer are read twice rather than waited for


def readers(jobs: Sequence[Job]) -> dict[Job, Job]:
    """Return, for each job, the job that reads what it needs next: one ahead of it, or itself."""
    alike: dict[int, list[Job]] = {}
    sharing = [job for job in jobs if job.shares]
    for job in sharing if len(sharing) > 1 else ():
        alike.setdefault(job.marks[0], []).append(job)
    reader_of = {job: job for job in jobs}
    for group in alike.values():
        if len(group) > 1:
            reader_of |= {job: _reader(job, group) for job in group}
    return reader_of


def _reader(job: Job, group: Sequence[Job]) -> Job:
    while True:
        worth, _, ahead = max((_worth(job, other), -other.number, other) for other in group)
        if not worth:
            return job
        job = ahead  # which may itself wait


def _worth(job: Job, other: Job) -> int:
    """Return the tokens that `other` will have kept for `job` to take over."""
    if _rank(other) <= _rank(job) or not _keeps(other):
        return 0
    stop = _shared(job, other)
    worth = stop - job.position if other.position < stop else 0
    return worth if worth >= LONG else 0


def _rank(job: Job) -> tuple[int, int]:
    """Return a rank: further, then earlier. Jobs wait for higher ranks only: no cycles."""
    return job.position, -job.number


def _keeps(job: Job) -> bool:
    """Return True if the part of the prompt that was read was kept: there may be no room."""
    passed = bisect_right(job.snapshots_at, job.position)
    position = job.node.position if job.node else 0
    return not passed or position >= job.snapshots_at[passed - 1]


def _shared(job: Job, other: Job) -> int:
    """Return how many tokens of `job`, short of its last, it can share with `other`."""
    last = min(bisect_right(job.boundaries, len(job.ids) - 1), len(other.boundaries))
    equal = 0
    while equal < last:  # marks are equal as far as the prompts are
        middle = (equal + last + 1) // 2
        if job.marks[middle - 1] == other.marks[middle - 1]:
            equal = middle
        else:
            last = middle - 1
    count = bisect_right(other.snapshots_at, job.boundaries[equal - 1]) if equal else 0
    return other.snapshots_at[count - 1] if count else 0
