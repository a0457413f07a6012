"""Reading prompts without keeping answers waiting: forwards of several prompts, run in slices.

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

SHARE = 0.6  # of a step's time that goes to prefill between two steps
RECENT = 15  # steps, and slices, that count
LEAST_S = 1e-9  # a token: a clock may not have moved


class PrefillController:
    """What steps and slices have taken of late by a clock, and the sizes that follow."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._steps: deque[float] = deque(maxlen=RECENT)
        self._slices: deque[float] = deque(maxlen=RECENT)  # seconds a token

    def stepped(self, seconds: float) -> None:
        """A step of all running answers took so long."""
        self._steps.append(seconds)

    def sliced(self, seconds: float, tokens: int) -> None:
        """A slice of a forward of so many tokens took so long."""
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
    """One forward over the next tokens of some prompts, all of a kind, under way."""

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
        """Run slices, for about so many seconds or to the end; whether it ended.

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
        """Each job, where its prompt stands now, and logits for its answers or hidden states."""
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
        """Whether nobody waits for it any more."""
        return all(job.cancelled for job in self.jobs)

    def close(self) -> None:
        """Drop it. What its slots hold is of no use."""
        self._slices.close()


def take_turns(jobs: list[Job], room: int, readers: Mapping[Job, Job]) -> list[tuple[Job, int]]:
    """Whose prompts come next and up to where: about `room` tokens, shared by the owners.

    `jobs` are in the order of their turns; whose turn it was goes to the end. What an owner does
    not need, others get. `readers` says who reads for whom (`sharing.py`).
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
    """Jobs and up to where each is read; the first so many have equal shares."""
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
    """The first job of each owner, what is soon done first; then all others. And how many owners.

    But before those come who were passed over, as they wait: or one short prompt after the other
    would keep a long one waiting for ever. A job's turn is that of whom it lets read for it.
    """
    first: dict[str, Job] = {}
    for job in turns:
        first.setdefault(job.owner, job)
    waiting = [turns[job] for job in first.values() if job.passed_over]
    others = [turns[job] for job in first.values() if not job.passed_over]
    leading = dict.fromkeys([*waiting, *sorted(others, key=lambda j: j.next_stop() - j.position)])
    return list(dict.fromkeys([*leading, *turns.values()])), len(leading)
