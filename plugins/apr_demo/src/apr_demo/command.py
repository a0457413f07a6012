"""`apr demo`: the whole pipeline on a small model, by the commands a user would type."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click

RECIPE = "q4k"  # if no plugin recommends one


@dataclass(frozen=True, slots=True)
class Show:
    """A model to show: its source, the recipe (none: as it is), and what it is asked."""

    source: str
    recipe: str | None
    question: str
    tokens: int  # at most, of the answer

    @property
    def file(self) -> str:
        """The name of the file made of it."""
        return f"{self.source.rpartition('/')[2]}-{self.recipe or 'as-it-is'}.apr"


SUMS = Show("demo://sums", RECIPE, "What is 2+2? Answer with just the number.", 32)
REAL = Show("demo://smollm2", None, "What is the moon? Answer in one sentence.", 64)


def steps(show: Show) -> list[tuple[str, list[str]]]:
    """Return (what is about to happen, the command's arguments) for each step."""
    file, source = show.file, show.source
    quantize = ["--quantize", show.recipe] if show.recipe else []
    how = f"quantized by the recipe {show.recipe}" if show.recipe else "its blocks as they are"
    return [
        (
            "The model, the number formats and the device all come from plugins. Installed here:",
            ["plugins", "list"],
        ),
        (
            f"Import: a trained checkpoint becomes one file, {how}.",
            ["import", source, *quantize, "-o", file, "--force"],
        ),
        (
            "Validate: checksums, the family's contract, every value, and the error of each "
            "tensor against its source.",
            ["validate", file, "--quality", "--source", source],
        ),
        ("Look at some tensors, decoded:", ["tensors", file, "--stats", "--filter", ".layers.3."]),
        ("Look at what the file says about itself:", ["inspect", file]),
        ("Run it:", ["run", file, show.question, "--max-tokens", str(show.tokens)]),
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
@click.option("--real", is_flag=True, help="Take a real language model, SmolLM2-135M-Instruct.")
def command(recipe: str | None, directory: Path | None, keep: bool, real: bool) -> None:
    """Run the whole pipeline on a small bundled model."""
    from apr_core.runtime import get_registry

    registry = get_registry()
    show = REAL if real else replace(SUMS, recipe=registry.recommended_recipe() or RECIPE)
    show = replace(show, recipe=recipe or show.recipe)
    registry.load(registry.get("source", "demo"))(show.source)  # before anything is printed
    if show.recipe:
        registry.get("recipe", show.recipe)
    with workplace(directory, keep) as place:
        began = time.monotonic()
        click.echo(f"In {place}:")
        with contextlib.chdir(place):
            for number, (text, arguments) in enumerate(steps(show), 1):
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
