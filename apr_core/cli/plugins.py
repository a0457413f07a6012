"""`apr plugins`: what is installed, what it provides, and why something does not work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import click

from apr_core.cli import LazyGroup, Table
from apr_core.cli.console import diverted, print_json, print_table
from apr_core.declarations import record_of
from apr_core.discovery import PluginRow, normalized, normalized_id
from apr_core.errors import NotFound
from apr_core.messages import did_you_mean, published
from apr_core.registry import get_registry

OWN: Table = {
    "list": ("apr_core.cli.plugins:list_", "List plugins: version, status, what they provide."),
    "show": ("apr_core.cli.plugins:show", "Show everything about one plugin."),
    "enable": ("apr_core.cli.plugins_switch:enable", "Use a disabled plugin again."),
    "disable": ("apr_core.cli.plugins_switch:disable", "Leave a plugin out until it is enabled."),
}


@click.group(cls=LazyGroup, table=OWN, group="plugins")
def command() -> None:
    """List, check, enable, disable and create plugins."""


def _provides(row: PluginRow) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for d in row.declarations:
        names.setdefault(d.kind, []).append(d.full_name)
    return names


def _as_dict(row: PluginRow) -> dict[str, Any]:
    return {
        "name": row.name, "distribution": row.distribution, "version": row.version,
        "entry_point": row.entry_point, "module": row.module, "status": row.status,
        "reason": row.reason, "provides": _provides(row),
    }  # fmt: skip


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--refresh", is_flag=True, help="Re-import every plugin, ignoring the cache.")
def list_(as_json: bool, refresh: bool) -> None:
    """One line per plugin: version, status, what it provides."""
    with diverted():  # probes are code of plugins
        rows = get_registry(refresh).rows_here()
    if as_json:
        print_json([_as_dict(row) for row in rows])
        return
    if not rows:
        click.echo("No plugins are installed. A plugin is a pip package, for example:")
        wellknown = sorted({*published("backend").values(), *published("quantizer").values()})
        click.echo(f"  pip install {' '.join(wellknown)}")
        return
    table = [(r.distribution, r.version, r.status, _summary(r) or r.reason) for r in rows]
    print_table(table, ("plugin", "version", "status", "provides"))
    for row in rows:
        if row.status != "ok":
            click.echo(f"! {row.distribution}: {row.reason}")


def _summary(row: PluginRow) -> str:
    return "; ".join(f"{kind} {', '.join(names)}" for kind, names in _provides(row).items())


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, as_json: bool) -> None:
    """All about one plugin. NAME is a distribution, an entry point or something it provides."""
    with diverted():
        rows = rows_called(name, get_registry().rows_here())
    if as_json:
        print_json([_as_dict(row) | {"declarations": _details(row)} for row in rows])
        return
    for row in rows:
        _print(row)


def _details(row: PluginRow) -> list[dict[str, Any]]:
    return [record_of(d) for d in row.declarations]


def _print(row: PluginRow) -> None:
    click.echo(f"{row.distribution} {row.version}  (entry point {row.entry_point} = {row.module})")
    click.echo(f"  status   {row.status}{': ' + row.reason if row.reason else ''}")
    for record in _details(row):
        click.echo(f"  {record['kind']} {record['name']}: {record['summary']}")
        for key, value in record.items():
            if key not in ("kind", "name", "summary") and value not in ("", [], None):
                click.echo(f"    {key}: {_flat(value) if isinstance(value, list) else value}")


def _flat(values: list[Any]) -> str:
    return ", ".join(v if isinstance(v, str) else " = ".join(map(str, v)) for v in values)


def installed_as(name: str, rows: Sequence[PluginRow]) -> list[PluginRow]:
    """Return the rows of a distribution or an entry point of that name; empty if there is none.

    A disabled or broken plugin declares nothing, so it has no further names.
    """
    of_distribution = [row for row in rows if row.distribution == normalized(name)]
    return of_distribution or [
        row for row in rows if name == row.entry_point or normalized_id(name) == row.name
    ]


def providing(name: str, rows: Iterable[PluginRow]) -> list[PluginRow]:
    """Return the rows that declare the name, bare or as `distribution:name`."""
    wanted = {name, normalized_id(name)}
    return [
        row
        for row in rows
        if any(wanted & {d.name, f"{row.distribution}:{d.name}"} for d in row.declarations)
    ]


def rows_called(name: str, rows: Sequence[PluginRow]) -> list[PluginRow]:
    """Return the rows that NAME means. Raises NotFound with names that are close."""
    meant = installed_as(name, rows) or providing(name, rows)
    if not meant:
        provided = (d.name for row in rows for d in row.declarations)
        raise not_found("no installed plugin is called or provides", name, rows, provided)
    return meant


def not_found(
    what: str, name: str, rows: Sequence[PluginRow], more: Iterable[str] = ()
) -> NotFound:
    """Return the error for an unknown name, with the names that come close."""
    known = {*(row.distribution for row in rows), *(row.entry_point for row in rows), *more}
    hints = [did_you_mean(name, known)]
    hints += [  # these declare nothing, so what they would provide is unknown
        f"{row.distribution} is {row.status} and may provide it: {row.reason}"
        for row in rows
        if row.status in ("broken", "incompatible", "disabled")
    ]
    hint = "\n".join(filter(None, hints)) or "`apr plugins list` shows them all."
    return NotFound(f"{what} {name!r}", hint)
