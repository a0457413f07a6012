"""Declarations of this distribution. Imports nothing but apr_core's declarations."""

from __future__ import annotations

from apr_core.plugin import Command, Source, hookimpl


@hookimpl
def apr_sources() -> list[Source]:
    """Declare the bundled model as the source demo://sums."""
    return [Source("demo", "apr_demo.source:fetch", summary="demo://sums, a small trained model")]


@hookimpl
def apr_commands() -> list[Command]:
    """Declare the command `apr demo`."""
    summary = "The whole pipeline on a small bundled model."
    return [Command("demo", "apr_demo.command:command", summary=summary)]
