"""Rows of plugins as this machine has them: whose backends cannot run here is unavailable.

The registry's own rows say what is installed. To know more, probes have to be asked, which is code
of plugins that may wake a driver: lists do so, and commands that run a model ask only backends they
may choose.
"""

from __future__ import annotations

from dataclasses import replace

from apr_core.declarations import Backend
from apr_core.errors import PluginBroken
from apr_core.plugin_rows import PluginRow, Status, one_line
from apr_core.registry import Owned, Registry


def rows_here(registry: Registry) -> tuple[PluginRow, ...]:
    """The registry's rows; one whose backends all refuse this machine says why."""
    return tuple(row_here(registry, row) for row in registry.plugins)


def row_here(registry: Registry, row: PluginRow) -> PluginRow:
    """The row, `unavailable` if none of its backends can run here, `broken` if none can say."""
    if row.status != "ok":
        return row
    answers = {
        declaration.name: _answer(registry, Owned(declaration, row.distribution, row.version))
        for declaration in row.declarations
        if isinstance(declaration, Backend)
    }
    statuses = [status for status, _ in answers.values()]
    if not answers or "ok" in statuses:
        return row
    status: Status = "unavailable" if "unavailable" in statuses else "broken"
    reasons = [reason for _, reason in answers.values()]
    if len(answers) > 1:
        reasons = [f"{name}: {reason}" for name, (_, reason) in answers.items()]
    return replace(row, status=status, reason=one_line("; ".join(reasons)))


def _answer(registry: Registry, owned: Owned) -> tuple[Status, str]:
    """Whether a backend can run here, and why not."""
    try:
        score, reason = registry.probe(owned)
    except PluginBroken as error:
        return "broken", error.message
    return ("ok" if score > 0 else "unavailable"), reason
