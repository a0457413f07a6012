"""What this distribution provides. Imports nothing but apr_core's declarations."""

from __future__ import annotations

from apr_core.plugin import Command, Source, hookimpl


@hookimpl
def apr_sources() -> list[Source]:
    """The bundled model, as demo://sums."""
    return [Source("demo", "apr_demo.source:fetch", summary="demo://sums, a small trained model")]


@hookimpl
def apr_commands() -> list[Command]:
    """`apr demo`."""
    summary = "The whole pipeline on a small bundled model."
    return [Command("demo", "apr_demo.command:command", summary=summary)]
