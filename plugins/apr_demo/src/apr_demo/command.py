"""`apr demo`: the whole pipeline on the bundled model, by the commands a user would type."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click

SOURCE = "demo://sums"
RECIPE = "q4k"  # if no plugin recommends one
QUESTION = "What is 2+2? Answer with just the number."


def steps(recipe: str, file: str) -> list[tuple[str, list[str]]]:
    """Return (what is about to happen, the command's arguments) for each step."""
    return [
        (
            "The model, the number formats and the device all come from plugins. Installed here:",
            ["plugins", "list"],
        ),
        (
            f"Import: a trained checkpoint becomes one file, quantized by the recipe {recipe}.",
            ["import", SOURCE, "--quantize", recipe, "-o", file, "--force"],
        ),
        (
            "Validate: checksums, the family's contract, every value, and the error of each "
            "tensor against its source.",
            ["validate", file, "--quality"],
        ),
        ("Look at some tensors, decoded:", ["tensors", file, "--stats", "--filter", ".layers.3."]),
        ("Look at what the file says about itself:", ["inspect", file]),
        ("Run it:", ["run", file, QUESTION, "--max-tokens", "32"]),
    ]


@click.command()
@click.option("--quantize", "recipe", metavar="RECIPE", help="Default: a recommended one.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="D",
    help="Work in this directory and leave the file there.",
)
@click.option("--keep", is_flag=True, help="Leave the temporary directory behind.")
def command(recipe: str | None, directory: Path | None, keep: bool) -> None:
    """Run the whole pipeline on a small bundled model."""
    from apr_core.runtime import get_registry

    registry = get_registry()
    registry.get("source", SOURCE.partition(":")[0])  # before anything is printed
    recipe = recipe or registry.recommended_recipe() or RECIPE
    registry.get("recipe", recipe)
    with workplace(directory, keep) as place:
        began = time.monotonic()
        click.echo(f"In {place}:")
        with contextlib.chdir(place):
            for number, (text, arguments) in enumerate(steps(recipe, f"sums-{recipe}.apr"), 1):
                show_step(number, text, arguments)
        click.echo(f"\nThat took {time.monotonic() - began:.1f} s.", nl=False)
        click.echo(f" The file is in {place}." if directory or keep else " The file is gone again.")


@contextlib.contextmanager
def workplace(directory: Path | None, keep: bool) -> Iterator[Path]:
    """Yield the user's directory, or a temporary one that is removed unless kept."""
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        yield directory.resolve()
    elif keep:
        yield Path(tempfile.mkdtemp(prefix="apr-demo-"))
    else:
        with tempfile.TemporaryDirectory(prefix="apr-demo-") as folder:
            yield Path(folder)


def show_step(number: int, text: str, arguments: list[str]) -> None:
    """Say what happens, show the command line, run the command in this process."""
    from apr_core.runtime import apr

    click.echo(f"\n{click.style(f'{number}. {text}', bold=True)}")
    click.echo(click.style(f"$ apr {shlex.join(arguments)}", fg="cyan"))
    apr.main(args=arguments, prog_name="apr", standalone_mode=False)
