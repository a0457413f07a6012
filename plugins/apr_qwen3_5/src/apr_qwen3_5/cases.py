"""Cases of the gated delta net's ops, with which every backend is checked."""

from __future__ import annotations

from functools import partial

import numpy as np

from apr_devkit.kits.cases import Call, OpCase, Parts, Recurrent, Vector, normal, uniform

ELEMENTWISE = 1e-10
DELTA = 1e-9  # products of decays, summed over a chunk, through a triangular solve
STEPS = {
    "one token": (Parts((0, 1, 0)),),
    "a prompt, then tokens": (Parts((0, 37, 0)), Parts((0, 1, 37)), Parts((0, 1, 38))),
    "up to, on and over a chunk": (Parts((0, 63, 0)), Parts((0, 1, 63)), Parts((0, 65, 64))),
    "a ragged batch": (
        Parts((0, 5, 0), (1, 1, 0), (2, 130, 0)),
        Parts((0, 1, 5), (1, 1, 1), (2, 1, 130)),
        Parts((2, 2, 131), (0, 66, 6)),
    ),
}


def cases() -> list[OpCase]:
    """Return all cases of `causal_conv1d`, `delta_gates`, `gated_delta` and `gated_rms_norm`."""
    return [*conv_cases(), *gate_cases(), *delta_cases()]


def conv_cases() -> list[OpCase]:
    """Return cases with 1, odd and model-sized channels, and 2 and 4 taps."""
    return [
        OpCase(
            "causal_conv1d",
            f"{name}, {channels} channels, {taps} taps",
            partial(_conv, channels, taps, steps),
            ELEMENTWISE,
        )
        for channels, taps in ((1, 4), (37, 4), (512, 4), (48, 2))
        for name, steps in STEPS.items()
    ]


def _conv(
    channels: int, taps: int, steps: tuple[Parts, ...], rng: np.random.Generator
) -> list[Call]:
    w = Vector(normal(rng, channels, 1, taps, scale=0.5))
    state = Recurrent(conv=(taps - 1, channels))
    return [(normal(rng, _rows(step), channels), w, state, step) for step in steps]


def _rows(step: Parts) -> int:
    return sum(count for _, count, _ in step.parts)


def gate_cases() -> list[OpCase]:
    """Return cases with gates of 1, odd and many heads, and norms of a head before its gate."""
    shapes = ((1, 1), (3, 5), (200, 16))
    heads = ((1, 1, 1), (5, 3, 33), (130, 4, 128))
    return [
        OpCase("delta_gates", f"{shape}", partial(_gates, *shape), ELEMENTWISE) for shape in shapes
    ] + [
        OpCase("gated_rms_norm", f"{shape}", partial(_norm, shape), ELEMENTWISE) for shape in heads
    ]


def _gates(rows: int, heads: int, rng: np.random.Generator) -> list[Call]:
    a, b = normal(rng, rows, heads, scale=6.0), uniform(rng, -100.0, 100.0, rows, heads)
    A_log = np.log(uniform(rng, 1e-3, 16.0, heads))  # decay rates of models
    return [(a, b, Vector(A_log), Vector(normal(rng, heads)))]


def _norm(shape: tuple[int, int, int], rng: np.random.Generator) -> list[Call]:
    w = Vector(1.0 + normal(rng, shape[-1], scale=0.2))
    return [(normal(rng, *shape), w, normal(rng, *shape, scale=3.0), 1e-6)]


def delta_cases() -> list[OpCase]:
    """Return cases with 1, 2 and 3 value heads per key head; decays from almost none to all."""
    one, prompt, chunk, ragged = STEPS
    shapes = {
        (2, 4, 32, 24): STEPS,
        (1, 1, 8, 8): (one, prompt, chunk),
        (1, 3, 16, 40): (one, ragged),
        (2, 2, 128, 128): (one, prompt, chunk),
    }
    usual = [
        OpCase(
            "gated_delta",
            f"{name}, {hv} heads over {hk}, {dk} by {dv}",
            partial(_delta, (hk, hv, dk, dv), STEPS[name], (-20.0, -1e-4)),
            DELTA,
        )
        for (hk, hv, dk, dv), names in shapes.items()
        for name in names
    ]
    extremes = {"no decay at all": (0.0, 0.0), "decay beyond float32": (-300.0, -200.0)}
    return usual + [
        OpCase(
            "gated_delta", name, partial(_delta, (2, 4, 32, 24), (Parts((0, 130, 0)),), span), DELTA
        )
        for name, span in extremes.items()
    ]


def _delta(
    shape: tuple[int, int, int, int],
    steps: tuple[Parts, ...],
    decays: tuple[float, float],
    rng: np.random.Generator,
) -> list[Call]:
    hk, hv, dk, dv = shape
    state, calls = Recurrent(delta=(hv, dk, dv)), []
    for step in steps:
        rows = _rows(step)
        q, k = normal(rng, rows, hk, dk), normal(rng, rows, hk, dk)
        v = normal(rng, rows, hv, dv)
        log_decay, beta = _decays(rng, decays, rows, hv), uniform(rng, 0.0, 1.0, rows, hv)
        calls.append((q, k, v, log_decay, beta, state, step))
    return calls


def _decays(
    rng: np.random.Generator, span: tuple[float, float], rows: int, heads: int
) -> np.ndarray:
    """Return log decays within the span, as many near zero as far from it."""
    strongest, weakest = span
    if weakest == 0.0 or strongest < -100.0:
        return uniform(rng, strongest, weakest, rows, heads)
    exponents = rng.uniform(np.log(-weakest), np.log(-strongest), (rows, heads))
    return -np.exp(exponents).astype(np.float32)
