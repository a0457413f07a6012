"""Which plugin a NAME on the command line means: a distribution, an entry point, what it provides.

A disabled or broken plugin declares nothing, so it is found by its first two names only.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from apr_core.discovery.entry_points import normalized, normalized_id
from apr_core.discovery.rows import PluginRow
from apr_core.errors import NotFound


def installed_as(name: str, rows: Iterable[PluginRow]) -> list[PluginRow]:
    """The entry points of the distribution, or the entry point, of that name; empty if none."""
    rows = list(rows)
    of_distribution = [row for row in rows if row.distribution == normalized(name)]
    return of_distribution or [
        row for row in rows if name == row.entry_point or normalized_id(name) == row.name
    ]


def providing(name: str, rows: Iterable[PluginRow]) -> list[PluginRow]:
    """The entry points that declare something of that name, bare or as `distribution:name`."""
    wanted = {name, normalized_id(name)}
    return [
        row
        for row in rows
        if any(wanted & {d.name, f"{row.distribution}:{d.name}"} for d in row.declarations)
    ]


def rows_called(name: str, rows: Sequence[PluginRow]) -> list[PluginRow]:
    """The entry points NAME means. Raises NotFound with names that are close."""
    found = installed_as(name, rows) or providing(name, rows)
    if not found:
        provided = (d.name for row in rows for d in row.declarations)
        raise not_found("no installed plugin is called or provides", name, rows, provided)
    return found


def not_found(
    what: str, name: str, rows: Sequence[PluginRow], more: Iterable[str] = ()
) -> NotFound:
    """The error for a name that nothing has, with the names that come close."""
    known = {*(row.distribution for row in rows), *(row.entry_point for row in rows), *more}
    close = difflib.get_close_matches(name, sorted(known), 3)
    hints = [f"Did you mean {' or '.join(close)}?"] if close else []
    for row in rows:  # these declare nothing, so nobody knows what they would provide
        if row.status in ("broken", "incompatible", "disabled"):
            hints.append(f"{row.distribution} is {row.status} and may provide it: {row.reason}")
    return NotFound(f"{what} {name!r}", "\n".join(hints) or "`apr plugins list` shows them all.")
