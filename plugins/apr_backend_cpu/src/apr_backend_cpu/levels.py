"""Instruction-set levels: what machine code is built for, and which this processor runs."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

X86, ARM = "x86_64", "aarch64"


@dataclass(frozen=True, slots=True)
class Level:
    """A set of instructions. `cpu` and `features` are LLVM's names for it.

    `dot` names the instructions for 8-bit products; `vector` is the register size in bytes. `needs`
    are flags as Linux spells them in /proc/cpuinfo.
    """

    name: str
    arch: str
    cpu: str
    features: str
    dot: str
    vector: int
    needs: frozenset[str]

    @property
    def sums_pairs(self) -> bool:
        """Whether byte products are summed in pairs in 16 bits, too few for 8-bit codes."""
        return self.dot not in ("vnni", "sdot")


V2 = frozenset({"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"})
V3 = V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
V8_2 = frozenset({"asimd", "asimddp", "asimdhp", "asimdrdm", "atomics", "fphp"})
LEVELS = {
    level.name: level
    for level in (  # best first within an architecture
        Level(
            "x86-64-v4-vnni",
            X86,
            "x86-64-v4",
            "+avx512vnni,-prefer-256-bit",
            "vnni",
            64,
            V4 | {"avx512_vnni"},
        ),
        Level("x86-64-v4", X86, "x86-64-v4", "-prefer-256-bit", "maddubs", 64, V4),
        Level("x86-64-v3", X86, "x86-64-v3", "", "maddubs", 32, V3),
        Level("x86-64-v2", X86, "x86-64-v2", "", "maddubs", 16, V2),
        # without weaker-ordered loads (rcpc), which not all ARM v8.2 processors have
        Level("aarch64-dotprod", ARM, "neoverse-n1", "-rcpc", "sdot", 16, V8_2),
    )
}
GENERIC = Level("generic", "", "", "", "", 16, frozenset())  # any processor, LLVM's own choices


def architecture() -> str:
    """Return this machine's architecture, as levels name it."""
    machine = platform.machine()
    return {"AMD64": X86, "arm64": ARM}.get(machine, machine)


def processor_flags() -> frozenset[str]:
    """Return the processor's features; empty where the system does not report them."""
    if platform.system() == "Darwin":
        return V8_2 if architecture() == ARM else frozenset()  # every ARM Mac has these
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def possible() -> list[Level]:
    """List the levels that this processor runs, best first; GENERIC runs anywhere."""
    arch, flags = architecture(), processor_flags()
    return [v for v in LEVELS.values() if v.arch == arch and v.needs <= flags] + [GENERIC]
