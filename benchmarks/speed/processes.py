"""Engines in processes of their own, and how much of the machine others took meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")
TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class EngineFailed(Exception):
    """An engine could not be started, or not do what it was asked; the message says why."""


@dataclass(frozen=True)
class Player:
    """An engine at a level: how its process is started."""

    engine: str  # as worker.py names it
    levels: tuple[str, ...]  # for whose rows it is measured
    python: str
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """Of the engine and its level."""
        return f"{self.engine} {'/'.join(self.levels)}"


class Running:
    """A player's process with a model."""

    def __init__(self, player: Player, path: Path, threads: int, clock: str = "wall") -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [player.python, str(WORKER), player.engine, str(path), str(threads), clock],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True,
            env={**os.environ, **player.environment},
        )  # fmt: skip
        try:
            self.facts: dict[str, str] = self._answer()
        except EngineFailed:
            self.close()
            raise

    def ask(self, method: str, **asked: Any) -> Any:
        """Call a method of the engine. Raises EngineFailed, also where the process ended."""
        try:
            print(json.dumps({"ask": method, **asked}), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise EngineFailed(self._last_line()) from None
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise EngineFailed(self._last_line())
        answer = json.loads(line)
        if "error" in answer:
            raise EngineFailed(answer["error"])
        return answer["result"]

    def _last_line(self) -> str:
        """Of what a process said that ended, or the failed assertion."""
        code = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().decode("utf-8", "replace").strip().splitlines()
        asserted = [line for line in lines if "ASSERT" in line]
        return f"ended with {code}: {([*lines, *asserted] or ['it said nothing'])[-1]}"

    def cpu_seconds(self) -> float:
        """Of processor time so far, in all its threads; 0 where the system does not say."""
        path = Path(f"/proc/{self._process.pid}/stat")
        if not path.exists():
            return 0.0
        fields = path.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
        self._said.close()


def busy_seconds() -> float:
    """Of processor time that the whole machine spent so far; 0 where the system does not say."""
    path = Path("/proc/stat")
    if not path.exists():
        return 0.0
    user, nice, system, _, _, *interrupts = path.read_text().split("\n", 1)[0].split()[1:9]
    return sum(map(int, (user, nice, system, *interrupts))) / TICK


def busy_share(seconds: float) -> float:
    """Of the machine's processors, over the next seconds: what is in use by anything."""
    before = busy_seconds()
    time.sleep(seconds)
    return (busy_seconds() - before) / (seconds * (os.cpu_count() or 1))


@contextmanager
def computing(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many processes that only compute, until the end of the block."""
    loop = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(loop) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def asked_alone(running: Running, method: str, **asked: Any) -> tuple[Any, float]:
    """What the engine answers, and the share of the machine's processors others took meanwhile."""
    busy, own, started = busy_seconds(), running.cpu_seconds(), time.perf_counter()
    result = running.ask(method, **asked)
    seconds = time.perf_counter() - started
    others = (busy_seconds() - busy) - (running.cpu_seconds() - own)
    return result, max(0.0, others / (seconds * (os.cpu_count() or 1)))
