"""Prompts that begin alike and come together: one is read, the others take over what is kept of it.

Who waits gives its turns to the prompt it waits for, and depends on nothing: whatever becomes of
the other, it goes on from what is kept. As soon as something is not, it reads itself.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from apr_core.runtime import GRID
from apr_serve.engine.jobs import Job

LONG = 2 * GRID  # tokens; less is rather read twice


def readers(jobs: Sequence[Job]) -> dict[Job, Job]:
    """Of each job, who reads what it needs next: another that is ahead of it, or the job itself."""
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
        job = ahead  # which may wait itself


def _worth(job: Job, other: Job) -> int:
    """Tokens that the other will have kept for a job to take over."""
    if _rank(other) <= _rank(job) or not _keeps(other):
        return 0
    stop = _shared(job, other)
    worth = stop - job.position if other.position < stop else 0
    return worth if worth >= LONG else 0


def _rank(job: Job) -> tuple[int, int]:
    """Who is further, and of those who came first. Nobody waits for a lower rank: no circles."""
    return job.position, -job.number


def _keeps(job: Job) -> bool:
    """Whether what was read of a prompt was kept: there may be no room."""
    passed = bisect_right(job.snapshots_at, job.position)
    position = job.node.position if job.node else 0
    return not passed or position >= job.snapshots_at[passed - 1]


def _shared(job: Job, other: Job) -> int:
    """How far two prompts are equal, as the other is kept, with a token of the first left."""
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
