"""Which instruction set kernels are chosen for, and that results do not depend on it."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from apr_backend_cpu import levels
from apr_backend_cpu.levels import ARM, GENERIC, LEVELS, V2, V3, V4, V8_2, X86, possible
from apr_backend_cpu.native import chosen
from apr_core.errors import BackendError

DIGESTS = Path(__file__).parent / "level_digests.py"


def processor(monkeypatch, arch, flags, forced=""):
    monkeypatch.setattr(levels, "architecture", lambda: arch)
    monkeypatch.setattr(levels, "processor_flags", lambda: frozenset(flags))
    monkeypatch.setenv("APR_CPU_LEVEL", forced)


@pytest.mark.parametrize(
    ("arch", "flags", "best"),
    [
        (X86, V4 | {"avx512_vnni", "amx_int8"}, "x86-64-v4-vnni"),
        (X86, V4, "x86-64-v4"),
        (X86, V3 | {"avx512f"}, "x86-64-v3"),
        (X86, V2 | {"avx"}, "x86-64-v2"),
        (X86, {"sse2"}, "generic"),
        (X86, (), "generic"),
        (X86, V3 - {"abm"}, "x86-64-v2"),
        (ARM, V8_2 | {"i8mm"}, "aarch64-dotprod"),
        (ARM, V8_2 - {"atomics"}, "generic"),
        ("riscv64", V4, "generic"),
    ],
)
def test_the_best_level_that_a_processor_runs_is_chosen(monkeypatch, arch, flags, best):
    processor(monkeypatch, arch, flags)
    assert chosen().name == best
    assert possible()[-1] is GENERIC, "which runs anywhere"


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v2", "generic"])
def test_a_lesser_level_can_be_forced(monkeypatch, name):
    processor(monkeypatch, X86, V4, name)
    assert chosen().name == name


@pytest.mark.parametrize("name", ["avx2", "vnni", "x86-64-v4-vnni", "aarch64-dotprod", "X86-64-V3"])
def test_a_level_that_is_unknown_or_impossible_here_is_refused(monkeypatch, name):
    processor(monkeypatch, X86, V4, name)
    with pytest.raises(BackendError) as caught:
        chosen()
    assert caught.value.message == f"APR_CPU_LEVEL={name} is not possible here"
    assert caught.value.hint == ("This processor runs x86-64-v4, x86-64-v3, x86-64-v2, generic.")
    assert caught.value.exit_code == 14


def test_every_level_needs_what_the_next_lesser_one_needs():
    x86 = [level for level in LEVELS.values() if level.arch == X86]
    assert all(more.needs > less.needs for more, less in pairwise(x86))


def digests(level):
    """(whose code it was, a digest of each part) from a process of its own."""
    done = subprocess.run(
        [sys.executable, DIGESTS], env=os.environ | {"APR_CPU_LEVEL": level},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("notice: ")]
    return lines[0].partition(":")[0], lines[1:-1]


@pytest.fixture(scope="module")
def best():
    return digests("")


@pytest.mark.takes_minutes
@pytest.mark.parametrize("level", [level.name for level in possible() if level is not GENERIC])
def test_every_level_that_runs_here_gives_the_same_bits(best, level):
    """Levels without a library are compiled, once, and kept; test_cpu_native.py has `generic`."""
    name, lines = digests(level)
    assert name == level
    assert len(lines) > 40
    assert lines == best[1]
