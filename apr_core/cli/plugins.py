"""`apr plugins`: what is installed, what it provides, why something does not work; and switches.

`enable` and `disable` change a list in the configuration file.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import tomllib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from apr_core.cli import LazyGroup, Table
from apr_core.cli.console import diverted, print_json, print_table
from apr_core.declarations import record_of
from apr_core.discovery import PluginRow, allowed, installed, listed, normalized, normalized_id
from apr_core.errors import ConfigError, InputOutputError, NotFound
from apr_core.messages import did_you_mean, published
from apr_core.registry import get_registry
from apr_core.settings import Settings, config_path, config_text, read_settings, write_whole

OWN: Table = {
    "list": ("apr_core.cli.plugins:list_", "List plugins: version, status, what they provide."),
    "show": ("apr_core.cli.plugins:show", "Show everything about one plugin."),
    "enable": ("apr_core.cli.plugins:enable", "Use a disabled plugin again."),
    "disable": ("apr_core.cli.plugins:disable", "Leave a plugin out until it is enabled."),
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
        details = ([record_of(d) for d in row.declarations] for row in rows)
        print_json([_as_dict(r) | {"declarations": d} for r, d in zip(rows, details, strict=True)])
        return
    for row in rows:
        _print(row)


def _print(row: PluginRow) -> None:
    click.echo(f"{row.distribution} {row.version}  (entry point {row.entry_point} = {row.module})")
    click.echo(f"  status   {row.status}{': ' + row.reason if row.reason else ''}")
    for record in map(record_of, row.declarations):
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


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def disable(name: str, as_json: bool) -> None:
    """Leave a plugin out of everything. NAME is a distribution or an entry point.

    This is kept in the configuration file (`apr doctor` says where), until `apr plugins enable`.
    """
    plugins, before = _installed_plugins(name), read_settings().disable
    on = [p for p in plugins if not _switched_off(p, before)]
    whole = normalized(name) in {p.distribution for p in on}
    add = {p.distribution if whole else p.name for p in on}
    path = change_disabled(add=sorted(add)) if add else config_path()
    _report(as_json, "disabled", plugins, before, path)


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def enable(name: str, as_json: bool) -> None:
    """Use a plugin again that `apr plugins disable` left out.

    NAME is a distribution or an entry point, or any name listed in the configuration file.
    """
    before = read_settings().disable
    stale = {entry for entry in before if normalized(entry) == normalized(name)}
    plugins = installed_as(name, installed()) if stale else _installed_plugins(name)
    entries = stale | {e for e in before if any(listed(e) & p.names for p in plugins)}
    path = change_disabled(remove=entries) if entries else config_path()
    _report(as_json, "enabled", plugins, before, path, stale)


def _installed_plugins(name: str) -> list[PluginRow]:
    """Return the installed rows of that name, broken or disabled ones included.

    Raises NotFound; if NAME is something a plugin provides, it says which plugin to name.
    """
    if named := installed_as(name, installed()):
        return named
    rows = get_registry().plugins
    owners = sorted({row.distribution for row in providing(name, rows)})
    if owners:
        raise NotFound(
            f"{name!r} is what {' and '.join(owners)} provides, not a plugin",
            "\n".join(f"Name the plugin: apr plugins disable {owner}" for owner in owners),
        )
    raise not_found("no installed plugin is called", name, rows)


def _switched_off(plugin: PluginRow, entries: Iterable[str]) -> bool:
    return any(listed(entry) & plugin.names for entry in entries)


def _report(
    as_json: bool,
    done: str,
    plugins: Sequence[PluginRow],
    before: Sequence[str],
    path: Path,
    stale: Iterable[str] = (),
) -> None:
    """Report what was changed, and where environment variables override it."""
    after = read_settings(path).disable
    changed = [
        p.name for p in installed() if _switched_off(p, before) != _switched_off(p, after)
    ] or [*stale]
    names = [p.name for p in plugins]
    notes = _overrides(done, plugins)
    if as_json:
        report = {
            "action": done, "plugins": names, "changed": changed, "config": str(path),
            "notes": notes,
        }  # fmt: skip
        print_json(report)
        return
    if changed:
        click.echo(f"{done}: {', '.join(changed)} (in {path})")
    else:
        click.echo(f"already {done}: {', '.join(names)}")
    for note in notes:
        click.echo(f"{click.style('note:', fg='yellow')} {note}", err=True)


def _overrides(done: str, plugins: Sequence[PluginRow]) -> list[str]:
    """Return how environment variables override the file for these plugins, one line each."""
    if os.environ.get("APR_NO_PLUGINS") == "1":
        return ["APR_NO_PLUGINS=1 leaves all plugins out"]
    still = "stays disabled" if done == "enabled" else "is disabled anyway"
    rows = [allowed(p, Settings(), os.environ) for p in plugins]
    return [f"{r.name} {still} here: {r.reason}" for r in rows if r.status == "disabled"]


def change_disabled(
    add: Collection[str] = (), remove: Collection[str] = (), path: Path | None = None
) -> Path:
    """Add names to `[plugins] disable` and remove others; return the file's path.

    Comments, order and spacing stay: the text is edited in place, parsed again to check it, and
    only then replaces the file. Raises ConfigError if the file is not valid, InputOutputError if it
    cannot be written; in both cases it is untouched.
    """
    path = path or config_path()
    read_settings(path)  # refuses what is wrong before it is written back
    try:
        if path.exists() and not path.is_file():  # /dev/null, which reads as no settings
            raise ConfigError(f"{path} keeps nothing", "Name a file in APR_CONFIG.")
        text = config_text(path)
        wanted = tomllib.loads(text)
        values = [v for v in wanted.get("plugins", {}).get("disable", ()) if v not in remove]
        new = [name for name in dict.fromkeys(add) if name not in values]
        wanted.setdefault("plugins", {})["disable"] = values + new
        changed = _edited(text, new, remove)
        try:
            safe = tomllib.loads(changed) == wanted
        except tomllib.TOMLDecodeError:
            safe = False
        if not safe:
            raise ConfigError(
                f"{path} is written in a way that cannot be changed safely; it is untouched",
                f"Change it by hand:\n  [plugins]\n  disable = {values + new}",
            )
        marked = path.exists() and path.read_bytes().startswith(codecs.BOM_UTF8)
        content = changed.encode("utf-8-sig" if marked else "utf-8")
        write_whole(Path(os.path.realpath(path)), content)
    except OSError as error:
        raise InputOutputError(
            f"{path} cannot be written: {error.strerror or error}",
            "Make it writable, or put disable under [plugins] into a file of your own and name "
            "that in APR_CONFIG.",
        ) from error
    return path


def _edited(text: str, add: Collection[str], remove: Collection[str]) -> str:
    """Return the TOML text with the list changed; everything else, comments too, is unchanged."""
    name = r"[\"']?disable[\"']?[ \t]*=[ \t]*\["
    head = re.search(r"(?m)^[ \t]*\[[ \t]*plugins[ \t]*\][^\r\n]*", text)
    after = re.compile(r"(?m)^[ \t]*\[").search(text, head.end()) if head else None
    stop = after.start() if after else len(text)
    item = re.search(rf"(?m)^[ \t]*plugins[ \t]*\.[ \t]*{name}", text)
    if head:
        item = re.compile(rf"(?m)^[ \t]*{name}").search(text, head.end(), stop) or item
    end = "\r\n" if "\r\n" in text else "\n"
    if item is None:
        line = f"disable = {json.dumps([*add], ensure_ascii=False)}"
        if head:
            return f"{text[: head.end()]}{end}{line}{text[head.end() :]}"
        gap = "" if not text or text.endswith("\n") else end
        return f"{text}{gap}[plugins]{end}{line}{end}"
    close = text.find("]", item.end())
    values = text[item.end() : close]
    for entry in remove:
        quoted = rf"[\"']{re.escape(entry)}[\"'][ \t]*,?[ \t]*"
        values = re.sub(rf"(?m)^[ \t]*{quoted}\r?\n|{quoted}", "", values)
    for entry in add:
        bare = re.sub(r"#[^\n]*", "", values).rstrip()
        comma = "" if not bare or bare.endswith(",") else ", "
        values += comma + json.dumps(entry, ensure_ascii=False)
    return text[: item.end()] + values + text[close:]
