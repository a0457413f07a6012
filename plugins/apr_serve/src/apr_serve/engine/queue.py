"""Waiting requests: tenants take turns, however many requests each of them has."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """First come, first served within a tenant; the tenant with the fewest running goes first.

    Of tenants with equally few, the one whose last turn is longest ago.
    """

    def __init__(self, tenant_of: Callable[[T], str]) -> None:
        self._tenant_of = tenant_of
        self._waiting: dict[str, deque[T]] = {}  # tenants in the order of their turns

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def tenants(self) -> set[str]:
        """The tenants who have something waiting."""
        return set(self._waiting)

    def push(self, item: T) -> None:
        """Queue an item at the end of its tenant's line."""
        self._waiting.setdefault(self._tenant_of(item), deque()).append(item)

    def next(self, running: Mapping[str, int]) -> T | None:
        """Return the next item without removing it. `running` counts by tenant."""
        if not self._waiting:
            return None
        tenant = min(self._waiting, key=lambda name: running.get(name, 0))  # the first of equals
        return self._waiting[tenant][0]

    def take(self, item: T) -> None:
        """Remove an item whose turn came: its tenant goes to the end of the round."""
        tenant = self._tenant_of(item)
        line = self._waiting.pop(tenant)
        line.remove(item)
        if line:
            self._waiting[tenant] = line

    def remove(self, condition: Callable[[T], bool]) -> list[T]:
        """Remove all items that meet a condition, and return them."""
        items = [item for line in self._waiting.values() for item in line if condition(item)]
        for item in items:
            line = self._waiting[self._tenant_of(item)]
            line.remove(item)
            if not line:
                del self._waiting[self._tenant_of(item)]
        return items
