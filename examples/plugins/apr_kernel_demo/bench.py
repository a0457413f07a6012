"""Compares the kernel with the reference it replaces: both, in turns, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from apr_core.ops import CORE_OPS
from apr_core.registry import get_registry
from apr_kernel_demo.kernels import swiglu

INNER, TURNS = 4864, 30  # features of a feed-forward of half a billion parameters; measurements


def seconds(run: Callable[..., torch.Tensor], gate: torch.Tensor, up: torch.Tensor) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    run(gate, up)
    return time.perf_counter() - start


def main() -> None:
    """Print a line for each number of rows."""
    registry = get_registry()
    backend = registry.load(registry.get("backend", "torch"))(threads=1)
    reference = partial(CORE_OPS["swiglu"].body, backend.xp)
    for rows in (1, 64, 512):
        gate, up = torch.randn(rows, INNER), torch.randn(rows, INNER)
        pairs = [(seconds(reference, gate, up), seconds(swiglu, gate, up)) for _ in range(TURNS)]
        slow, fast = median(a for a, _ in pairs), median(b for _, b in pairs)
        print(
            f"[{rows}, {INNER}]: reference {slow * 1e6:.0f} us, kernel {fast * 1e6:.0f} us: "
            f"{slow / fast:.1f} times as fast"
        )


if __name__ == "__main__":
    main()
