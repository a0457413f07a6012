"""Modules whose names are imported from elsewhere on first use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(
    module: str, where: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a module: {module: names with spaces between}."""
    owners = {name: owner for owner, names in where.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in owners:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        try:
            return getattr(import_module(owners[name]), name)
        except AttributeError:  # a module of a package, which nobody has imported yet
            return import_module(f"{owners[name]}.{name}")

    return get, lambda: sorted(owners)
