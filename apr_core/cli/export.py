"""`apr export`: an .apr file in another program's format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

from apr_core.cli import model_file
from apr_core.cli.console import human_bytes, output_option, print_json, progress
from apr_core.errors import UsageError


@click.command()
@click.argument("file")
@click.option(
    "--format", "name", metavar="NAME", required=True, help="safetensors, or what a plugin brings."
)
@output_option("OUT", "The file to write; a directory for safetensors.")
@click.option(
    "--dtype",
    type=click.Choice(["f32", "f16", "bf16"]),
    help="With safetensors: what quantized tensors are decoded to.",
)
@click.option("--force", is_flag=True, help="Replace what is there.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(file: str, name: str, output: Path, as_json: bool, **options: Any) -> None:
    """Write FILE in another format. Number formats both know pass through unchanged."""
    summary = run_export(file, name, output, **options)
    if as_json:
        print_json(dict(summary))
        return
    for warning in summary.get("warnings", ()):
        click.echo(f"{click.style('note:', fg='yellow')} {warning}", err=True)
    if summary.get("skipped"):
        names = summary["skipped"]
        click.echo(f"left out   {len(names)} tensors this format has no place for: {names[0]} ..")
    click.echo(
        f"wrote      {summary['path']} ({human_bytes(summary['bytes'])}, "
        f"{summary['tensors']} tensors)"
    )


def run_export(
    file: str, format_: str, output: Path, force: bool = False, dtype: str | None = None
) -> Mapping[str, Any]:
    """Check, then export under a progress bar; return the exporter's summary."""
    from apr_core.format import AprFile

    export = _exporter(format_, dtype)
    if output.exists() and not force:
        raise UsageError(f"{output} exists", "Give another name, or --force to replace it.")
    path = model_file(file)
    if output.resolve() == path.resolve():
        raise UsageError("the output would replace the file that is exported")
    with AprFile.open(path) as source:
        total = sum(source.raw(name).nbytes for name in source.tensors)
        with progress(output.name, total) as bar:
            return export(source, output, progress=bar)


def _exporter(format_: str, dtype: str | None) -> Callable[..., Mapping[str, Any]]:
    """Return the core's exporter, or a plugin's by its name."""
    if format_ == "safetensors":
        from apr_core.exporting import export as own

        return partial(own, dtype=dtype)
    if dtype:
        raise UsageError("--dtype goes with --format safetensors only")
    from apr_core.registry import get_registry

    registry = get_registry()
    export: Callable[..., Mapping[str, Any]] = registry.load(registry.get("exporter", format_))
    return export
