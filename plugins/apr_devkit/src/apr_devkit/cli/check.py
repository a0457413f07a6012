"""`apr plugins check`: the conformance kits on an installed plugin, without pytest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from apr_core.plugin import ValidationFailed
from apr_core.runtime import PluginRow, diverted, print_json, rows_called

if TYPE_CHECKING:
    from apr_core.plugin import Declaration
    from apr_devkit.kits import CheckResult, Kit

KITS = {
    "family": "FamilyConformance",
    "attention": "AttentionConformance",
    "mlp": "MlpConformance",
    "quantizer": "QuantizerConformance",
    "recipe": "RecipeConformance",
    "backend": "BackendConformance",
    "kernel": "KernelConformance",
    "source": "SourceConformance",
    "exporter": "ExporterConformance",
    "command": "CommandConformance",
}
MARKS = {"passed": ("ok", "green"), "failed": ("FAILED", "red"), "skipped": ("skipped", "yellow")}


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(name: str, as_json: bool) -> None:
    """Run the conformance checks of a plugin.

    NAME is a distribution, an entry point or something it provides; the whole distribution is
    checked. Exit code 5 if a check fails. A check that is skipped has not passed: see the reason.
    """
    from apr_core.runtime import get_registry

    rows = rows_called(name, get_registry().plugins)
    results: list[CheckResult] = []
    for result in _checks(rows):
        results.append(result)
        if not as_json:
            _print(result, first=len(results) == 1 or results[-2].subject != result.subject)
    if as_json:
        print_json(_report(rows, results))
    else:
        click.echo(f"\n{summary(results)}")
    failed = [f"{r.subject}: {r.sentence}" for r in results if r.outcome == "failed"]
    if failed:
        raise ValidationFailed(
            f"{name} failed {len(failed)} of {len(results)} checks",
            "Set APR_DEBUG=1 for tracebacks; the same checks run in pytest (apr_devkit.kits).",
        )


def _checks(rows: Sequence[PluginRow]) -> Iterator[CheckResult]:
    """Yield one result after the other. What plugins print meanwhile goes to stderr."""
    running = _run(rows)
    while True:
        with diverted():
            result = next(running, None)
        if result is None:
            return
        yield result


def _run(rows: Sequence[PluginRow]) -> Iterator[CheckResult]:
    """Run each distribution's own checks, then those of the kind of everything it declares."""
    for distribution in dict.fromkeys(row.distribution for row in rows):
        of_it = [row for row in rows if row.distribution == distribution]
        unusable = [row for row in of_it if row.status not in ("ok", "unavailable")]
        yield from _plugin_checks(distribution, unusable)
        for row in of_it:
            for declaration in row.declarations:
                yield from _kind_checks(distribution, declaration)


def _plugin_checks(distribution: str, unusable: Sequence[PluginRow]) -> Iterator[CheckResult]:
    """Run the checks common to all plugins; only the first if one is unusable: it may do harm."""
    from apr_devkit import kits as testing
    from apr_devkit.kits.checks import checks_of, sentence_of

    kit: type[Kit] = type("Plugin", (testing.PluginConformance,), {"plugin": distribution})
    first, *others = checks_of(kit)
    if not unusable:
        yield from testing.run_checks(kit)
        return
    yield from testing.run_checks(kit, [first])
    reason = ", ".join(f"{row.name} is {row.status}" for row in unusable)
    for name in others:
        subject, sentence = f"plugin {distribution}", sentence_of(kit, name)
        yield testing.CheckResult(subject, name, sentence, "skipped", reason)


def _kind_checks(distribution: str, declaration: Declaration) -> Iterator[CheckResult]:
    """Run the checks of the declaration's kind, without those that every plugin passes."""
    from apr_devkit import kits as testing
    from apr_devkit.kits.checks import checks_of

    kind = declaration.kind
    base = getattr(testing, KITS[kind])
    name = _unambiguous(kind, declaration.name, f"{distribution}:{declaration.name}")
    kit = type(base.__name__, (base,), {kind: name})
    common = checks_of(testing.PluginConformance)
    yield from testing.run_checks(kit, [c for c in checks_of(kit) if c not in common])


def _unambiguous(kind: str, name: str, qualified: str) -> str:
    """Return the bare name if it can mean only this declaration, else `qualified`."""
    from apr_core.runtime import get_registry

    owners = [o for o in get_registry().declarations(kind) if o.declaration.name == name]
    return name if len(owners) == 1 else qualified


def _print(result: CheckResult, first: bool) -> None:
    if first:
        click.echo(click.style(result.subject, bold=True))
    word, colour = MARKS[result.outcome]
    reason = f" ({result.reason})" if result.outcome == "skipped" else ""
    click.echo(f"  {click.style(f'{word:<7}', fg=colour)}  {result.sentence}{reason}")
    if result.outcome == "failed":
        for line in result.reason.splitlines():
            click.echo(f"           {line}")


def summary(results: Sequence[CheckResult]) -> str:
    """Return a summary such as `12 checks, 3 skipped: no such device`."""
    counts = Counter(result.outcome for result in results)
    words = [f"{len(results)} checks"]
    if counts["failed"]:
        words.append(f"{counts['failed']} failed")
    if counts["skipped"]:
        reasons = dict.fromkeys(r.reason for r in results if r.outcome == "skipped")
        words.append(f"{counts['skipped']} skipped: {'; '.join(reasons)}")
    return ", ".join(words)


def _report(rows: Sequence[PluginRow], results: Sequence[CheckResult]) -> dict[str, Any]:
    counts = Counter(result.outcome for result in results)
    return {
        "plugins": [row.name for row in rows],
        "checks": len(results),
        "passed": counts["passed"],
        "failed": counts["failed"],
        "skipped": counts["skipped"],
        "results": [result.as_dict() for result in results],
    }
