"""The figures as Markdown: a table for each phase, and what has to be known to read them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from benchmarks.speed.figures import PEERS, Figures, Model, Phase

HEADS = {
    "prefill": ("Prefill of {} tokens", "of the level's multiply rate"),
    "decode": ("Decode, sequences at once: {}", "of the memory's bandwidth"),
}


def markdown(
    figures: Figures, models: Sequence[Model], levels: Sequence[str], phases: Sequence[Phase]
) -> str:
    """All of it."""
    parts = [f"Machine: {figures.machine}. Threads: {figures.threads}. {_rounds(figures)}"]
    if figures.clock == "cpu":
        parts.append("Seconds are of processor time, so that others hardly count.")
    if figures.beside:
        parts.append(f"Beside {figures.beside} processes that only compute.")
    parts += [_table(figures, models, levels, phase) for phase in phases]
    parts.append("\n".join(f"- {line}" for line in _remarks(figures, models)))
    return "\n\n".join(parts) + "\n"


def _rounds(figures: Figures) -> str:
    """How many rounds the medians are of, and how much others disturbed them."""
    counts = {len(values) for values in figures.speeds.values()} or {0}
    rounds = "-".join(map(str, sorted({min(counts), max(counts)})))
    others = [share for shares in figures.others.values() for share in shares] or [0.0]
    return (
        f"Medians; rounds: {rounds}. "
        f"Others took {statistics.median(others):.0%} of the processors during the median turn, "
        f"{max(others):.0%} during the worst."
    )


def _table(figures: Figures, models: Iterable[Model], levels: Sequence[str], phase: Phase) -> str:
    title, share = HEADS[phase.kind]
    names = ("apr", *PEERS)
    heads = ("model", "format", "level", *names, "apr / better peer", share)
    lines = [f"### {title.format(phase.count)}, tok/s", "", "| " + " | ".join(heads) + " |"]
    lines.append("|---" * len(heads) + "|")
    for model in models:
        for level in levels:
            speeds = [figures.speed(model, name, level, phase) for name in names]
            if not any(speeds):
                continue
            mark = "*" if figures.notes.get(str(model)) else ""
            row = [model.size, model.format + mark, level, *map(_number, speeds)]
            ratio, used = figures.ratio(model, level, phase), figures.share(model, level, phase)
            row.append(f"{ratio:.2f}" if ratio else "-")
            row.append(f"{used:.0%}" if used else "-")
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    """Three digits, or more where there are more before the point."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _remarks(figures: Figures, models: Iterable[Model]) -> Iterable[str]:
    for name, facts in figures.engines.items():
        yield f"{name}: {facts}"
    for name, rate in figures.rates.items():
        if rate:
            yield f"multiply rate, {name}: {rate / 1e9:.0f} G multiply-adds a second"
    for model in models:
        if values := figures.bandwidth.get(str(model)):
            gigabytes = statistics.median(values) / 1e9
            yield f"bandwidth beside {model}: {gigabytes:.1f} GB/s"
        for note in figures.notes.get(str(model), ()):
            yield f"\\* {model}: {note}"
    for reason, names in _grouped(figures.failures).items():
        yield f"- means a failure in {', '.join(names)}: {reason}"


def _grouped(failures: dict[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, reason in failures.items():
        groups.setdefault(reason, []).append(name)
    return groups
