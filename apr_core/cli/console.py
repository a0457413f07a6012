"""What commands share: JSON, tables, text of others made safe, progress (on stderr)."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from typing import Any

import click

from apr_core import messages

OPTIONS = {  # of commands, for the arguments that messages of the library name
    "arch": "--arch", "backend": "--backend", "dtype": "--dtype", "force": "--force",
    "max_len": "--context", "out": "-o", "source": "--source", "strict": "--strict",
}  # fmt: skip
ARGUMENT = re.compile(f"`({'|'.join(OPTIONS)})`")
PATIENCE = 1.0  # seconds that somebody waits without being told what for


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> None:
    """Columns aligned by spaces; numbers are for the caller to format."""
    widths = [max(len(str(r[i])) for r in [header, *rows]) for i in range(len(header))]
    for number, row in enumerate([header, *rows]):
        cells = [str(c).ljust(w) for c, w in zip(row, widths, strict=True)]
        line = "  ".join(cells).rstrip()
        click.echo(click.style(line, bold=True) if number == 0 else line)


def with_options(text: str) -> str:
    """A message of the library, with options in place of the arguments it names in backticks."""
    return ARGUMENT.sub(lambda match: OPTIONS[match[1]], text)


def human_bytes(count: float) -> str:
    """1536 -> 1.5 KiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def printable(text: object) -> str:
    """Text of a file, safe for a terminal: what would move the cursor is written as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def shortened(text: object, width: int = 60) -> str:
    """Printable, and cut with an ellipsis if it is longer than `width`."""
    plain = printable(text)
    return plain if len(plain) <= width else plain[: width - 1] + "…"


@contextmanager
def diverted() -> Iterator[None]:
    """Send to stderr what is printed inside, also by code that does not ask sys.stdout.

    So stdout is kept for what a command prints: code of others may print, and so may their drivers.
    A service may have closed stdout, and then there is nothing to keep.
    """
    if sys.stdout is not None:
        with suppress(OSError, ValueError):  # full or closed: whoever prints learns of it
            sys.stdout.flush()
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))
        with suppress(OSError):  # one that is closed cannot be spoilt
            saved = os.dup(1)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, 1)
            os.dup2(2, 1)
        yield


class Progress:
    """What a long task reports to: a bar of rich, or nothing."""

    def __init__(self, bar: Any = None, task: Any = None) -> None:
        self._bar, self._task = bar, task

    def advance(self, amount: float) -> None:
        """So much more is done."""
        if self._bar is not None:
            self._bar.advance(self._task, amount)

    def describe(self, text: str) -> None:
        """What is being done now."""
        if self._bar is not None:
            self._bar.update(self._task, description=text)


@contextmanager
def progress(description: str, total: float, unit: str = "bytes") -> Iterator[Progress]:
    """A progress bar on a terminal's stderr; silent elsewhere."""
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
    """What `load` reports to: a bar on a terminal's stderr, if it takes long; None elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    with ExitStack() as shown:
        bar, began, before = None, 0.0, 0

        def report(done: int, total: int) -> None:
            nonlocal bar, began, before
            began = began or time.monotonic()
            if bar is None and done < total and time.monotonic() - began > PATIENCE:
                bar = shown.enter_context(progress("Loading", total))
            if bar is not None:
                bar.advance(done - before)
                before = done

        yield report


def show_notices() -> None:
    """Show what takes long on stderr: a line that counts on a terminal, one line elsewhere."""
    said: set[str] = set()

    def show(text: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            end = "\r" + " " * (len(text) + 20) + "\r" if done == total else ""
            click.echo(f"\r{text}: {done} of {total}{end}", nl=False, err=True)
        elif text not in said:
            click.echo(text, err=True)
        said.add(text)

    messages.show_with(show)


@contextmanager
def sparing_collections() -> Iterator[None]:
    """No garbage collection while a model is loaded, and never one of what was loaded.

    Loading makes many objects and drops few: to go over them again and again took a tenth of its
    time, and would pause generation later.
    """
    import gc

    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
