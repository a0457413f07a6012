"""`apr tensors`: name, format, shape and bytes of each tensor, and statistics of its values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from apr_core.cli import model_file
from apr_core.cli.console import human_bytes, print_json, print_table, printable, progress

if TYPE_CHECKING:
    from apr_core.format import AprFile, TensorEntry
    from apr_core.registry import Registry

STATS = ("mean", "std", "min", "max", "nan", "inf", "zeros_share")


@click.command()
@click.argument("file")
@click.option("--stats", is_flag=True, help="Decode each tensor: mean, std, range, NaN, zeros.")
@click.option("--filter", "text", default="", metavar="S", help="Only names that contain S.")
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="At most N tensors.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(file: str, stats: bool, text: str, limit: int | None, as_json: bool) -> None:
    """List the tensors of an .apr file."""
    from apr_core.format import AprFile
    from apr_core.registry import get_registry

    registry = get_registry()  # a wrong configuration file stops every command
    with AprFile.open(model_file(file)) as opened:
        matching = [e for name, e in opened.tensors.items() if text in name]
        shown = matching if limit is None else matching[:limit]
        rows: list[dict[str, Any]] = [
            {"name": e.name, "format": e.format, "shape": list(e.shape), "bytes": e.nbytes}
            for e in shown
        ]
        if stats:
            _add_stats(opened, registry, shown, rows)
        if as_json:
            print_json({"file": file, "count": len(matching), "tensors": rows})
        else:
            _print(rows, len(matching), sum(e.nbytes for e in matching), stats)


def _add_stats(
    file: AprFile, registry: Registry, entries: list[TensorEntry], rows: list[dict[str, Any]]
) -> None:
    """Add statistics to the rows, or a note where the format cannot be decoded."""
    from apr_core.errors import AprError
    from apr_core.validation.values import TensorReader, tensor_stats

    reader = TensorReader(file, registry)
    with progress("Decoding", sum(e.nbytes for e in entries)) as bar:
        for entry, row in zip(entries, rows, strict=True):
            row["stats"], row["note"] = None, reader.why_not(entry)
            if row["note"] is None:
                try:
                    row["stats"] = tensor_stats(reader.pieces(entry)).as_dict()
                except AprError as error:
                    row["note"] = error.message
            bar.advance(entry.nbytes)


def _print(rows: list[dict[str, Any]], count: int, nbytes: int, stats: bool) -> None:
    header = ["tensor", "format", "shape", "size", *(STATS if stats else ())]
    table = []
    for row in rows:
        shape = " x ".join(map(str, row["shape"])) or "scalar"
        cells = [printable(row["name"]), printable(row["format"]), shape, human_bytes(row["bytes"])]
        table.append([*cells, *_cells(row.get("stats"))] if stats else cells)
    print_table(table, header)
    hidden = f", {count - len(rows)} not shown" if count > len(rows) else ""
    click.echo(f"{count} tensors, {human_bytes(nbytes)}{hidden}")
    for note in dict.fromkeys(row["note"] for row in rows if row.get("note")):
        without = sum(row["note"] == note for row in rows)
        click.echo(f"! no statistics for {without} of them: {printable(note)}")


def _cells(stats: dict[str, Any] | None) -> list[str]:
    if stats is None:
        return ["-"] * len(STATS)
    return ["-" if stats[k] is None else f"{stats[k]:.4g}" for k in STATS]
