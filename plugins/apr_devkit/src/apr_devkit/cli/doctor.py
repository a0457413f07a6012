"""`apr doctor`: this machine, what is installed and configured, and what will not work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from apr_core.plugin import AprError
from apr_core.runtime import print_json
from apr_devkit.doctor import Part, examine


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Diagnose the installation: machine, devices, plugins, caches, configuration.

    Exit code 1 if something is broken enough that commands will fail; the reasons are listed.
    """
    parts = []
    for part in examine():
        parts.append(part)
        if not as_json:
            _print(part)
    problems = [text for part in parts for text in part.finding.problems]
    if as_json:
        print_json(_report(parts))
    else:
        click.echo()
        for word, colour, texts in (
            ("warning:", "yellow", [t for p in parts for t in p.finding.warnings]),
            ("problem:", "red", problems),
        ):
            for text in texts:
                click.echo(f"{click.style(word, fg=colour)} {text}")
        if not problems:
            click.echo("No problems.")
    if problems:
        count = len(problems)
        raise AprError(f"{count} problem{'s' * (count > 1)} will make commands fail")


def _print(part: Part) -> None:
    click.echo(click.style(part.name, bold=True))
    width = max((len(label) for label, _ in part.finding.rows), default=0)
    for label, text in part.finding.rows:
        click.echo(f"  {label.ljust(width)}  {text}".rstrip())


def _report(parts: Sequence[Part]) -> dict[str, Any]:
    return {part.name: part.finding.facts for part in parts} | {
        "warnings": [text for part in parts for text in part.finding.warnings],
        "problems": [text for part in parts for text in part.finding.problems],
    }
