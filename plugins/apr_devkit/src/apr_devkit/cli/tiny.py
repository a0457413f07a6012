"""`apr plugins tiny`: writes a tiny checkpoint of a family."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from apr_core.plugin import UsageError
from apr_core.runtime import get_registry, human_bytes, print_json


@click.command()
@click.argument("family")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The directory to write. Default: ./tiny-FAMILY.",
)
@click.option(
    "--dtype",
    type=click.Choice(["bf16", "f32"]),
    default="bf16",
    show_default=True,
    help="The precision of the weights.",
)
@click.option("--force", is_flag=True, help="Write into a directory that holds something.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def tiny(family: str, output: Path | None, dtype: str, force: bool, as_json: bool) -> None:
    """Write a tiny checkpoint with random weights, to try FAMILY with.

    It is what the conformance kit makes: a few layers of the family's tiny config.json, weights
    that give sane logits, and a byte-level tokenizer.
    """
    from apr_devkit.tiny import tiny_checkpoint

    registry = get_registry()
    name = registry.get("family", family).declaration.name
    directory = output or Path(f"tiny-{name}")
    if directory.exists() and not (directory.is_dir() and (force or not any(directory.iterdir()))):
        raise UsageError(f"{directory} already exists", "Choose another -o, or add --force.")
    tiny_checkpoint(family, directory, dtype.upper(), registry=registry)
    files = sorted(path.name for path in directory.iterdir())
    size = sum(path.stat().st_size for path in directory.iterdir())
    import_ = f"apr import {shlex.quote(str(directory))} -o {shlex.quote(f'{directory.name}.apr')}"
    if as_json:
        facts = {"family": name, "directory": str(directory), "files": files, "bytes": size}
        print_json({**facts, "next": [import_]})
        return
    click.echo(f"wrote a {name} of {human_bytes(size)} to {directory}: {', '.join(files)}")
    click.echo(f"next: {import_}")
