"""Instruction sets that the table has rows for, and what this machine has of them."""

from __future__ import annotations

import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ISA = "APR_CPU_ISA"  # the variable that makes apr use an older instruction set


@dataclass(frozen=True)
class Level:
    """An instruction set: its name in tables, what $APR_CPU_ISA calls it, and what it takes.

    `flags` are the processor's, as Linux names them.
    """

    name: str
    isa: str
    flags: frozenset[str]


LEVELS = {  # the best first
    level.name: level
    for level in (
        Level("vnni", "vnni", frozenset(("avx2", "avx512_vnni", "avx512vl"))),
        Level("avx2", "avx2", frozenset(("avx2", "fma", "f16c"))),
        Level("generic", "generic", frozenset()),
    )
}


def flags() -> frozenset[str]:
    """The processor's, as Linux names them; none elsewhere."""
    path = Path("/proc/cpuinfo")
    text = path.read_text("utf-8") if path.exists() else ""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.M)
    return frozenset(found[1].split()) if found else frozenset()


def levels_here() -> list[str]:
    """Names of the levels that this machine has, its own first."""
    has = flags()
    return [name for name, level in LEVELS.items() if level.flags <= has]


def machine_name() -> str:
    """The processor and its caches, in one line."""
    try:
        asked = subprocess.run(["lscpu"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return platform.processor() or platform.machine()
    pairs = (line.split(":", 1) for line in asked.stdout.splitlines() if ":" in line)
    said = {key.strip(): value.strip() for key, value in pairs}
    facts = {
        "family": said.get("CPU family"), "model": said.get("Model"),
        "processors": said.get("CPU(s)"), "L3": said.get("L3 cache"),
    }  # fmt: skip
    rest = ", ".join(f"{key} {value}" for key, value in facts.items() if value)
    return f"{said.get('Model name', platform.machine())} ({rest})"
