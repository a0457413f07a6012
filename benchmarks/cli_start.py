"""How long `apr --help` and `apr plugins list` take, as a ratio to importing click alone."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

BASE = [sys.executable, "-c", "import click, importlib.metadata"]
COMMANDS = {"apr --help": ["--help"], "apr plugins list": ["plugins", "list"]}


def seconds(command: list[str]) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Print medians of 15 alternating runs."""
    times: dict[str, list[float]] = {name: [] for name in ("import click", *COMMANDS)}
    for _ in range(15):
        times["import click"].append(seconds(BASE))
        for name, args in COMMANDS.items():
            times[name].append(seconds([sys.executable, "-m", "apr_core.cli", *args]))
    base = statistics.median(times["import click"])
    print("| command | median | ratio |\n|---|---|---|")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"| {name} | {1000 * median:.0f} ms | {median / base:.2f} |")


if __name__ == "__main__":
    main()
