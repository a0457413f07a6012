"""`apr plugins enable` and `apr plugins disable`: a list in the configuration file."""

from __future__ import annotations

import codecs
import json
import os
import re
import tomllib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import click

from apr_core.cli.console import print_json
from apr_core.cli.plugins import installed_as, not_found, providing
from apr_core.discovery import PluginRow, allowed, installed, listed, normalized
from apr_core.errors import ConfigError, InputOutputError, NotFound
from apr_core.settings import Settings, config_path, config_text, read_settings, write_whole


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
    from apr_core.registry import get_registry

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
