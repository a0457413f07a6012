"""Waiting requests: owners take turns, however many requests each of them has."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """First come, first served within an owner; the owner with the fewest running goes first.

    Of owners with equally few, the one whose last turn is longest ago.
    """

    def __init__(self, owner_of: Callable[[T], str]) -> None:
        self._owner_of = owner_of
        self._waiting: dict[str, deque[T]] = {}  # owners in the order of their turns

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def owners(self) -> set[str]:
        """The owners who have something waiting."""
        return set(self._waiting)

    def push(self, item: T) -> None:
        """Queue an item at the end of its owner's line."""
        self._waiting.setdefault(self._owner_of(item), deque()).append(item)

    def next(self, running: Mapping[str, int]) -> T | None:
        """Return the next item without removing it. `running` counts by owner."""
        if not self._waiting:
            return None
        owner = min(self._waiting, key=lambda name: running.get(name, 0))  # the first of equals
        return self._waiting[owner][0]

    def take(self, item: T) -> None:
        """Remove an item whose turn came: its owner goes to the end of the round."""
        owner = self._owner_of(item)
        line = self._waiting.pop(owner)
        line.remove(item)
        if line:
            self._waiting[owner] = line

    def remove(self, condition: Callable[[T], bool]) -> list[T]:
        """Remove all items that meet a condition, and return them."""
        items = [item for line in self._waiting.values() for item in line if condition(item)]
        for item in items:
            line = self._waiting[self._owner_of(item)]
            line.remove(item)
            if not line:
                del self._waiting[self._owner_of(item)]
        return items
