"""Declarations of this distribution. Imports nothing but apr_core's declarations."""

from __future__ import annotations

from apr_core.plugin import Command, Source, hookimpl


@hookimpl
def apr_commands() -> list[Command]:
    """Declare the command `apr pull`."""
    summary = "Download a checkpoint from a model hub."
    return [Command("pull", "apr_hub.command:command", summary=summary)]


@hookimpl
def apr_sources() -> list[Source]:
    """Declare the source hf://ORG/NAME and hf://ORG/NAME@REVISION."""
    return [Source("hf", "apr_hub.source:fetch", summary="models of a hub, hf://ORG/NAME")]
