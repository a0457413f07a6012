"""Declarations of this distribution. Imports nothing but apr_core's declarations."""

from __future__ import annotations

from apr_core.plugin import Command, hookimpl


@hookimpl
def apr_commands() -> list[Command]:
    """Declare the command `apr bench`."""
    summary = "Measure how fast a file runs here."
    return [Command("bench", "apr_eval.bench:command", summary=summary)]
