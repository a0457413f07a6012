"""Families x formats x instruction sets: apr, llama.cpp and ik_llama.cpp on the same blocks.

    python -m benchmarks.matrix [--only SIZE,FORMAT,LEVEL ...] [--rounds 5] [--prefill 256 2048]
        [--decode 1 8] [--llama-python PYTHON] [--llama-python x86-64-v3=PYTHON]
        [--ik-python PYTHON] [--work DIR] [--json FILE] [--picture FILE.svg]

Builds checkpoints of real sizes with random weights, imports them in every format, exports those
files to GGUF, and measures the engines in turns, each in a process of its own: medians, ratios to
the better peer, and what apr uses of the memory's bandwidth or of the processor's multipliers.

Levels below the processor's own are forced: on apr by $APR_CPU_LEVEL, on llama.cpp by the Python of
a venv where it was built without the newer instructions. A peer is run by the Python that is given
for it, or by this one if its package is here; what is missing is left out and named.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from importlib.util import find_spec
from itertools import product
from pathlib import Path

from apr_core.cli.export import run_export
from benchmarks.checkpoints import SIZES, write
from benchmarks.files import imported
from benchmarks.speed.figures import FORMATS, Figures, Model, Phase, key
from benchmarks.speed.heat_map import svg
from benchmarks.speed.levels import ALL, VARIABLE, levels_here, machine_name
from benchmarks.speed.processes import Player, computing
from benchmarks.speed.roofline import Work, multiply_rate
from benchmarks.speed.tables import markdown
from benchmarks.speed.turns import Quiet, Turns
from benchmarks.speed.worker import REPACK

USUAL = ("0.8b", "2b", "qwen2-135m", "qwen2-0.5b", "qwen2-1.5b")  # others have to be named
Options = argparse.Namespace
MEMORY_SHARE = 0.6  # of what is free, for all engines' models side by side


def players_of(options: Options) -> dict[str, list[Player]]:
    """Those of each level that can be run here, the machine's own level first."""
    here = levels_here()
    pythons = {here[0]: _own("llama_cpp")}
    for pair in options.llama_python or ():
        level, _, python = pair.rpartition("=")
        pythons[level or here[0]] = python
    ik = options.ik_python or _own("ik_llama_cpp")
    named = {level for only in options.only or () for level in only[2:3]}
    levels = [name for name in here if name in {*pythons, *named}]
    players: dict[str, list[Player]] = {}
    for level in levels:
        environment = {VARIABLE: level}
        players[level] = [Player("apr", (level,), sys.executable, environment)]
        if python := pythons.get(level):
            players[level].append(Player("llama.cpp", (level,), python))
        else:
            print(f"llama.cpp is left out at level {level}: no Python for it", file=sys.stderr)
    if ik:  # its wheels are built for AVX2: one process is the peer of all levels from there
        served = tuple(name for name in levels if "avx2" in ALL[name].needs)
        for level in served:
            environment = {REPACK: "1"} if options.ik_repack else {}
            players[level].append(Player("ik_llama.cpp", served, ik, environment))
    else:
        print("ik_llama.cpp is left out: no Python for it", file=sys.stderr)
    return players


def _own(package: str) -> str | None:
    return sys.executable if find_spec(package) else None


def wanted(only: list[list[str]] | None, *names: str) -> bool:
    """Whether a size, format and level were asked for; what is not usual by its name only."""
    if not only:
        return names[0] in USUAL
    return any(
        all(fnmatch(n, p) for n, p in zip(names, pattern, strict=False))
        and (names[0] in USUAL or names[0] == pattern[0])
        for pattern in only
    )


def files(model: Model, work: Path) -> tuple[Path, Path, list[str]]:
    """The model as .apr and as GGUF, and what is not the same in both."""
    checkpoint = write(model.size, work / model.size)
    stem = f"{model.size}-{model.format}"
    file = imported(checkpoint, work / f"{stem}.apr", model.format)
    gguf, log = work / f"{stem}.gguf", work / f"{stem}.gguf.json"
    if not (gguf.exists() and log.exists()):
        log.write_text(json.dumps(run_export(file, "gguf", gguf, force=True)["warnings"]))
    changed = json.loads(log.read_text())
    note = f"the peers have other blocks in {len(changed)} tensors: {changed[0]}" if changed else ""
    return file, gguf, [note] if note else []


def free_memory() -> int:
    """Bytes that new processes may take; very many where the system does not say."""
    path = Path("/proc/meminfo")
    text = path.read_text() if path.exists() else ""
    lines = (line.split() for line in text.splitlines() if line.startswith("MemAvailable"))
    return next((int(line[1]) << 10 for line in lines), 1 << 50)


def missing(figures: Figures, model: Model, levels: Iterable[str], options: Options) -> list[Phase]:
    """Phases that are not measured yet, as often as was asked for."""
    done = {
        phase: min(len(figures.speeds.get(key(model, "apr", n, phase), ())) for n in levels)
        for phase in options.phases
    }
    return [phase for phase in options.phases if done[phase] < options.rounds]


def measure(
    model: Model,
    players: Iterable[Player],
    phases: list[Phase],
    figures: Figures,
    options: Options,
    work: Path,
) -> None:
    """Add a model's figures to the others."""
    file, gguf, notes = files(model, work)
    figures.work[str(model)] = vars(Work.of(file))
    figures.notes[str(model)] = notes
    paths = {p: file if p.engine == "apr" else gguf for p in dict.fromkeys(players)}
    together = len(paths) * file.stat().st_size < MEMORY_SHARE * free_memory()
    quiet = Quiet(options.quiet, options.patience)
    Turns(model, paths, figures, together, quiet).play(phases, options.rounds)
    if not options.keep:
        for path in work.glob(f"{model.size}-{model.format}.*"):
            path.unlink()


def measure_all(models: Sequence[Model], figures: Figures, options: Options, work: Path) -> None:
    """Measure what is missing; keep the figures after each model."""
    players = players_of(options)
    todo = []
    for model in models:
        levels = [name for name in players if wanted(options.only, *model, name)]
        if levels and (phases := missing(figures, model, levels, options)):
            todo.append((model, levels, phases))
    here = conditions(options)
    if todo and (figures.machine, figures.threads, figures.clock, figures.beside) != here:
        sys.exit(f"{options.json} is of another machine, or of other threads, clock or --beside")
    if todo:
        for level, kind in product(players, sorted({*FORMATS.values()})):
            rate, name = multiply_rate(ALL[level], kind, options.threads), f"{level} {kind}"
            figures.rates[name] = max(filter(None, (rate, figures.rates.get(name))), default=None)
    for i, (model, levels, phases) in enumerate(todo):
        chosen = [player for name in levels for player in players[name]]
        measure(model, chosen, phases, figures, options, work)
        if options.json:
            figures.save(options.json)
        if not options.keep and model.size not in {later[0].size for later in todo[i + 1 :]}:
            shutil.rmtree(work / model.size, ignore_errors=True)


def conditions(options: Options) -> tuple[str, int, str, int]:
    """What figures have to share to stand in one table: machine, threads, clock, others beside."""
    return machine_name(), options.threads, options.clock, options.beside


def run(options: Options, work: Path) -> None:
    """Measure what was asked for and is not there yet; print and draw it."""
    figures = Figures(*conditions(options))
    if options.json and options.json.exists():
        figures = Figures.load(options.json)
    models = [
        Model(size, name)
        for size in (*USUAL, *(size for size in SIZES if size not in USUAL))
        for name in FORMATS
        if any(wanted(options.only, size, name, level) for level in ALL)
    ]
    measure_all(models, figures, options, work)
    levels = [name for name in ALL if f"apr {name}" in figures.engines]
    shown = figures, models, levels, options.phases
    print(markdown(*shown))
    if options.picture:
        options.picture.write_text(svg(*shown), "utf-8")


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--only",
        action="append",
        metavar="SIZE,FORMAT,LEVEL",
        type=lambda text: text.split(","),
        help="only these; with wildcards, and the last parts may be left out; more than once",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: processor time, for one thread beside others",
    )
    parser.add_argument("--prefill", type=int, nargs="*", default=[256, 2048], metavar="TOKENS")
    parser.add_argument("--decode", type=int, nargs="*", default=[1, 8], metavar="SEQUENCES")
    parser.add_argument(
        "--llama-python",
        action="append",
        metavar="[LEVEL=]PYTHON",
        help="has llama.cpp, built for this machine or for a lesser level; more than once",
    )
    parser.add_argument("--ik-python", metavar="PYTHON", help="has ik_llama.cpp")
    parser.add_argument(
        "--ik-repack",
        action="store_true",
        help="let it interleave rows at load, against its default",
    )
    parser.add_argument(
        "--quiet",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="wait until others take no more of the processors",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="with --quiet: how long a turn waits at most",
    )
    parser.add_argument(
        "--beside",
        type=int,
        default=0,
        metavar="PROCESSES",
        help="run so many that only compute, all the time",
    )
    parser.add_argument("--work", type=Path, help="where files are made; default: a new folder")
    parser.add_argument("--keep", action="store_true", help="keep the files that were made")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="keep raw figures; what is there already is not measured",
    )
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw the ratios")
    options = parser.parse_args()
    options.phases = [Phase("prefill", n) for n in options.prefill]
    options.phases += [Phase("decode", n) for n in options.decode]
    with tempfile.TemporaryDirectory() as folder, computing(options.beside):
        run(options, options.work or Path(folder))


if __name__ == "__main__":
    main()
