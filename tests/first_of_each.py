"""A plugin of pytest that runs each test with its first parameters only."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep one item of each test function."""
    items[:] = {item.nodeid.partition("[")[0]: item for item in reversed(items)}.values()
    items.reverse()
