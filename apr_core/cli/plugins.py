"""`apr plugins`: what is installed, what it provides, and why something does not work."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import click

from apr_core.cli.console import print_json, print_table
from apr_core.plugin_rows import PluginRow
from apr_core.probing import rows_here
from apr_core.published import published
from apr_core.registry import get_registry

# in modules of their own, imported when they run: listing plugins should not pay for them
LATER: dict[str, tuple[str, str]] = {
    "check": ("apr_core.cli.plugins_check", "Run the conformance checks of a plugin."),
    "new": ("apr_core.cli.plugins_new", "Write a new plugin: a package that works."),
    "enable": ("apr_core.cli.plugins_switch", "Use a plugin again that was disabled."),
    "disable": ("apr_core.cli.plugins_switch", "Leave a plugin out, until it is enabled again."),
    "freeze": ("apr_core.cli.plugins_freeze", "Print requirement lines of the plugins."),
}


class _Group(click.Group):
    """The subcommands of this module, and those of LATER."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which somebody meets them."""
        return [*self.commands, *LATER]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the subcommand's module if it has one."""
        if cmd_name in LATER:
            found: click.Command = getattr(import_module(LATER[cmd_name][0]), cmd_name)
            return found
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line a subcommand, without importing any."""
        rows = [(name, each.get_short_help_str(80)) for name, each in self.commands.items()]
        rows += [(name, text) for name, (_, text) in LATER.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=_Group)
def command() -> None:
    """List plugins, check them, switch them on and off, begin a new one."""


def _provides(row: PluginRow) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for d in row.declarations:
        found.setdefault(d.kind, []).append(d.name)
    return found


def _as_dict(row: PluginRow) -> dict[str, Any]:
    return {
        "name": row.name, "distribution": row.distribution, "version": row.version,
        "entry_point": row.entry_point, "module": row.module, "status": row.status,
        "reason": row.reason, "provides": _provides(row),
    }  # fmt: skip


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--refresh", is_flag=True, help="Look at every plugin again; remember nothing.")
def list_(as_json: bool, refresh: bool) -> None:
    """One line a plugin: version, status, what it provides."""
    rows = rows_here(get_registry(refresh))
    if as_json:
        print_json([_as_dict(row) for row in rows])
        return
    if not rows:
        click.echo("No plugins are installed. A plugin is a pip package, for example:")
        wellknown = sorted({*published("backend").values(), *published("quantizer").values()})
        click.echo(f"  pip install {' '.join(wellknown)}")
        return
    table = [
        (r.distribution, r.version, r.status, _summary(_provides(r)) or r.reason) for r in rows
    ]
    print_table(table, ("plugin", "version", "status", "provides"))
    for row in rows:
        if row.status != "ok":
            click.echo(f"! {row.distribution}: {row.reason}")


def _summary(provides: dict[str, Iterable[str]] | dict[str, list[str]]) -> str:
    return "; ".join(f"{kind} {', '.join(names)}" for kind, names in provides.items())


@command.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, as_json: bool) -> None:
    """All about one plugin. NAME is a distribution, an entry point or something it provides."""
    from apr_core.cli.plugin_names import rows_called

    rows = rows_called(name, rows_here(get_registry()))
    if as_json:
        print_json([_as_dict(row) | {"declarations": _details(row)} for row in rows])
        return
    for row in rows:
        _print(row)


def _details(row: PluginRow) -> list[dict[str, Any]]:
    return [
        {"kind": d.kind, **{f: getattr(d, f) for f in d.__dataclass_fields__ if f != "_"}}
        for d in row.declarations
    ]


def _print(row: PluginRow) -> None:
    click.echo(f"{row.distribution} {row.version}  (entry point {row.entry_point} = {row.module})")
    click.echo(f"  status   {row.status}{': ' + row.reason if row.reason else ''}")
    for detail in _details(row):
        click.echo(f"  {detail['kind']} {detail['name']}: {detail['summary']}")
        for key, value in detail.items():
            if key not in ("kind", "name", "summary") and value not in ("", (), None):
                click.echo(f"    {key}: {value if not isinstance(value, tuple) else _flat(value)}")


def _flat(values: tuple[Any, ...]) -> str:
    return ", ".join(v if isinstance(v, str) else " = ".join(map(str, v)) for v in values)
