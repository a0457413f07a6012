"""Instruction sets of this machine, by the names of the CPU backend; and the machine's own name."""

from __future__ import annotations

import platform
import subprocess

from apr_backend_cpu.levels import GENERIC, LEVELS, Level, possible
from apr_backend_cpu.native import VARIABLE

__all__ = ["ALL", "VARIABLE", "Level", "levels_here", "machine_name"]
ALL: dict[str, Level] = {**LEVELS, GENERIC.name: GENERIC}


def levels_here() -> list[str]:
    """Names of the levels that this machine runs, its own first."""
    return [level.name for level in possible()]


def machine_name() -> str:
    """The processor and its caches, in one line."""
    try:
        asked = subprocess.run(["lscpu"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return platform.processor() or platform.machine()
    pairs = (line.split(":", 1) for line in asked.stdout.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in pairs}
    facts = {
        "family": fields.get("CPU family"), "model": fields.get("Model"),
        "processors": fields.get("CPU(s)"), "L3": fields.get("L3 cache"),
    }  # fmt: skip
    rest = ", ".join(f"{key} {value}" for key, value in facts.items() if value)
    return f"{fields.get('Model name', platform.machine())} ({rest})"
