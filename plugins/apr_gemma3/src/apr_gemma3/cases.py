"""Cases of `geglu`: every backend's conformance kit runs them."""

from __future__ import annotations

from functools import partial

import numpy as np

from apr_devkit.kits import OpCase
from apr_devkit.kits.cases import Call, normal


def cases() -> list[OpCase]:
    """Return cases with rows of usual sizes."""
    return [
        OpCase("geglu", f"[{rows}, {cols}]", partial(_geglu, rows, cols))
        for rows, cols in ((1, 64), (7, 160), (33, 1))
    ]


def _geglu(rows: int, cols: int, rng: np.random.Generator) -> list[Call]:
    return [(normal(rng, rows, cols), normal(rng, rows, cols))]
