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
from apr_serve.engine.groups import HiddenStatesGroup, SequenceGroup

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

    def __init__(self, model: Model, chunks: Sequence[tuple[SequenceGroup, int]]) -> None:
        self.groups = [group for group, _ in chunks]
        self._stops = [stop for _, stop in chunks]
        self._rows = [stop - group.position for group, stop in chunks]
        self._embeds = isinstance(self.groups[0], HiddenStatesGroup)
        parts = [
            (group.slot, group.ids[group.position : stop])
            for group, stop in chunks
            if group.slot is not None
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

    def results(self) -> Iterator[tuple[SequenceGroup, int, LastLogits | NDArray[np.float32]]]:
        """Yield each group, its new position, and logits for its answers or hidden states."""
        assert self._result is not None
        start = 0
        for i, (group, stop) in enumerate(zip(self.groups, self._stops, strict=True)):
            if isinstance(self._result, LastLogits):
                yield group, stop, self._result.of(i, group.answers_wanted)
            else:
                yield group, stop, self._result[start : start + self._rows[i]]
                start += self._rows[i]

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for its results any more."""
        return all(group.cancelled for group in self.groups)

    def close(self) -> None:
        """Abandon it. The state in its slots is unusable."""
        self._slices.close()


def take_turns(
    groups: list[SequenceGroup], token_budget: int, readers: Mapping[SequenceGroup, SequenceGroup]
) -> list[tuple[SequenceGroup, int]]:
    """Return the groups to prefill next and up to which token, fair to tenants.

    They get about `token_budget` tokens in all; what a tenant does not need, others get. `groups`
    are in the order of their turns; a group that had its turn goes to the end. `readers` maps each
    group to the one that reads for it (`shared_prefixes.py`).
    """
    kind = isinstance(groups[0], HiddenStatesGroup)
    turns = {
        group: readers[group] for group in groups if isinstance(group, HiddenStatesGroup) == kind
    }
    chunks = _shares(*_order(turns), token_budget)
    served = {group for group, _ in chunks}
    for group in groups:
        group.passed_over = readers[group] not in served
    groups.sort(key=lambda group: not group.passed_over)
    return chunks


def _shares(
    order: Sequence[SequenceGroup], tenants: int, token_budget: int
) -> list[tuple[SequenceGroup, int]]:
    """Return groups and up to where each is read; the first `tenants` groups have equal shares."""
    chunks: list[tuple[SequenceGroup, int]] = []
    for group in order:
        share = max(token_budget // max(tenants, 1), GRID)
        tenants -= 1
        stop = group.stop_within(share)
        if chunks and stop - group.position > token_budget:
            break
        chunks.append((group, stop))
        token_budget -= stop - group.position
    return chunks


def _order(turns: Mapping[SequenceGroup, SequenceGroup]) -> tuple[list[SequenceGroup], int]:
    """Return each tenant's first group, shortest first, then all others; and the count of tenants.

    Groups that were passed over come before those, in the order they wait: otherwise short prompts
    could keep a long one waiting for ever. A group gives its turn to the group that reads for it.
    """
    first: dict[str, SequenceGroup] = {}
    for group in turns:
        first.setdefault(group.tenant, group)
    waiting = [turns[group] for group in first.values() if group.passed_over]
    others = [turns[group] for group in first.values() if not group.passed_over]
    leading = dict.fromkeys([*waiting, *sorted(others, key=lambda j: j.next_stop() - j.position)])
    return list(dict.fromkeys([*leading, *turns.values()])), len(leading)
