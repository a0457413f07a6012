"""Cases of `window_attention`: every backend's conformance kit runs them."""

from __future__ import annotations

from functools import partial

import numpy as np

from apr_devkit.kits import OpCase
from apr_devkit.kits.cases import Call, Parts, Window, normal

STEPS = {
    "one token": (Parts((0, 1, 0)),),
    "a prompt longer than two windows, then tokens": (
        Parts((0, 70, 0)),
        *(Parts((0, 1, n)) for n in range(70, 80)),
    ),
    "chunks shorter than the window": tuple(Parts((0, 5, n)) for n in range(0, 60, 5)),
    "a ragged batch": (
        Parts((0, 3, 0), (1, 1, 0), (2, 40, 0)),
        Parts((2, 1, 40), (0, 66, 3), (1, 1, 1)),
    ),
}
SIZES = ((4, 2, 16, 8), (1, 1, 64, 1), (6, 3, 32, 24))  # (heads, kv heads, head size, window)


def cases() -> list[OpCase]:
    """Return cases with windows of one position, and shorter and longer than the steps."""
    return [
        OpCase("window_attention", f"{name}, window {size[3]}", partial(_calls, size, steps))
        for size in SIZES
        for name, steps in STEPS.items()
    ]


def _calls(
    size: tuple[int, int, int, int], steps: tuple[Parts, ...], rng: np.random.Generator
) -> list[Call]:
    """Return the op's arguments, one call per step, over one state."""
    heads, kv_heads, dim, window = size
    state = Window(kv_heads, dim, window)
    calls = []
    for step in steps:
        rows = sum(count for _, count, _ in step.parts)
        q, k, v = (normal(rng, rows, n, dim) for n in (heads, kv_heads, kv_heads))
        calls.append((q, k, v, state, step, dim**-0.5))
    return calls
