"""Entries of the configuration file that name no installed plugin: they do nothing, silently."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from apr_core.runtime import PluginRow, Registry, Settings, allowed, normalized, normalized_id


def unmatched(settings: Settings, rows: Sequence[PluginRow], registry: Registry) -> Iterator[str]:
    """Yield a line for each entry of `disable` and `prefer` without effect, and the reason."""
    for entry in settings.disable:
        if not any(_disables(entry, row) for row in rows):
            yield (
                f"plugins.disable: {entry!r} is not installed; "
                f"`apr plugins enable {entry}` takes it off the list"
            )
    provided = {
        f"{row.distribution}:{d.name}" for row in registry.plugins for d in row.declarations
    }
    for entry in settings.prefer:
        if normalized_id(entry) not in provided:
            yield f"plugins.prefer: {entry!r} prefers nothing: {_reason(entry, rows, registry)}"


def _disables(entry: str, plugin: PluginRow) -> bool:
    """Return True if the entry alone would disable the plugin, even a broken installation of it."""
    row = allowed(replace(plugin, status="ok"), Settings(disable=(entry,)), {})
    return row.status == "disabled"


def _reason(entry: str, rows: Sequence[PluginRow], registry: Registry) -> str:
    distribution, _, name = entry.partition(":")
    if normalized(distribution) not in {row.distribution for row in rows}:
        return f"{distribution} is not installed"
    unused = [
        row
        for row in registry.plugins
        if row.distribution == normalized(distribution) and row.status not in ("ok", "unavailable")
    ]
    if unused:
        return f"{distribution} is {unused[0].status}"
    return f"{distribution} does not provide {name!r}"
