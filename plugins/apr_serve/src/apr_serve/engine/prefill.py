"""Prefill that does not stall running answers: forwards of several prompts, run in slices.

A forward of 512 tokens takes many times as long as a step of all running answers. Smaller forwards
would cost more in all; so forwards are paused between layers, and steps run in the pauses. That
changes no bits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from apr_core.runtime import CHUNK, GRID, LastLogits
from apr_serve.engine.jobs import Job, RowsJob

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from apr_core.runtime import Model

SHARE = 0.6  # of a step's time, given to prefill between two steps
RECENT = 15  # steps, and slices, that are measured
LEAST_S = 1e-9  # a token: the clock may not have moved


class PrefillController:
    """Measures recent steps and slices, and sizes the next ones by them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._steps: deque[float] = deque(maxlen=RECENT)
        self._slices: deque[float] = deque(maxlen=RECENT)  # seconds a token

    def stepped(self, seconds: float) -> None:
        """Record that a step of all running answers took `seconds`."""
        self._steps.append(seconds)

    def sliced(self, seconds: float, tokens: int) -> None:
        """Record that a slice of a forward of `tokens` tokens took `seconds`."""
        self._slices.append(seconds / tokens)

    @property
    def between_steps_s(self) -> float:
        """Seconds that prefill may take between two steps."""
        return SHARE * median(self._steps) if self._steps else 0.0

    @property
    def chunk_between_steps(self) -> int:
        """Tokens of a forward whose slices fit between steps."""
        if not self._slices:
            return 2 * GRID
        slow = sorted(self._slices)[3 * len(self._slices) // 4]  # mixers take longer than mlps
        fitting = int(self.between_steps_s / max(slow, LEAST_S)) // GRID * GRID
        return min(max(fitting, GRID), CHUNK)


class Forward:
    """One running forward over the next tokens of several prompts of one kind."""

    def __init__(self, model: Model, chosen: Sequence[tuple[Job, int]]) -> None:
        self.jobs = [job for job, _ in chosen]
        self._stops = [stop for _, stop in chosen]
        self._rows = [stop - job.position for job, stop in chosen]
        self._embeds = isinstance(self.jobs[0], RowsJob)
        parts = [
            (job.slot, job.ids[job.position : stop]) for job, stop in chosen if job.slot is not None
        ]
        self._slices = model.forward_slices(parts, hidden=self._embeds)
        self._result: LastLogits | NDArray[np.float32] | None = None  # or hidden [rows, n]

    def run(
        self, controller: PrefillController, seconds: float | None, interrupted: Callable[[], bool]
    ) -> bool:
        """Run slices for about `seconds`, or to the end if None; return True if the forward ended.

        At least one slice runs. Between slices `interrupted` is asked whether to return.
        """
        started = before = controller.clock()
        longest = 0.0
        while True:
            try:
                next(self._slices)
            except StopIteration as end:
                self._result = end.value
                return True
            now = controller.clock()
            controller.sliced(now - before, sum(self._rows))
            longest, before = max(longest, now - before), now
            if interrupted() or (seconds is not None and now - started + longest > seconds):
                return False

    def results(self) -> Iterator[tuple[Job, int, LastLogits | NDArray[np.float32]]]:
        """Yield each job, its new position, and logits for its answers or hidden states."""
        assert self._result is not None
        start = 0
        for i, (job, stop) in enumerate(zip(self.jobs, self._stops, strict=True)):
            if isinstance(self._result, LastLogits):
                yield job, stop, self._result.of(i, job.answers_wanted)
            else:
                yield job, stop, self._result[start : start + self._rows[i]]
                start += self._rows[i]

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for its results any more."""
        return all(job.cancelled for job in self.jobs)

    def close(self) -> None:
        """Abandon it. The state in its slots is unusable."""
        self._slices.close()


def take_turns(jobs: list[Job], room: int, readers: Mapping[Job, Job]) -> list[tuple[Job, int]]:
    """Return the jobs to prefill next and up to which token: about `room` tokens, fair to owners.

    `jobs` are in the order of their turns; a job that had its turn goes to the end. What an owner
    does not need, others get. `readers` maps each job to the one that reads for it (`sharing.py`).
    """
    kind = isinstance(jobs[0], RowsJob)
    turns = {job: readers[job] for job in jobs if isinstance(job, RowsJob) == kind}
    chosen = _shares(*_order(turns), room)
    served = {job for job, _ in chosen}
    for job in jobs:
        job.passed_over = readers[job] not in served
    jobs.sort(key=lambda job: not job.passed_over)
    return chosen


def _shares(order: Sequence[Job], owners: int, room: int) -> list[tuple[Job, int]]:
    """Return jobs and up to where each is read; the first `owners` jobs have equal shares."""
    chosen: list[tuple[Job, int]] = []
    for job in order:
        share = max(room // max(owners, 1), GRID)
        owners -= 1
        stop = job.stop_within(share)
        if chosen and stop - job.position > room:
            break
        chosen.append((job, stop))
        room -= stop - job.position
    return chosen


def _order(turns: Mapping[Job, Job]) -> tuple[list[Job], int]:
    """Return the first job of each owner, shortest first, then all others; and the count of owners.

    Jobs that were passed over come before those, in the order they wait: otherwise short prompts
    could keep a long one waiting for ever. A job gives its turn to the job that reads for it.
    """
    first: dict[str, Job] = {}
    for job in turns:
        first.setdefault(job.owner, job)
    waiting = [turns[job] for job in first.values() if job.passed_over]
    others = [turns[job] for job in first.values() if not job.passed_over]
    leading = dict.fromkeys([*waiting, *sorted(others, key=lambda j: j.next_stop() - j.position)])
    return list(dict.fromkeys([*leading, *turns.values()])), len(leading)
