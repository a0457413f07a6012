"""`apr validate`: run the checks, print their results; exit code 5 if one failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from apr_core.cli import model_file
from apr_core.cli.console import print_json, print_table, printable, progress, with_options
from apr_core.errors import FormatError, ValidationFailed

if TYPE_CHECKING:
    from apr_core.validation.report import Report

MARKS = {"passed": ("ok", "green"), "failed": ("FAILED", "red"), "not_run": ("not run", "yellow")}
WORST = 10


@click.command()
@click.argument("file")
@click.option("--quality", is_flag=True, help="Also measure the error against the source.")
@click.option("--source", metavar="DIR", help="The checkpoint it was imported from, for --quality.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(file: str, quality: bool, source: str | None, as_json: bool) -> None:
    """Check an .apr file, and its quality. Exit code 5 if a check failed."""
    if source is not None and not quality:
        raise click.UsageError("--source needs --quality")
    report = _check(file, quality, source)
    if as_json:
        print_json(report.as_dict())
    else:
        _print(report)
    if not report.valid:
        failed = report.count("failed")
        raise ValidationFailed(
            f"{printable(file)}: {failed} of {report.ran} checks failed",
            "Import it again from its checkpoint, or copy it again from where it is whole.",
        )


def _check(file: str, quality: bool, source: str | None) -> Report:
    from apr_core.format import AprFile
    from apr_core.registry import get_registry
    from apr_core.validation.report import Report
    from apr_core.validation.validate import check_file, work_bytes

    path = model_file(file)
    try:
        opened = AprFile.open(path)
    except FormatError as error:
        report = Report(file, tensors=[] if quality else None)
        report.failed("structure", error.message)
        return report
    with opened, progress("Validating", work_bytes(opened)) as bar:
        return check_file(
            opened, get_registry(), quality=quality, source=source, advance=bar.advance
        )


def _print(report: Report) -> None:
    width = max(len(check.name) for check in report.checks)
    for check in report.checks:
        mark, colour = MARKS[check.status]
        first, *rest = with_options(check.detail).splitlines() or [""]
        status = click.style(mark.ljust(7), fg=colour)
        click.echo(f"{status}  {check.name.ljust(width)}  {printable(first)}")
        for line in rest:
            click.echo(" " * (width + 11) + printable(line))
    _print_errors(report)
    ran = f"{report.ran} of {len(report.checks)} checks ran"
    left = report.count("not_run")
    unproven = f"; {left} did not and prove nothing" if left else ""
    verdict = "valid" if report.valid else "NOT VALID"
    score = f", score {report.score:.1f} of 100" if report.score is not None else ""
    click.echo(f"{verdict}{score} ({ran}{unproven})")


def _print_errors(report: Report) -> None:
    lossy = [t for t in report.tensors or [] if t.snr_db is not None]
    if not lossy:
        return
    worst = sorted(lossy, key=lambda t: -t.relative_rmse)[:WORST]
    rows = [
        [printable(t.name), t.format, f"{t.relative_rmse:.3g}", f"{t.snr_db:.1f}"] for t in worst
    ]
    exact = len(report.tensors or []) - len(lossy)
    click.echo(f"\nlargest errors against the source, of {len(lossy)} tensors ({exact} are exact):")
    print_table(rows, ("tensor", "format", "relative RMSE", "SNR dB"))
    click.echo()
