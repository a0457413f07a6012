"""Rows of plugins as this machine has them: whose backends cannot run here is unavailable.

To know that, probes have to be asked, which is code of plugins that may wake a driver: lists do so,
and commands that run a model ask only backends they may choose.
"""

from __future__ import annotations

from dataclasses import replace

from apr_core.declarations import Backend
from apr_core.discovery.collecting import Status, one_line
from apr_core.discovery.rows import PluginRow
from apr_core.errors import PluginBroken
from apr_core.registry import Owned, Registry


def rows_here(registry: Registry) -> tuple[PluginRow, ...]:
    """The registry's rows; `unavailable` if no backend can run here, `broken` if none can say."""
    return tuple(_row_here(registry, row) for row in registry.plugins)


def _row_here(registry: Registry, row: PluginRow) -> PluginRow:
    backends = [d for d in row.declarations if isinstance(d, Backend)]
    if row.status != "ok" or not backends:
        return row
    answers = [_answer(registry, Owned(d, row.distribution, row.version)) for d in backends]
    statuses = [status for status, _ in answers]
    if "ok" in statuses:
        return row
    reasons = [reason for _, reason in answers]
    if len(answers) > 1:
        reasons = [f"{d.name}: {reason}" for d, reason in zip(backends, reasons, strict=True)]
    status: Status = "unavailable" if "unavailable" in statuses else "broken"
    return replace(row, status=status, reason=one_line("; ".join(reasons)))


def _answer(registry: Registry, owned: Owned) -> tuple[Status, str]:
    """Whether a backend can run here, and why not."""
    try:
        score, reason = registry.probe(owned)
    except PluginBroken as error:
        return "broken", error.message
    return ("ok" if score > 0 else "unavailable"), reason
