"""The interpreter takes what the compiler may refuse: kernels are compiled, too, GPU or not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SHARED = {90: 232448, 89: 101376}  # bytes that a block may have on Hopper and on Ada
KERNELS = {
    "_linear", "_linears", "_add_parts", "_embed", "_shrink", "_decode", "_matmul", "_norm",
    "_gate", "_rope", "_append", "_attend", "_join_ranges", "_conv", "_conv_state", "_gates",
    "_token", "_prepare", "_scan", "_route", "_pairs_of", "_expert_products", "_mix",
}  # fmt: skip


def compiled(script: str, capability: int, folder: Path) -> list[list[str]]:
    """The words of each line that a script prints, run without interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, HERE / script, str(capability)], capture_output=True, text=True,
        env=environment | {"TRITON_CACHE_DIR": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.takes_minutes
@pytest.mark.parametrize("capability", SHARED)
def test_every_kernel_compiles_for_ada_and_hopper_and_fits_them(tmp_path, capability):
    kernels = compiled("compile_kernels.py", capability, tmp_path)
    assert {name for name, _, _ in kernels} == KERNELS
    too_large = [line for line in kernels if int(line[1]) > SHARED[capability]]
    assert not too_large


@pytest.mark.parametrize("capability", SHARED)
def test_the_kernels_that_take_tokens_compile_for_ada_and_hopper(tmp_path, capability):
    sizes = [int(size) for _, size in compiled("compile_draws.py", capability, tmp_path)]
    assert len(sizes) == 10 and min(sizes) > 1000
