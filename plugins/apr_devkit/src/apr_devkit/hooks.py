"""What this distribution provides. Imports nothing but apr_core's declarations."""

from __future__ import annotations

from apr_core.plugin import Command, hookimpl


@hookimpl
def apr_commands() -> list[Command]:
    """`apr doctor`, and commands of `apr plugins` for authors."""
    return [
        Command("doctor", "apr_devkit.cli.doctor:command", summary="Diagnose the installation."),
        Command("check", "apr_devkit.cli.check:check", group="plugins",
                summary="Run the conformance checks of a plugin."),
        Command("new", "apr_devkit.cli.new:new", group="plugins",
                summary="Create a plugin: a package that works."),
        Command("tiny", "apr_devkit.cli.tiny:tiny", group="plugins",
                summary="Write a tiny checkpoint of a family."),
        Command("freeze", "apr_devkit.cli.freeze:freeze", group="plugins",
                summary="Print requirement lines of the plugins."),
    ]  # fmt: skip
