"""Start of the command line: alone, as a ratio to importing click; and beside broken plugins.

    python -m benchmarks.cli_start

The second table installs tests/torture.py's plugins, over thirty that raise, hang, crash or declare
nonsense, on the path, and takes what each command needs with them and without, in turns.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from tests import tiny_checkpoints
from tests.torture import install_all

BASE = [sys.executable, "-c", "import click, importlib.metadata"]
COMMANDS = {"apr --help": ["--help"], "apr plugins list": ["plugins", "list"]}
ROUNDS = 15


def seconds(command: list[str], env: Mapping[str, str] | None = None) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=env)
    return time.perf_counter() - start


def apr(*args: str) -> list[str]:
    """A command line of this interpreter's apr."""
    return [sys.executable, "-m", "apr_core.cli", *args]


def alone() -> None:
    """Against a process that imports what any such command line imports."""
    times: dict[str, list[float]] = {name: [] for name in ("import click", *COMMANDS)}
    for _ in range(ROUNDS):
        times["import click"].append(seconds(BASE))
        for name, args in COMMANDS.items():
            times[name].append(seconds(apr(*args)))
    base = statistics.median(times["import click"])
    print("| command | median | ratio |\n|---|---|---|")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"| {name} | {1000 * median:.0f} ms | {median / base:.2f} |")


def tortured(work: Path) -> None:
    """With all broken plugins on the path, and without."""
    checkpoint = str(tiny_checkpoints.write(work / "checkpoint", family="qwen3_5"))
    file = str(work / "model.apr")
    commands = COMMANDS | {
        "apr import": ["import", checkpoint, "--quantize", "q8_0", "--force", "-o", file],
        "apr run": ["run", file, "hi", "--raw", "--max-tokens", "2"],
    }
    install_all(work)
    clean = dict(os.environ) | {"APR_CACHE": str(work / "cache"), "APR_CONFIG": str(work / "none")}
    broken = clean | {"PYTHONPATH": str(work)}
    first = seconds(apr("plugins", "list"), broken)
    print("\n| command | alone | beside broken plugins | ratio |\n|---|---|---|---|")
    for name, args in commands.items():
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            for env, taken in zip((clean, broken), times, strict=True):
                taken.append(seconds(apr(*args), env))
        without, beside = (1000 * statistics.median(taken) for taken in times)
        print(f"| {name} | {without:.0f} ms | {beside:.0f} ms | {beside / without:.2f} |")
    print(f"\nThe first command after they were installed took {first:.1f} s.")


if __name__ == "__main__":
    alone()
    with tempfile.TemporaryDirectory() as folder:
        tortured(Path(folder))
