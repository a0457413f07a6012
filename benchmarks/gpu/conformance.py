"""The conformance kit of backends on the device: the checks of `apr plugins check`."""

from __future__ import annotations

import time
from collections import Counter

from apr_devkit.kits import BackendConformance, CheckResult, run_checks
from apr_devkit.kits.checks import Outcome, checks_of
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.table import Column, say
from benchmarks.gpu.weights import BACKEND

COLUMNS = (
    Column("checks", "checks"), Column("passed", "passed"), Column("failed", "failed"),
    Column("skipped", "skipped"), Column("seconds", "s", ".0f"),
)  # fmt: skip
OUTCOMES: tuple[Outcome, ...] = ("passed", "failed", "skipped")


def run(bench: Bench) -> None:
    """Print each check as it ends, then how many passed, failed and were skipped."""
    kit = type("BackendConformance", (BackendConformance,), {"backend": BACKEND})
    names = [name for name in checks_of(kit) if bench.checks in name]
    say(f"\n{len(names)} checks of the conformance kit for backends\n")
    started, results = time.perf_counter(), []
    for result in run_checks(kit, names):
        results.append(result)
        _print(result)
        if result.outcome == "failed":
            bench.report.fail(f"conformance: {result.check}: {result.reason}")
    counts = Counter(result.outcome for result in results)
    table = bench.report.table("Conformance", COLUMNS)
    took = time.perf_counter() - started
    table.add(
        {"checks": len(results), **{o: counts[o] for o in OUTCOMES}, "seconds": took,
         "results": [result.as_dict() for result in results]}
    )  # fmt: skip
    if not results:
        bench.report.fail(f"conformance: no check has {bench.checks!r} in its name")


def _print(result: CheckResult) -> None:
    reason = "" if result.outcome == "passed" else f": {result.reason}"
    say(f"- {result.outcome}: {result.sentence}{reason}")
