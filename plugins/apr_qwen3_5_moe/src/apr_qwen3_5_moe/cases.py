"""Cases of the experts' ops, with which every backend is checked."""

from __future__ import annotations

import numpy as np

from apr_devkit.kits.cases import Call, Matrix, OpCase, each, normal, uniform

ELEMENTWISE = 1e-10
PRODUCT = 1e-9
# experts, inputs, outputs, rows, k: few rows, and many for some of the experts
SHARED = ((4, 256, 32, 1, 2), (40, 512, 64, 9, 4), (5, 256, 32, 70, 2))  # a row for k experts
OWN = ((6, 256, 48, 3, 3), (1, 512, 20, 2, 1), (5, 256, 32, 70, 2))  # a row for each


def cases() -> list[OpCase]:
    """Return all cases of `route`, `expert_linear` and `mix_experts`."""
    routes = [(rows, n, k) for rows, n, k in ((1, 1, 1), (3, 7, 2), (130, 256, 8))]
    mixes = [(1, 1, 1), (3, 2, 37), (70, 8, 600)]
    return [
        *each("route", ELEMENTWISE, routes, "{} rows, {} experts, {} of them", _route),
        *each("route", ELEMENTWISE, [(5, 9, 4)], "{} rows, {} equal experts, {} of them", _ties),
        *each("mix_experts", ELEMENTWISE, mixes, "{} rows, {} experts, {} values", _mix),
        *each("expert_linear", PRODUCT, SHARED, "{} experts, {} by {}, {} rows, {} each", _one),
        *each("expert_linear", PRODUCT, OWN, "{} experts, {} by {}, {} rows for {}", _own),
    ]


def _route(rows: int, experts: int, k: int, rng: np.random.Generator) -> list[Call]:
    return [(normal(rng, rows, experts, scale=3.0), k)]


def _ties(rows: int, experts: int, k: int, rng: np.random.Generator) -> list[Call]:
    return [(rng.integers(-1, 2, (rows, experts)).astype(np.float32), k)]


def _mix(rows: int, k: int, size: int, rng: np.random.Generator) -> list[Call]:
    y, weights = normal(rng, rows, k, size), uniform(rng, 0.0, 1.0, rows, k)
    return [(y, weights, normal(rng, rows, size), uniform(rng, -20.0, 20.0, rows, 1))]


def _ids(rows: int, k: int, experts: int, rng: np.random.Generator) -> np.ndarray:
    """Return k different experts for each row, low ones more often: int64 [rows, k]."""
    likely = 1.0 / np.arange(1, experts + 1)
    p = likely / likely.sum()
    return np.stack([rng.choice(experts, k, replace=False, p=p) for _ in range(rows)])


def _one(
    experts: int, cols: int, out: int, rows: int, k: int, rng: np.random.Generator
) -> list[Call]:
    ids = _ids(rows, k, experts, rng)
    return [(normal(rng, rows, cols), ids, _stack(experts, out, cols, rng))]


def _own(
    experts: int, cols: int, out: int, rows: int, k: int, rng: np.random.Generator
) -> list[Call]:
    ids = _ids(rows, k, experts, rng)
    return [(normal(rng, rows, k, cols), ids, _stack(experts, out, cols, rng))]


def _stack(experts: int, out: int, cols: int, rng: np.random.Generator) -> Matrix:
    return Matrix(normal(rng, experts, out, cols, scale=cols**-0.5), ("expert_linear",))
