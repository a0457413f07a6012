"""`apr plugins new`: a package of one's own that works from the first minute."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import click

from apr_core.cli.console import print_json
from apr_core.errors import AprError, UsageError
from apr_core.registry import get_registry
from apr_core.scaffold import KINDS, PluginNames, names_for, write_plugin


@click.command()
@click.argument("kind", type=click.Choice([*KINDS]))
@click.argument("name")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    metavar="D",
    help="The directory to write, which may not hold anything. Default: ./apr-KIND-NAME.",
)
@click.option(
    "--for",
    "backend",
    metavar="BACKEND",
    help="With kernel: the backend it is for. Default: what fits this machine best.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def new(kind: str, name: str, directory: Path | None, backend: str | None, as_json: bool) -> None:
    """Write a new plugin: an installable package with a working KIND called NAME.

    It has an entry point, a small implementation to change, the conformance tests of its kind, a
    README and a CI file. Its tests pass as it is.
    """
    if backend and kind != "kernel":
        raise UsageError("--for goes with kernel only", "It names the backend a kernel is for.")
    if kind == "kernel" and not backend:
        backend = get_registry().best_backend()
    names = names_for(kind, name, backend or "")
    directory = directory or Path(names.distribution)
    notes = list(_notes(names))
    files = write_plugin(names, directory)
    commands = _next(names, directory)
    if as_json:
        print_json(
            {
                "kind": kind, "name": names.name, "distribution": names.distribution,
                "package": names.package, "directory": str(directory),
                "files": [str(path.relative_to(directory)) for path in files],
                "next": commands, "notes": notes,
            }
        )  # fmt: skip
        return
    click.echo(f"wrote {names.distribution}, {kind} {names.name!r}, to {directory}:")
    for path in files:
        click.echo(f"  {path.relative_to(directory)}")
    for note in notes:
        click.echo(f"{click.style('note:', fg='yellow')} {note}", err=True)
    click.echo("next:")
    for line in commands:
        click.echo(f"  {line}")


def _next(names: PluginNames, directory: Path) -> list[str]:
    place = shlex.quote(str(directory))
    enter = [] if directory.resolve() == Path.cwd() else [f"cd {place}"]
    return [*enter, "pip install -e '.[dev]'", "pytest", f"apr plugins check {names.name}"]


def _notes(names: PluginNames) -> Iterator[str]:
    """What will stand in the way of the new plugin here, if it is installed beside the others."""
    from apr_core.registry import get_registry

    try:
        registry = get_registry()
    except AprError as error:  # writing a package needs no plugin
        yield f"installed plugins cannot be looked at: {error.message}"
        return
    owners = [
        o.distribution for o in registry.declarations(names.kind)
        if o.declaration.name == names.name and o.distribution != names.distribution
    ]  # fmt: skip
    if owners:
        yield (
            f"{names.kind} {names.name!r} is already provided by {', '.join(owners)}: with both "
            "installed, the name alone means neither. Better choose another one"
        )
    known = {o.declaration.name for o in registry.declarations("backend")}
    if names.backend and names.backend not in known:
        yield f"no installed plugin provides the backend {names.backend!r} that it is for"
