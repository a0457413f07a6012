"""`apr diff`: two models compared, by metadata, by every tensor, and by what they predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from apr_core.runtime import print_json, print_table, printable, progress, show_notices

if TYPE_CHECKING:
    from apr_core.plugin import AprFile
    from apr_eval.divergence import Divergence

SHOWN = 100  # characters of a value of the metadata


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """A tensor of both. `relative` is RMSE over the first one's RMS, `cosine` their angle's.

    Both are None where shapes differ or a format cannot be decoded, which `note` says.
    """

    name: str
    formats: tuple[str, str]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    identical: bool = False
    relative: float | None = None
    cosine: float | None = None
    note: str = ""


@click.command()
@click.argument("first")
@click.argument("second")
@click.option("--logits", is_flag=True, help="Compare what both predict on a text, too.")
@click.option("--text", type=click.Path(path_type=Path), help="The text for --logits.")
@click.option("--context", type=click.IntRange(16), default=512, show_default=True, metavar="N",
              help="Tokens of a piece of the text.")  # fmt: skip
@click.option("--tokens", type=click.IntRange(1), metavar="N", help="At most N tokens of the text.")
@click.option("--backend", metavar="NAME[:DEVICE]", help="Where --logits runs.")
@click.option("--threads", type=click.IntRange(1), help="Default: one a physical core.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every tensor.")
def command(
    first: str,
    second: str,
    logits: bool,
    text: Path | None,
    context: int,
    tokens: int | None,
    backend: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Compare two models: .apr files or checkpoints.

    The first is what the second is measured by. Tensors are compared by their values, whatever
    their formats; --logits runs both layer by layer, so that neither has to fit into memory.
    """
    from apr_core.plugin import UsageError

    if logits != bool(text):
        raise UsageError("--logits and --text FILE belong together: predictions are about a text")
    show_notices()
    result = run_diff(first, second)
    if text:
        result["divergence"] = asdict(
            predictions(first, second, _read(text), context, tokens, backend, threads)
        )
    print_json(result) if as_json else _print(result)


def _read(path: Path) -> str:
    from apr_core.plugin import reading

    with reading(path):
        return path.read_text("utf-8")


def run_diff(first: str, second: str) -> dict[str, Any]:
    """Return what differs: `only`, `metadata` and `tensors`, as `--json` prints it."""
    from apr_eval.layerwise import opened

    with opened(first) as (a, _), opened(second) as (b, _):
        common = [name for name in a.tensors if name in b.tensors]
        with progress("Comparing", sum(a.tensors[n].nbytes for n in common)) as bar:
            rows = []
            for name in common:
                rows.append(asdict(compare(a, b, name)))
                bar.advance(a.tensors[name].nbytes)
        return {
            "first": first,
            "second": second,
            "only": [[n for n in a.tensors if n not in b.tensors],
                     [n for n in b.tensors if n not in a.tensors]],
            "metadata": _changed(a.metadata, b.metadata),
            "tensors": rows,
        }  # fmt: skip


def compare(a: AprFile, b: AprFile, name: str) -> TensorDiff:
    """Compare one tensor of both."""
    from apr_core.plugin import AprError
    from apr_core.runtime import TensorReader, get_registry

    x, y = a.tensors[name], b.tensors[name]
    diff = partial(TensorDiff, name, (x.format, y.format), (x.shape, y.shape))
    if x.shape != y.shape:
        return diff(note="the shapes differ")
    if x.format == y.format and np.array_equal(a.raw(name), b.raw(name)):
        return diff(identical=True, relative=0.0, cosine=1.0)
    error = one = other = both = 0.0
    pieces = (TensorReader(f, get_registry()).rows(e) for f, e in ((a, x), (b, y)))
    try:
        for (_, u), (_, v) in zip(*pieces, strict=True):
            error += float(np.sum(np.square(u - v), dtype=np.float64))
            one += float(np.sum(np.square(u), dtype=np.float64))
            other += float(np.sum(np.square(v), dtype=np.float64))
            both += float(np.sum(u * v, dtype=np.float64))
    except AprError as problem:
        return diff(note=problem.message)
    relative = sqrt(error / one) if one else float(error > 0)
    return diff(relative=relative, cosine=both / sqrt(one * other) if one and other else None)


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return {key: both values} of the metadata that differs; None where there is none."""
    keys = {**a, **b}.keys() - {"created_at"}
    return {k: [a.get(k), b.get(k)] for k in sorted(keys) if a.get(k) != b.get(k)}


def predictions(
    first: str,
    second: str,
    text: str,
    context: int = 512,
    tokens: int | None = None,
    backend: str | None = None,
    threads: int | None = None,
) -> Divergence:
    """Return how far the second model's predictions on a text are from the first one's."""
    from apr_core.plugin import UsageError
    from apr_core.runtime import Tokenizer
    from apr_eval.divergence import measure, pieces_of
    from apr_eval.layerwise import open_layerwise

    with (
        open_layerwise(first, backend, threads) as p,
        open_layerwise(second, backend, threads) as q,
    ):
        if p.config.vocab_size != q.config.vocab_size:
            raise UsageError(
                f"{first} has {p.config.vocab_size} tokens and {second} has {q.config.vocab_size}",
                "Predictions can be compared over one vocabulary only.",
            )
        ids = Tokenizer.from_metadata(p.file.metadata).encode(text)[:tokens]
        pieces = pieces_of(ids, context)
        with progress("Predicting", 4 * len(p.decoder.layers), unit="parts") as bar:
            return measure(p, q, pieces, lambda _, __: bar.advance(1))


def _print(result: dict[str, Any]) -> None:
    for name, only in zip(("first", "second"), result["only"], strict=True):
        for tensor in only:
            click.echo(f"only in {printable(result[name])}: {printable(tensor)}")
    for key, values in result["metadata"].items():
        shown = " | ".join(printable(_short(value)) for value in values)
        click.echo(f"metadata {printable(key)}: {shown}")
    rows = sorted(result["tensors"], key=lambda r: -(r["relative"] or 0.0))
    same = sum(row["identical"] for row in rows)
    table = [_cells(row) for row in rows if not row["identical"]]
    if table:
        print_table(table, ("tensor", "formats", "relative RMSE", "cosine"))
    count = "all" if same == len(rows) else same
    click.echo(f"{len(rows)} tensors in both, {count} of them identical")
    if found := result.get("divergence"):
        _print_divergence(found)


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _cells(row: dict[str, Any]) -> list[str]:
    formats = " ".join(dict.fromkeys(row["formats"]))
    if row["note"]:
        return [printable(row["name"]), formats, printable(row["note"]), ""]
    cosine = "-" if row["cosine"] is None else f"{row['cosine']:.6f}"
    return [printable(row["name"]), formats, f"{row['relative']:.5f}", cosine]


NAMES = {
    "mean": "mean KL", "median": "median KL", "p99": "99 % KL", "p999": "99.9 % KL",
    "same_top": "same likeliest token", "perplexity": "perplexity of the first",
    "perplexity_ratio": "perplexity, second / first",
}  # fmt: skip


def _print_divergence(found: dict[str, Any]) -> None:
    rows = []
    for key, label in NAMES.items():
        value, error = found[key]["value"], found[key]["error"]
        shown = (f"{100 * value:.2f} %", f"{100 * error:.2f} %") if key == "same_top" else (
            f"{value:.6g}", f"{error:.2g}")  # fmt: skip
        rows.append([label, *shown])
    print_table(rows, ("prediction", "value", "standard error"))
    click.echo(f"over {found['tokens']} tokens")
