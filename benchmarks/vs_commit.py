"""The working tree against another commit, on this machine, with the same files.

    python -m benchmarks.vs_commit COMMIT [--model SIZE|FILE.apr ...] [--rounds 5]
        [--tolerance 0.03] [--other DIR] [--threads 2] [--clock wall|cpu] [--work DIR]

Checks the commit out into a folder, makes its environment there by its own `make setup`, and
measures both in turns, each in a process of its own: prefill of 256 tokens, decode of one sequence.
Models of a size have random weights and are imported as q4_k_m by the working tree. The ratio is
the median of the rounds' ratios, because what slows the machine down in a round slows both. Exit
status 1: some ratio is below 1 less the tolerance, or something could not be measured.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.checkpoints import SIZES, write
from benchmarks.files import imported
from benchmarks.speed.figures import Figures, Model, Phase, key
from benchmarks.speed.levels import machine_name
from benchmarks.speed.processes import Player
from benchmarks.speed.turns import Quiet, Turns

ROOT = Path(__file__).parent.parent
PHASES = (Phase("prefill", 256), Phase("decode", 1))
USUAL = ("0.8b", "qwen2-135m", "qwen2-0.5b")
FORMAT = "q4_k_m"
HERE = "here"  # the working tree, beside the name of the commit


def git(folder: Path, *arguments: str) -> str:
    """What a git command prints. Raises CalledProcessError."""
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def python_of(folder: Path) -> Path:
    """The Python of a checkout's own environment."""
    return folder / ".venv" / "bin" / "python"


@contextmanager
def checkout(commit: str, folder: Path | None) -> Iterator[Path]:
    """The commit, ready to run: in `folder`, which stays and is used again, or a temporary one."""
    with tempfile.TemporaryDirectory() as temporary:
        path = folder or Path(temporary) / "other"
        if not path.exists():
            git(ROOT, "worktree", "add", "--detach", str(path), commit)
        try:
            there = git(path, "rev-parse", "HEAD")
            if there != git(ROOT, "rev-parse", f"{commit}^{{commit}}"):
                sys.exit(f"{path} is at {there[:12]}, not at {commit}")
            if not python_of(path).exists():
                subprocess.run(["make", "setup"], cwd=path, check=True, stdout=sys.stderr)
            yield path
        finally:
            if folder is None:
                git(ROOT, "worktree", "remove", "--force", str(path))


def files(named: Sequence[str], work: Path) -> dict[Model, Path]:
    """The models as files, by what they are called. Those of a size are made unless there."""
    paths = {}
    for name in named:
        if name in SIZES:
            file = work / f"{name}-{FORMAT}.apr"
            if not file.exists():
                imported(write(name, work / name), file, FORMAT)
            paths[Model(name, FORMAT)] = file
        else:
            paths[Model(Path(name).stem, "")] = Path(name)
    return paths


def ratios(figures: Figures, model: Model, phase: Phase, other: str) -> list[float]:
    """How many times as fast as the other commit the working tree was, for each round."""
    ours, theirs = (
        figures.speeds.get(key(model, "apr", side, phase), ()) for side in (HERE, other)
    )
    return [a / b for a, b in zip(ours, theirs, strict=False)]


def table(figures: Figures, models: Sequence[Model], other: str, rounds: int) -> str:
    """Medians and ratios as Markdown, and what was noted while they were measured."""
    lines = [
        f"{figures.machine}; threads: {figures.threads}, clock: {figures.clock}, rounds: {rounds}",
        "",
        f"| model | phase | {other}, tok/s | {HERE}, tok/s | {HERE} / {other} |",
        "|---|---|---|---|---|",
    ]
    for model in models:
        for phase in PHASES:
            speeds = [figures.speed(model, "apr", side, phase) for side in (other, HERE)]
            cells = ["-" if speed is None else f"{speed:.1f}" for speed in speeds]
            paired = ratios(figures, model, phase, other)
            cells.append(f"{statistics.median(paired):.3f}" if paired else "-")
            lines.append(f"| {str(model).strip()} | {phase} | {' | '.join(cells)} |")
    notes = [f"{model}: {note}" for model, remarks in figures.notes.items() for note in remarks]
    return "\n".join([*lines, *(f"\n{note}" for note in notes)])


def complaints(
    figures: Figures, models: Sequence[Model], other: str, tolerance: float
) -> list[str]:
    """What is slower than the other commit by more than the tolerance, or was not measured."""
    lines = [f"{name}: {reason}" for name, reason in figures.failures.items()]
    for model in models:
        for phase in PHASES:
            paired = ratios(figures, model, phase, other)
            if paired and statistics.median(paired) < 1 - tolerance:
                ratio = statistics.median(paired)
                lines.append(f"{str(model).strip()}, {phase}: {ratio:.3f} of the speed of {other}")
    return lines


def measure(
    pythons: Mapping[str, Path], paths: Mapping[Model, Path], options: argparse.Namespace
) -> Figures:
    """Both sides with all models, in turns. `pythons` are those of the sides, by their names."""
    figures = Figures(machine_name(), options.threads, options.clock)
    alone = {"PYTHONPATH": ""}  # a side imports its own packages
    players = [Player("apr", (side,), str(python), alone) for side, python in pythons.items()]
    for model, path in paths.items():
        turns = Turns(model, dict.fromkeys(players, path.resolve()), figures, True, Quiet())
        turns.play(PHASES, options.rounds)
    return figures


def main() -> int:
    """Parse arguments and run; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("commit")
    parser.add_argument(
        "--model",
        nargs="+",
        default=USUAL,
        metavar="SIZE|FILE.apr",
        help=f"of {', '.join(SIZES)}; or files",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tolerance", type=float, default=0.03, metavar="SHARE")
    parser.add_argument(
        "--other",
        type=Path,
        metavar="DIR",
        help="where the commit is or shall be checked out; it is kept",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: processor time, for one thread beside others",
    )
    parser.add_argument("--work", type=Path, help="where models are made and kept")
    options = parser.parse_args()
    other = git(ROOT, "rev-parse", "--short", f"{options.commit}^{{commit}}")
    with tempfile.TemporaryDirectory() as folder, checkout(options.commit, options.other) as path:
        paths = files(options.model, options.work or Path(folder))
        figures = measure({other: python_of(path), HERE: Path(sys.executable)}, paths, options)
    models = list(paths)
    print(table(figures, models, other, options.rounds))
    slower = complaints(figures, models, other, options.tolerance)
    for line in slower:
        print(f"! {line}", file=sys.stderr)
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
