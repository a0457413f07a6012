"""`apr pull`: a checkpoint from a model hub."""

from __future__ import annotations

import sys
from typing import Any

import click

from apr_core.runtime import human_bytes, print_json


@click.command()
@click.argument("model")
@click.option("--force", is_flag=True, help="Download again what is already there.")
@click.option("--offline", is_flag=True, help="Use only what is already there.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: str, force: bool, offline: bool, as_json: bool) -> None:
    """Download a checkpoint from a model hub. MODEL is hf://ORG/NAME or hf://ORG/NAME@REVISION.

    Only the files a text model needs; a download that was cut off is continued, and every file is
    checked against the hub's hash. HF_TOKEN, HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are honoured.
    """
    from apr_core.runtime import get_registry
    from apr_hub.ids import parse_id
    from apr_hub.pulling import pull

    registry, id_ = get_registry(), parse_id(model)
    with _Bars() as bars:
        pulled = pull(model, offline=offline, force=force, reporter=bars)
    if as_json:
        print_json({"model": str(id_), "path": str(pulled.path), "commit": pulled.commit,
                    "files": pulled.files})  # fmt: skip
        return
    name = id_.repo.rpartition("/")[2]
    click.echo(f"{id_} at {pulled.commit[:12]}, {human_bytes(sum(pulled.files.values()))}:")
    for file, size in pulled.files.items():
        click.echo(f"  {file}  {human_bytes(size)}")
    click.echo(f"in {pulled.path}")
    recipe = registry.recommended_recipe()
    options = f"--quantize {recipe} -o {name}-{recipe}.apr" if recipe else f"-o {name}.apr"
    click.echo(f"next: apr import {id_} {options}")


class _Bars:
    """A bar for the whole pull on a terminal; a line per file elsewhere."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._named: set[str] = set()

    def __enter__(self) -> _Bars:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("pulling", total=None)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, total: int) -> None:
        """Set the total in bytes."""
        if self._bar is not None:
            self._bar.update(self._task, total=total)

    def advance(self, name: str, amount: int) -> None:
        """Show `amount` more bytes of a file."""
        if self._bar is not None:
            self._bar.update(self._task, description=name[-40:], advance=amount)
        elif name not in self._named:
            self._named.add(name)
            click.echo(f"{name} ...", err=True)
