"""`apr plugins enable` and `apr plugins disable`: a list in the configuration file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from apr_core.cli.console import print_json
from apr_core.cli.plugin_names import installed_as, not_found, providing
from apr_core.discovery.entry_points import EntryPoint, installed, normalized, normalized_id
from apr_core.discovery.rows import PluginRow, refused, row
from apr_core.errors import NotFound
from apr_core.settings import Settings, config_path, read_settings

SECTION, KEY = "plugins", "disable"


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def disable(name: str, as_json: bool) -> None:
    """Leave a plugin out of everything. NAME is a distribution or an entry point.

    This is kept in the configuration file (`apr doctor` says where), until `apr plugins enable`.
    """
    founds, before = _installed_plugins(name), read_settings().disable
    on = [f for f in founds if not _switched_off(f, before)]
    whole = normalized(name) in {f.distribution for f in on}
    add = {f.distribution if whole else f.name for f in on}
    path = _change(add=sorted(add)) if add else config_path()
    _report(as_json, "disabled", founds, before, path)


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def enable(name: str, as_json: bool) -> None:
    """Use a plugin again that `apr plugins disable` left out.

    NAME is a distribution or an entry point, or any name that stands in the configuration file.
    """
    before = read_settings().disable
    stale = {entry for entry in before if normalized(entry) == normalized(name)}
    founds = _matching(name) if stale else _installed_plugins(name)
    entries = stale | {e for e in before if any(_names(e) & f.names for f in founds)}
    path = _change(remove=entries) if entries else config_path()
    _report(as_json, "enabled", founds, before, path, stale)


def _change(add: Iterable[str] = (), remove: Iterable[str] = ()) -> Path:
    from apr_core.settings_file import change_list

    return change_list(SECTION, KEY, add=tuple(add), remove=tuple(remove))


def _matching(name: str) -> list[EntryPoint]:
    """The installed entry points of that name; a broken or disabled plugin has them as well."""
    founds = installed()
    names = {row.name for row in installed_as(name, [row(f, "ok") for f in founds])}
    return [f for f in founds if f.name in names]


def _installed_plugins(name: str) -> list[EntryPoint]:
    """The same. Raises NotFound, with the plugin to name instead if NAME is what one provides."""
    founds = _matching(name)
    if founds:
        return founds
    from apr_core.registry import get_registry

    rows: Sequence[PluginRow] = get_registry().plugins
    owners = sorted({row.distribution for row in providing(name, rows)})
    if owners:
        raise NotFound(
            f"{name!r} is what {' and '.join(owners)} provides, not a plugin",
            "\n".join(f"Name the plugin: apr plugins disable {owner}" for owner in owners),
        )
    raise not_found("no installed plugin is called", name, rows)


def _names(entry: str) -> set[str]:
    """An entry of the list, as it is compared with a plugin's names."""
    return {entry, normalized_id(entry), normalized(entry)}


def _switched_off(found: EntryPoint, listed: Iterable[str]) -> bool:
    return any(_names(entry) & found.names for entry in listed)


def _report(
    as_json: bool, done: str, founds: Sequence[EntryPoint], before: Sequence[str], path: Path,
    stale: Iterable[str] = (),
) -> None:  # fmt: skip
    """Say what was changed, and where the environment says otherwise."""
    after = read_settings(path).disable
    off = {f.name for f in installed() if _switched_off(f, before)}
    changed = sorted(off ^ {f.name for f in installed() if _switched_off(f, after)}) or [*stale]
    notes = _overrides(done, founds)
    if as_json:
        report: dict[str, Any] = {
            "action": done, "plugins": [f.name for f in founds], "changed": changed,
            "config": str(path), "notes": notes,
        }  # fmt: skip
        print_json(report)
        return
    if changed:
        click.echo(f"{done}: {', '.join(changed)} (in {path})")
    else:
        click.echo(f"already {done}: {', '.join(f.name for f in founds)}")
    for note in notes:
        click.echo(f"{click.style('note:', fg='yellow')} {note}", err=True)


def _overrides(done: str, founds: Sequence[EntryPoint]) -> list[str]:
    """What environment variables make of these plugins, whatever the file says."""
    if os.environ.get("APR_NO_PLUGINS") == "1":
        return ["APR_NO_PLUGINS=1 leaves all plugins out"]
    notes = []
    for found in founds:
        row = refused(found, Settings(), os.environ)
        if row and row.status == "disabled":
            still = "stays disabled" if done == "enabled" else "is disabled anyway"
            notes.append(f"{found.name} {still} here: {row.reason}")
    return notes
