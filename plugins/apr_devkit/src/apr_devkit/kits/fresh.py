"""Runs a piece of Python in a process of its own: what nothing else has imported or warmed up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

LONGEST = 300  # seconds; a first run may compile


def run_fresh(
    program: str, *arguments: str, hash_seed: int | None = None, longest: float = LONGEST
) -> str:
    """The last line a program prints. It finds the modules that this process finds.

    `arguments` are its `sys.argv[1:]`. Strings hash by `hash_seed`, by default not as they do here.
    Raises AssertionError with the last line of its errors if it fails, or if it takes longer than
    `longest` seconds.
    """
    if hash_seed is None:
        hash_seed = 2 if os.environ.get("PYTHONHASHSEED") == "1" else 1
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    env = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": str(hash_seed)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env=env, capture_output=True, text=True, check=False, timeout=longest,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise AssertionError(f"in a process of its own it takes over {longest:g} s") from None
    said = done.stderr.strip().splitlines()
    assert done.returncode == 0, f"in a process of its own it fails: {' '.join(said[-1:])}"
    return (done.stdout.splitlines() or [""])[-1]
