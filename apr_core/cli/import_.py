"""`apr import`: a checkpoint becomes an .apr file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apr_core.cli import console
from apr_core.cli.console import human_bytes, output_option, print_json, print_table, progress
from apr_core.errors import UsageError

if TYPE_CHECKING:
    from apr_core.importing.metadata import ImportSummary
    from apr_core.importing.source import CheckpointSource

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
SMALLEST_SHARD = 1 << 20


def parse_size(text: str) -> int:
    """Return "4GiB" or "500M" as bytes; units are powers of 1024. Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    nbytes = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if nbytes < SMALLEST_SHARD:
        raise UsageError(f"size {text!r} is not usable", "Give at least 1MiB, for example 4GiB.")
    return nbytes


@click.command()
@click.argument("source", metavar="SRC")
@output_option("FILE.apr", "The file to write.")
@click.option(
    "-q", "--quantize", metavar="RECIPE", help="A plugin's recipe; without it, precision is kept."
)
@click.option("--arch", metavar="FAMILY", help="Model family, if config.json should not decide.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--shard-size", metavar="SIZE", help="Write shards of at most this size, e.g. 4GiB.")
@click.option("--threads", type=click.IntRange(1), help="Encoding threads; all cores by default.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(source: str, output: Path, as_json: bool, **options: Any) -> None:
    """Turn a checkpoint into a quantized .apr file.

    SRC is a directory with config.json, tokenizer and safetensors, or a file or a URL that a
    plugin declares as a source: `apr plugins list` shows them.
    """
    summary = run_import(source, output, **options)
    if as_json:
        print_json(summary.as_dict())
    else:
        print_summary(summary)


def run_import(
    source: str | CheckpointSource,
    output: Path,
    quantize: str | None = None,
    arch: str | None = None,
    force: bool = False,
    shard_size: str | None = None,
    threads: int | None = None,
) -> ImportSummary:
    """Check everything, then import under a progress bar; return the summary."""
    from apr_core.format.writer import check_target
    from apr_core.importing.importer import plan_import, write_import
    from apr_core.importing.source import find_source
    from apr_core.registry import get_registry

    shard_bytes = parse_size(shard_size) if shard_size else None
    if shard_bytes is None:
        check_target(output, force)
    registry = get_registry()
    if isinstance(source, str):
        with console.download_progress() as fetching:
            source = find_source(source, registry, fetching)
    plan = plan_import(source, recipe=quantize, arch=arch, registry=registry)
    with progress(output.name, plan.source_bytes) as bar:

        def advance(name: str, nbytes: int) -> None:
            bar.describe(name)
            bar.advance(nbytes)

        return write_import(
            plan, output, force=force, shard_bytes=shard_bytes, threads=threads, progress=advance
        )


def print_summary(s: ImportSummary) -> None:
    """Print the summary for people."""
    size = f" {s.variant}" if s.variant else ""
    click.echo(f"{s.source}: {s.family}{size}, {s.layout} layout, {s.parameters:,} parameters")
    rows = [
        (
            r.role,
            str(r.tensors),
            ", ".join(f if len(r.formats) == 1 else f"{f} x{n}" for f, n in r.formats.items()),
            human_bytes(r.nbytes),
            "exact" if r.relative_error is None else f"{100 * r.relative_error:.3g} %",
        )
        for r in s.roles
    ]
    print_table(rows, ("role", "tensors", "format", "size", "error"))
    for reason, tensors in s.fallbacks.items():
        click.echo(f"fell back  {tensors} tensor{'s' * (tensors > 1)}: {reason}")
    for reason, row in s.skipped.items():
        click.echo(f"left out   {row['tensors']} tensors, {human_bytes(row['bytes'])}: {reason}")
    if s.carried:
        click.echo(f"carried    {s.carried} tensors that running does not use yet")
    if s.absent:
        click.echo(f"absent     {len(s.absent)} tensors that config.json claims: {s.absent[0]} ..")
    for note in s.notes:
        click.echo(f"note       {note}")
    for path in s.paths:
        click.echo(f"wrote      {path} ({human_bytes(path.stat().st_size)})")
    click.echo(
        f"recipe {s.recipe}: {human_bytes(s.source_bytes)} -> {human_bytes(s.file_bytes)}, "
        f"{s.bits_per_weight:.2f} bits per weight, {s.seconds:.1f} s"
    )
