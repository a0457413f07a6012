"""`apr calibrate`: what a model's matrices are multiplied with on a text, for encoders to use."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import click

from apr_core.runtime import human_bytes, output_option, printable, progress, show_notices

DEFAULT_TOKENS = 40960


@click.command()
@click.argument("model")
@click.option("--text", "texts", type=click.Path(path_type=Path), multiple=True, required=True,
              help="A text file; may be given several times.")  # fmt: skip
@click.option("--tokens", type=click.IntRange(1), default=DEFAULT_TOKENS, show_default=True,
              metavar="N", help="At most N tokens, of all texts alike.")  # fmt: skip
@click.option("--context", type=click.IntRange(16), default=1024, show_default=True, metavar="N",
              help="Tokens of a piece of text.")  # fmt: skip
@click.option("--backend", metavar="NAME[:DEVICE]", help="Where it runs.")
@click.option("--threads", type=click.IntRange(1), help="Default: one a physical core.")
@output_option("CAL", "The file that is written.")
def command(
    model: str,
    texts: tuple[Path, ...],
    tokens: int,
    context: int,
    backend: str | None,
    threads: int | None,
    output: Path,
) -> None:
    """Run a text through a model, an .apr file or a checkpoint, and note what its matrices see.

    One layer is in memory at a time. `apr import --calibration CAL` encodes with it.
    """
    from apr_core.plugin import reading

    contents = []
    for path in texts:
        with reading(path):
            contents.append(path.read_text("utf-8"))
    show_notices()
    rows, matrices = run_calibrate(model, contents, output, tokens, context, backend, threads)
    size = human_bytes(output.stat().st_size)
    click.echo(f"wrote      {printable(output)} ({size})")
    click.echo(f"{rows} tokens, {matrices} matrices")


def run_calibrate(
    model: str,
    texts: list[str],
    output: Path,
    tokens: int = DEFAULT_TOKENS,
    context: int = 1024,
    backend: str | None = None,
    threads: int | None = None,
) -> tuple[int, int]:
    """Write a calibration; return the tokens that were read and the matrices that saw them."""
    from apr_core.plugin import UsageError
    from apr_core.runtime import Tokenizer
    from apr_eval.calibration import Calibration, Collector
    from apr_eval.layerwise import open_layerwise

    found = Calibration({"model": model})
    collector = Collector(found, lambda array: array)
    with open_layerwise(model, backend, threads, collector) as run:
        collector.download = run.backend.download
        tokenizer = Tokenizer.from_metadata(run.file.metadata)
        share, pieces = tokens // len(texts), []
        for text in texts:
            ids = list(tokenizer.encode(text)[:share])
            pieces += [ids[i : i + context] for i in range(0, len(ids), context)]
        if not any(pieces):
            raise UsageError("the texts are empty, so there is nothing to calibrate with")
        digest = sha256("\0".join(texts).encode()).hexdigest()
        found.about |= {"text_sha256": digest, "tokens": str(sum(map(len, pieces)))}
        with progress("Calibrating", 2 * len(run.decoder.layers), unit="parts") as bar:
            for states in run.hidden(pieces, lambda _, __: bar.advance(1)):
                collector(run.decoder.head, (states,))
    output.parent.mkdir(parents=True, exist_ok=True)
    found.write(output)
    return sum(map(len, pieces)), len(found.inputs)
