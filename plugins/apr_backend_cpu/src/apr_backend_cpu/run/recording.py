"""Recording a step once and running it again: no Python between the ops of a token.

While a step is recorded, results are `Pending`: arrays whose values do not exist yet. Ops add their
instructions; reshaping and slicing only make views. Any other access to values makes the recorder
`materialize`: what was recorded runs at once, and the rest of the step runs op by op. Such a step
gives the same result, but is not replayed later. A load predicts which ops from other packages do
that; other cases are reported to `note`.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_backend_cpu.run.arrays import address
from apr_backend_cpu.run.program import Program, recorder, set_recorder
from apr_backend_cpu.run.resources import Resources, resources
from apr_core.plugin import Unread, plain, toucher

MOST = 64  # sequences in a recorded step; larger steps are bound by arithmetic
KEPT = 8  # recorded steps, one for each number of sequences
ALIGNED = 64
StepFunction = Callable[[NDArray[np.int64], Any], NDArray[np.float32]]


class Pending(Unread):
    """A result of a recorded op. Reading its values ends the recording."""

    def touched(self, reads: bool = False) -> None:
        """Note an access that needs values now."""
        materialize()


def materialize() -> None:
    """Run what this thread has recorded, if anything, and stop recording."""
    current = recorder()
    if current is not None:
        current.materialize()


class Recorder:
    """A step while it is recorded. Memory of results that are no longer referenced is reused."""

    def __init__(self, ids: NDArray[np.int64], step: Any) -> None:
        self.program, self.ids, self.step = Program(), ids, step
        self.materialized_by = ""  # where values were needed
        self._free: dict[int, list[NDArray[np.uint8]]] = {}

    def new(self, shape: tuple[int, ...], dtype: Any) -> Pending:
        """Return a pending array for a result."""
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        spare = self._free.setdefault(nbytes, [])
        if spare:
            buffer = spare.pop()
        else:
            whole = np.empty(nbytes + ALIGNED, np.uint8)
            skip = -address(whole) % ALIGNED
            buffer = whole[skip : skip + nbytes]
            self.program.keep(buffer)
        result: Pending = buffer.view(dtype).reshape(shape).view(Pending)
        weakref.finalize(result, self._released, buffer)
        return result

    def _released(self, buffer: NDArray[np.uint8]) -> None:
        self.program.forget(address(buffer))
        self._free[buffer.nbytes].append(buffer)

    def materialize(self) -> None:
        """Run what was recorded; the rest of the step runs op by op."""
        if recorder() is self:
            set_recorder(None)
            name, _, place = toucher(__name__)
            self.materialized_by = f"{name} ({place})"
            self.program.run(self.ids, self.step)


class Replay:
    """A recorded step: new ids and positions in, logits out."""

    def __init__(self, recorded: Recorder, result: Pending) -> None:
        self._program, self._ids = recorded.program, recorded.ids
        self._positions, self._result = recorded.step.positions, result.view(np.ndarray)
        self._kept = result  # or its memory would be freed
        self._memory = resources().memory

    def __call__(self, ids: NDArray[np.int64], step: Any) -> NDArray[np.float32]:
        """Return a copy of the step's result [rows, ...]."""
        self._ids[:], self._positions[:] = ids, step.host_positions
        self._program.run(ids, step)
        result = self._memory.new(self._result.shape, np.float32)
        result[:] = self._result
        return result


class Captured:
    """A step function, recorded for each number of sequences that advance by one token.

    Recordings run on `own` threads and memory, else on the default ones.
    """

    def __init__(
        self,
        function: StepFunction,
        note: Callable[[str], None] = lambda line: None,
        own: Resources | None = None,
    ) -> None:
        self._function, self._note = function, note
        self._record = own.bound(self._recorded) if own else self._recorded
        self._replays: OrderedDict[int, Replay] = OrderedDict()
        self._given_up: set[int] = set()

    def __call__(self, ids: NDArray[np.int64], step: Any) -> NDArray[np.float32]:
        """Return what the function returns."""
        count = len(step.segments)
        if count != step.n_rows or count > MOST or count in self._given_up:
            return self._function(ids, step)
        replay = self._replays.get(count)
        if replay is None:
            return self._record(ids, step)
        self._replays.move_to_end(count)
        return replay(ids, step)

    def _recorded(self, ids: NDArray[np.int64], step: Any) -> NDArray[np.float32]:
        own_ids, positions = ids.copy(), step.host_positions.copy()
        now = Recorder(own_ids, replace(step, positions=positions, host_positions=positions))
        set_recorder(now)
        try:
            result = self._function(own_ids, now.step)
        finally:
            set_recorder(None)
        if now.materialized_by or not isinstance(result, Pending):
            self._given_up.add(len(step.segments))
            self._note(f"values are needed in {now.materialized_by or 'what a step gives'}")
            values: NDArray[np.float32] = plain(result)
            return values
        replay = self._replays[len(step.segments)] = Replay(now, result)
        if len(self._replays) > KEPT:
            self._replays.popitem(last=False)
        return replay(ids, step)
