"""What this distribution provides. Imports nothing but apr_core's declarations."""

from __future__ import annotations

from apr_core.declarations import Command
from apr_core.hookspecs import hookimpl


@hookimpl
def apr_commands() -> list[Command]:
    """`apr bench`."""
    summary = "Measure how fast a file runs here."
    return [Command("bench", "apr_eval.bench:command", summary=summary)]
