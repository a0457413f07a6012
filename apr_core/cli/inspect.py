"""`apr inspect`: what an .apr file says about itself. Needs no plugin and decodes nothing."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from math import prod
from typing import TYPE_CHECKING, Any

import click

from apr_core.cli import model_file
from apr_core.cli.console import human_bytes, print_json, print_table, printable, shortened

if TYPE_CHECKING:
    from apr_core.format import AprFile, TensorEntry

LARGE = 400  # characters of JSON that a value may have before it is summarised
IDENTITY = (
    "name", "model_type", "description", "author", "license", "version", "source",
    "original_format", "created_at", "param_count", "quantization",
)  # fmt: skip
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@click.command()
@click.argument("file")
@click.option("--full", is_flag=True, help="Print long values (vocabulary, templates) as they are.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(file: str, full: bool, as_json: bool) -> None:
    """Show what an .apr file says about itself."""
    from apr_core.format import AprFile
    from apr_core.registry import get_registry

    get_registry()  # a wrong configuration file stops every command
    with AprFile.open(model_file(file)) as opened:
        facts = describe(opened, full)
    if as_json:
        print_json(facts)
    else:
        _print(facts, full)


def describe(file: AprFile, full: bool) -> dict[str, Any]:
    """Return everything that is shown, as one object."""
    header = file.header
    return {
        "file": str(file.path),
        "files": [str(path) for path in file.paths],
        "size": file.size,
        "header": asdict(header)
        | {
            "version": ".".join(map(str, header.version)),
            "flags": header.flag_names(),
            "flag_bits": header.flags,
            "tensor_count": len(file.tensors),
        },
        "parameters": sum(prod(e.shape) for e in file.tensors.values()),
        "tensor_bytes": sum(e.nbytes for e in file.tensors.values()),
        "formats": _formats(file),
        "roles": _roles(file),
        "tokenizer": _tokenizer(file.metadata),
        "metadata": file.metadata if full else summarised(file.metadata),
    }


def summarised(value: Any, depth: int = 0) -> Any:
    """Return the value with everything long replaced by a one-line description."""
    size = len(json.dumps(value, ensure_ascii=False))
    if size <= LARGE:
        return value
    if isinstance(value, dict) and depth < 3:
        return {k: summarised(v, depth + 1) for k, v in value.items()}
    if isinstance(value, str):
        return f"<text of {len(value)} characters>"
    kind = "object" if isinstance(value, dict) else "list"
    return f"<{kind} of {len(value)} entries, {size} characters>"


def _formats(file: AprFile) -> list[dict[str, Any]]:
    """Return sizes by format, with the decoder that the file's own table names."""
    rows = []
    for name, entries in _grouped(file, lambda entry: entry.format):
        spec = asdict(entries[0].spec) if entries[0].spec else {}
        facts = {key: spec.get(key) for key in ("distribution", "block", "bytes_per_block")}
        rows.append({"format": name, "id": entries[0].dtype_id} | facts | _sizes(entries))
    return rows


def _roles(file: AprFile) -> list[dict[str, Any]]:
    """Return sizes by tensor name without layer numbers, which needs no contract."""
    return [
        {"role": role} | _sizes(entries) | {"formats": sorted({e.format for e in entries})}
        for role, entries in _grouped(file, lambda entry: _NUMBER.sub("*", entry.name))
    ]


def _grouped(
    file: AprFile, key: Callable[[TensorEntry], str]
) -> list[tuple[str, list[TensorEntry]]]:
    """Group tensors by `key`, the group with most bytes first."""
    groups: dict[str, list[TensorEntry]] = defaultdict(list)
    for entry in file.tensors.values():
        groups[key(entry)].append(entry)
    return sorted(groups.items(), key=lambda group: -sum(e.nbytes for e in group[1]))


def _sizes(entries: list[TensorEntry]) -> dict[str, Any]:
    return {
        "tensors": len(entries),
        "parameters": sum(prod(e.shape) for e in entries),
        "bytes": sum(e.nbytes for e in entries),
    }


def _tokenizer(metadata: dict[str, Any]) -> dict[str, Any] | None:
    """Return the tokenizer's short facts and the lengths of its lists; None without one."""
    facts = {
        key.removeprefix("tokenizer."): value
        for key, value in metadata.items()
        if key.startswith("tokenizer.") and isinstance(value, str | int) and len(str(value)) < 100
    }
    for key in ("vocabulary", "merges"):
        value = metadata.get(f"tokenizer.{key}")
        if isinstance(value, list):
            facts[key] = len(value)
    template = metadata.get("chat_template")
    if isinstance(template, str):
        facts["chat_template_characters"] = len(template)
    return facts or None


def _print(facts: dict[str, Any], full: bool) -> None:
    head = facts["header"]
    click.echo(f"{printable(facts['file'])}: APR v{head['version']}, {human_bytes(facts['size'])}")
    if len(facts["files"]) > 1:
        click.echo(f"  shards       {len(facts['files'])}")
    click.echo(f"  flags        {', '.join(head['flags']) or 'none'} ({head['flag_bits']:#06x})")
    click.echo(f"  tensors      {head['tensor_count']}, {human_bytes(facts['tensor_bytes'])}")
    if facts["parameters"]:
        bits = 8 * facts["tensor_bytes"] / facts["parameters"]
        click.echo(f"  parameters   {facts['parameters']:,} at {bits:.2f} bits")
    click.echo(
        f"  layout       metadata {head['metadata_size']} bytes at {head['metadata_offset']}, "
        f"index at {head['index_offset']}, data at {head['data_offset']}"
    )
    own = {k: v for k, v in facts["metadata"].items() if not k.startswith("tokenizer.")}
    width = 10**9 if full else 100
    identity = {k: own.pop(k) for k in IDENTITY if own.get(k) is not None}
    _print_pairs("identity", identity, width)
    _print_pairs("metadata", own, width)
    _print_pairs("tokenizer", facts["tokenizer"] or {"": "none in the file"}, 60)
    click.echo()
    names = ("format", "id", "tensors", "parameters", "bytes", "distribution")
    print_table([_cells(row, names) for row in facts["formats"]], names)
    click.echo()
    columns = ("role", "tensors", "parameters", "bytes", "formats")
    print_table([_cells(row, columns) for row in facts["roles"]], columns)


def _print_pairs(title: str, pairs: dict[str, Any], width: int) -> None:
    if not pairs:
        return
    click.echo(click.style(title, bold=True))
    column = max(len(printable(key)) for key in pairs)
    for key, value in pairs.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        click.echo(f"  {printable(key).ljust(column)}  {shortened(text, width)}")


def _cells(row: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    return [_cell(name, row[name]) for name in names]


def _cell(name: str, value: Any) -> str:
    if name == "bytes":
        return human_bytes(value)
    if isinstance(value, list):
        return printable(", ".join(value))
    return f"{value:,}" if name == "parameters" else printable("" if value is None else value)
