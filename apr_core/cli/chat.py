"""`apr chat`: turns with history, on a terminal or from a pipe."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import click

from apr_core.cli import model_file
from apr_core.cli.generation import Printer, answered, collect, generation_options, loaded, thinking
from apr_core.errors import UsageError

if TYPE_CHECKING:
    from apr_core.model.model import Model

HELP = """/clear           forget the conversation
/system TEXT     set the system message and start again; without TEXT, none
/help            this
/quit, Ctrl-D    end;  Ctrl-C stops an answer"""


@click.command()
@click.argument("file")
@generation_options
def command(file: str, **options: Any) -> None:
    """Chat interactively with the model in FILE. /help lists the commands."""
    with loaded(str(model_file(file)), options) as model:
        if sys.stdin.isatty():
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (line editing and history for `input`)
            click.echo("/help lists the commands, /quit ends.", err=True)
        Conversation(model, options).run()


class Conversation:
    """The history, and the loop over turns."""

    def __init__(self, model: Model, options: dict[str, Any]) -> None:
        self.model, self.options = model, options
        self.system: str | None = options["system"]
        self.history: list[dict[str, str]] = []

    def run(self) -> None:
        """Read turns until the end of input or /quit."""
        while (line := self._read()) is not None:
            if line.startswith("/"):
                if not self._command(line):
                    return
            elif line.strip():
                self._turn(line)

    def _read(self) -> str | None:
        if not sys.stdin.isatty():
            line = sys.stdin.readline()
            return line.rstrip("\n") if line else None
        try:
            return input("> ")
        except EOFError:
            click.echo()
            return None
        except KeyboardInterrupt:
            click.echo()
            return ""

    def _command(self, line: str) -> bool:
        """Carry out a slash command; return False to end the program."""
        name, _, rest = line.partition(" ")
        if name in ("/quit", "/exit"):
            return False
        if name == "/clear":
            self.history = []
        elif name == "/system":
            self.system, self.history = rest.strip() or None, []
        elif name == "/help":
            click.echo(HELP)
        else:
            click.echo(f"no such command: {name}; /help lists them", err=True)
        return True

    def _turn(self, text: str) -> None:
        from apr_core.generate.generate import Generation

        self.history.append({"role": "user", "content": text})
        head = [{"role": "system", "content": self.system}] if self.system else []
        result, printer = Generation(), Printer()
        try:
            ids = self.model.chat_ids(head + self.history, thinking(self.options))
            pieces = answered(self.model, ids, result.timings, self.options)
            collect(pieces, result, printer.show)
        except UsageError as error:  # the context is full, or the template refuses
            self.history.pop()
            click.echo(f"error: {error.message}", err=True)
            click.echo(f"hint: {error.hint or '/clear starts again.'}", err=True)
            return
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            click.echo(click.style(" (stopped)", dim=True), nl=False)
        printer.end()
        self.history.append(
            {"role": "assistant", "content": result.text, "reasoning_content": result.reasoning}
        )
