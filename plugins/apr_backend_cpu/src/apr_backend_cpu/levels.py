"""Instruction-set levels: what machine code is built for, and which of it this processor runs."""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from apr_core.errors import BackendError

X86, ARM = "x86_64", "aarch64"
VARIABLE = "APR_CPU_LEVEL"  # forces a lesser level


@dataclass(frozen=True, slots=True)
class Level:
    """A set of instructions. `cpu` and `features` are LLVM's names for it.

    `dot` names the instructions of 8-bit products, `vector` the bytes of a register. `needs` are
    flags as Linux spells them in /proc/cpuinfo.
    """

    name: str
    arch: str
    cpu: str
    features: str
    dot: str
    vector: int
    needs: frozenset[str]


V2 = frozenset({"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"})
V3 = V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
LEVELS = {
    level.name: level
    for level in (  # of one architecture the best comes first
        Level("x86-64-v4-vnni", X86, "x86-64-v4", "+avx512vnni,-prefer-256-bit", "vnni", 64,
              V4 | {"avx512_vnni"}),
        Level("x86-64-v4", X86, "x86-64-v4", "-prefer-256-bit", "maddubs", 64, V4),
        Level("x86-64-v3", X86, "x86-64-v3", "", "maddubs", 32, V3),
        Level("x86-64-v2", X86, "x86-64-v2", "", "maddubs", 16, V2),
        Level("aarch64-dotprod", ARM, "neoverse-n1", "+dotprod", "sdot", 16,
              frozenset({"asimddp"})),
    )
}  # fmt: skip
GENERIC = Level("generic", "", "", "", "", 16, frozenset())  # any processor, LLVM's own choices


def architecture() -> str:
    """This machine's, as levels name it."""
    machine = platform.machine()
    return {"AMD64": X86, "arm64": ARM}.get(machine, machine)


def processor_flags() -> frozenset[str]:
    """The processor's features; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return _mac_flags()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def _mac_flags() -> frozenset[str]:
    if platform.system() != "Darwin":
        return frozenset()
    value, size = ctypes.c_int32(0), ctypes.c_size_t(4)
    name = b"hw.optional.arm.FEAT_DotProd"
    ctypes.CDLL(None).sysctlbyname(name, ctypes.byref(value), ctypes.byref(size), None, 0)
    return frozenset({"asimddp"}) if value.value else frozenset()


def possible() -> list[Level]:
    """The levels that this processor runs, the best one first; GENERIC runs anywhere."""
    arch, flags = architecture(), processor_flags()
    return [v for v in LEVELS.values() if v.arch == arch and v.needs <= flags] + [GENERIC]


def chosen() -> Level:
    """The best possible level, or the one that $APR_CPU_LEVEL names. Raises BackendError."""
    levels = possible()
    forced = os.environ.get(VARIABLE, "")
    for level in levels:
        if level.name == (forced or levels[0].name):
            return level
    names = ", ".join(level.name for level in levels)
    raise BackendError(f"{VARIABLE}={forced} is not possible here", f"This processor runs {names}.")
