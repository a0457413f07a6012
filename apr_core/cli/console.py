"""Shared by commands: JSON, tables, safe printing of foreign text, progress on stderr."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import click

from apr_core import messages

OPTIONS = {  # library argument or function -> what the command line has
    "arch": "--arch", "backend": "--backend", "dtype": "--dtype", "force": "--force",
    "generate": "`apr run --raw`", "max_len": "--context", "out": "-o", "source": "--source",
    "strict": "--strict",
}  # fmt: skip
ARGUMENT = re.compile(f"`({'|'.join(OPTIONS)})`")
PATIENCE = 1.0  # seconds of waiting before progress is shown


def output_option(metavar: str, help: str) -> Callable[..., Any]:
    """Return the option for what a command writes."""
    path = click.Path(path_type=Path)
    return click.option("-o", "--output", type=path, required=True, metavar=metavar, help=help)


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> None:
    """Print columns aligned by spaces; the caller formats numbers."""
    widths = [max(len(str(r[i])) for r in [header, *rows]) for i in range(len(header))]
    for number, row in enumerate([header, *rows]):
        cells = [str(c).ljust(w) for c, w in zip(row, widths, strict=True)]
        line = "  ".join(cells).rstrip()
        click.echo(click.style(line, bold=True) if number == 0 else line)


def with_options(text: str) -> str:
    """Return a library message with arguments in backticks replaced by command-line options."""
    return ARGUMENT.sub(lambda match: OPTIONS[match[1]], text)


def human_bytes(count: float) -> str:
    """Return a byte count for people: 1536 -> 1.5 KiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def printable(text: object) -> str:
    """Return text of a file made safe for a terminal: control characters become escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def shortened(text: object, width: int = 60) -> str:
    """Return the text printable and cut to `width` characters, with an ellipsis if it is longer."""
    plain = printable(text)
    return plain if len(plain) <= width else plain[: width - 1] + "…"


@contextmanager
def diverted() -> Iterator[None]:
    """Send everything printed inside the block to stderr, also what native code prints.

    This keeps stdout for the command's own output: plugins and their drivers may print.
    A service may have closed stdout; then nothing is redirected.
    """
    if sys.stdout is not None:
        with suppress(OSError, ValueError):  # full or closed: the next print raises
            sys.stdout.flush()
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))
        with suppress(OSError):  # closed: nothing to protect
            saved = os.dup(1)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, 1)
            os.dup2(2, 1)
        yield


class Progress:
    """Progress of a long task: a rich bar, or nothing."""

    def __init__(self, bar: Any = None, task: Any = None) -> None:
        self._bar, self._task = bar, task

    def advance(self, amount: float) -> None:
        """Add an amount to what is done."""
        if self._bar is not None:
            self._bar.advance(self._task, amount)

    def describe(self, text: str, done: int | None = None) -> None:
        """Show what is being done now, and how much is done."""
        if self._bar is not None:
            self._bar.update(self._task, description=text, completed=done)


@contextmanager
def progress(description: str, total: float, unit: str = "bytes") -> Iterator[Progress]:
    """Show a progress bar on a terminal's stderr; show nothing elsewhere."""
    if not sys.stderr.isatty():
        yield Progress()
        return
    from rich import progress as rich
    from rich.console import Console

    amount = rich.DownloadColumn(True) if unit == "bytes" else rich.MofNCompleteColumn()
    text = rich.TextColumn("{task.description}")
    columns = (text, rich.BarColumn(), amount, rich.TimeRemainingColumn())
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Progress(bar, bar.add_task(description, total=total))


@contextmanager
def upload_progress() -> Iterator[Callable[[int, int], None] | None]:
    """Yield a progress callback for `load`: a bar on a terminal if it takes long, else None."""
    if not sys.stderr.isatty():
        yield None
        return
    with ExitStack() as shown:
        bar, began = None, 0.0

        def report(done: int, total: int) -> None:
            nonlocal bar, began
            began = began or time.monotonic()
            if bar is None and done < total and time.monotonic() - began > PATIENCE:
                bar = shown.enter_context(progress("Loading", total))
            if bar is not None:
                bar.describe("Loading", done)

        yield report


@contextmanager
def download_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback for sources: it says how much is to come, and shows a bar on a terminal."""
    with ExitStack() as shown:
        bars: list[Progress] = []

        def report(what: str, done: int, total: int) -> None:
            if not bars:
                click.echo(f"downloading {human_bytes(total - done)}: {what}", err=True)
                bars.append(shown.enter_context(progress(what, total)))
            bars[0].describe(what, done)
            if done >= total:
                shown.close()  # the next task has a bar of its own

        yield report


def show_notices() -> None:
    """Show notices of slow work on stderr: a line that counts on a terminal, else one line."""
    shown: set[str] = set()

    def show(text: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            end = "\r" + " " * (len(text) + 20) + "\r" if done == total else ""
            click.echo(f"\r{text}: {done} of {total}{end}", nl=False, err=True)
        elif text not in shown:
            click.echo(text, err=True)
        shown.add(text)

    messages.show_with(show)


@contextmanager
def sparing_collections() -> Iterator[None]:
    """Switch garbage collection off while a model loads, and exempt what was loaded for good.

    Loading makes many objects and drops few: collecting again and again took a tenth of the
    time, and would pause generation later.
    """
    import gc

    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
