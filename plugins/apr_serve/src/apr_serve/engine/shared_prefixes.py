"""Prompts that begin alike and arrive together: one is read, the others take over its state.

A waiting group gives its turns to the group it waits for, but does not depend on it: whatever
happens to the other, it continues from the state that was kept, or reads for itself.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from apr_core.runtime import GRID
from apr_serve.engine.groups import SequenceGroup

LONG = 2 * GRID  # tokens; fewer are read twice rather than waited for


def readers(groups: Sequence[SequenceGroup]) -> dict[SequenceGroup, SequenceGroup]:
    """Return, for each group, the one that reads what it needs next: one ahead of it, or itself."""
    alike: dict[int, list[SequenceGroup]] = {}
    sharing = [group for group in groups if group.shares]
    for group in sharing if len(sharing) > 1 else ():
        alike.setdefault(group.marks[0], []).append(group)
    reader_of = {group: group for group in groups}
    for candidates in alike.values():
        if len(candidates) > 1:
            reader_of |= {group: _reader(group, candidates) for group in candidates}
    return reader_of


def _reader(group: SequenceGroup, candidates: Sequence[SequenceGroup]) -> SequenceGroup:
    while True:
        worth, _, ahead = max((_worth(group, other), -other.number, other) for other in candidates)
        if not worth:
            return group
        group = ahead  # which may itself wait


def _worth(group: SequenceGroup, other: SequenceGroup) -> int:
    """Return the tokens that `other` will have kept for `group` to take over."""
    if _rank(other) <= _rank(group) or not _keeps(other):
        return 0
    stop = _shared(group, other)
    worth = stop - group.position if other.position < stop else 0
    return worth if worth >= LONG else 0


def _rank(group: SequenceGroup) -> tuple[int, int]:
    """Return a rank: further, then earlier. Jobs wait for higher ranks only: no cycles."""
    return group.position, -group.number


def _keeps(group: SequenceGroup) -> bool:
    """Return True if what was read of the prompt was kept: it may not have fitted the cache."""
    passed = bisect_right(group.snapshots_at, group.position)
    position = group.node.position if group.node else 0
    return not passed or position >= group.snapshots_at[passed - 1]


def _shared(group: SequenceGroup, other: SequenceGroup) -> int:
    """Return how many tokens of `group`, short of its last, it can share with `other`."""
    last = min(bisect_right(group.boundaries, len(group.ids) - 1), len(other.boundaries))
    equal = 0
    while equal < last:  # marks are equal as far as the prompts are
        middle = (equal + last + 1) // 2
        if group.marks[middle - 1] == other.marks[middle - 1]:
            equal = middle
        else:
            last = middle - 1
    count = bisect_right(other.snapshots_at, group.boundaries[equal - 1]) if equal else 0
    return other.snapshots_at[count - 1] if count else 0
