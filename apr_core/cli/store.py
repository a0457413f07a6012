"""`apr list` and `apr rm`: the model store; and how other commands get a model into it."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apr_core.cli import console
from apr_core.cli.console import human_bytes, print_json, printable
from apr_core.errors import AprError

if TYPE_CHECKING:
    from apr_core.importing.source import CheckpointSource


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(as_json: bool) -> None:
    """List the models in the store: what was imported to be run."""
    from apr_core.importing.store import entries
    from apr_core.settings import store_dir

    models = []
    for name, path in entries().items():
        with suppress(FileNotFoundError):  # removed meanwhile
            models.append({"name": name} | _facts(path))
    total = sum(model["bytes"] for model in models)
    if as_json:
        print_json({"folder": str(store_dir()), "bytes": total, "models": models})
        return
    rows = [
        [m["name"], m.get("family", "damaged"), m.get("recipe"), human_bytes(m["bytes"]), m["used"]]
        for m in models
    ]
    if rows:
        header = ("name", "family", "recipe", "size", "used")
        console.print_table([[printable(cell or "") for cell in row] for row in rows], header)
    count = f"{len(models)} model{'' if len(models) == 1 else 's'}"
    click.echo(f"{count}, {human_bytes(total)} in {printable(store_dir())}")


def _facts(path: Path) -> dict[str, Any]:
    """Return what a file of the store says about itself; where it is damaged, what is wrong."""
    from apr_core.format import AprFile

    status = path.stat()
    used = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(status.st_mtime))
    facts = {"path": str(path), "bytes": status.st_size, "used": used}
    try:
        with AprFile.open(path) as file:
            keys = {"family": "apr.family", "recipe": "apr.recipe", "source": "source"}
            return facts | {key: file.metadata.get(name) for key, name in keys.items()}
    except AprError as error:
        return facts | {"damaged": error.message}


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def rm_command(names: tuple[str, ...]) -> None:
    """Remove models from the store, and nothing else."""
    from apr_core.importing.store import remove

    for path, size in remove(names).items():
        click.echo(f"removed {printable(path.name)}, {human_bytes(size)} freed")


def stored(name: str) -> Path:
    """Return the file of a model that is no path of an .apr file, imported if need be."""
    from apr_core.importing.store import find_model

    console.show_notices()
    with console.download_progress() as progress:
        return find_model(name, _import, progress)


def _import(source: CheckpointSource, target: Path, recipe: str) -> None:
    from apr_core.cli.import_ import print_summary, run_import

    name = printable(source.origin)
    click.echo(f"importing {name} into the model store, recipe {recipe}", err=True)
    with console.diverted():  # stdout is for what the command prints
        print_summary(run_import(source, target, recipe))
