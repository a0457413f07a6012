"""`apr plugins new`: creates a plugin package that works as it is."""

from __future__ import annotations

import ast
import builtins
import keyword
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click

from apr_core.plugin import AprError, UsageError
from apr_core.runtime import COMMANDS, Registry, get_registry, print_json
from apr_devkit.scaffold import KINDS, PluginNames, files_of, names_for, write_plugin


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
    help="With kernel: the backend it is for. Default: the best one on NumPy arrays.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def new(kind: str, name: str, directory: Path | None, backend: str | None, as_json: bool) -> None:
    """Create a plugin: a package that works, with a KIND called NAME.

    It has an entry point, a small implementation to change, the conformance tests of its kind, a
    README and a CI file. Its tests pass as it is.
    """
    names = _names(kind, name, backend)
    directory = directory or Path(names.distribution)
    notes = list(_notes(names))
    files = [str(path.relative_to(directory)) for path in write_plugin(names, directory)]
    commands = _next(names, directory)
    if as_json:
        print_json(
            {
                "kind": kind, "name": names.name, "distribution": names.distribution,
                "package": names.package, "directory": str(directory), "files": files,
                "next": commands, "notes": notes,
            }
        )  # fmt: skip
        return
    click.echo(f"wrote {names.distribution}, {kind} {names.name!r}, to {directory}:")
    for line in files:
        click.echo(f"  {line}")
    for note in notes:
        click.echo(f"{click.style('note:', fg='yellow')} {note}", err=True)
    click.echo("next:")
    for line in commands:
        click.echo(f"  {line}")


def _names(kind: str, name: str, backend: str | None) -> PluginNames:
    """Return the names of a package. Raises UsageError, or PluginError for an unknown backend."""
    if backend and kind != "kernel":
        raise UsageError("--for goes with kernel only", "It names the backend a kernel is for.")
    if kind == "kernel":
        registry = get_registry()
        backend = backend or _numpy_backend(registry)
        backend = registry.get("backend", backend).declaration.name
    names = names_for(kind, name, backend or "")
    if kind == "command" and names.name in COMMANDS:
        raise UsageError(f"apr has a command {names.name!r} of its own", "Choose another name.")
    taken = _otherwise_meant(names)
    if taken:
        raise UsageError(
            f"{names.name!r} is no name for the {kind}: its class would be called "
            f"{names.class_name}, which is {taken}",
            "Choose another name.",
        )
    return names


def _otherwise_meant(names: PluginNames) -> str:
    """Return what the class's name already means where it is used; "" if nothing."""
    for path, data in files_of(names).items():
        if not re.search(rf"^class {names.class_name}[(:]".encode(), data, re.MULTILINE):
            continue
        if keyword.iskeyword(names.class_name):
            return "a keyword of Python"
        if hasattr(builtins, names.class_name):
            return "built into Python"
        if list(_bound(ast.parse(data))).count(names.class_name) > 1:
            return f"something else in {Path(path).name}"
    return ""


def _bound(module: ast.Module) -> Iterator[str]:
    """Yield the names a module binds at its top level, once for each binding."""
    for node in module.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (each.asname or each.name for each in node.names)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def _next(names: PluginNames, directory: Path) -> list[str]:
    place = shlex.quote(str(directory))
    enter = [] if directory.resolve() == Path.cwd() else [f"cd {place}"]
    return [*enter, "pip install -e '.[dev]'", "pytest", f"apr plugins check {names.name}"]


def _numpy_backend(registry: Registry) -> str:
    """Return the best backend that works on NumPy arrays, as the template's kernel does."""
    import numpy as np

    for name in registry.backends_by_score():
        try:
            if registry.load(registry.get("backend", name)).xp is np:
                return name
        except (AprError, AttributeError):
            continue
    raise UsageError(
        "no installed backend works on NumPy arrays, as the kernel that is written does",
        "Say with --for which backend it is for, and change the kernel to its arrays.",
    )


def _notes(names: PluginNames) -> Iterator[str]:
    """Yield what will conflict with the new plugin if it is installed beside the others."""
    try:
        registry = get_registry()
    except AprError as error:  # writing a package needs no plugin
        yield f"installed plugins cannot be looked at: {error.message}"
        return
    owners = [
        o.distribution
        for o in registry.declarations(names.kind)
        if o.declaration.name == names.name and o.distribution != names.distribution
    ]
    if owners:
        yield (
            f"{names.kind} {names.name!r} is already provided by {', '.join(owners)}: with both "
            "installed, the name alone means neither. Better choose another one"
        )
