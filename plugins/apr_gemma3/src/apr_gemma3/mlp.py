"""The feed-forward of Gemma 3. Written only in ops."""

from __future__ import annotations

from typing import Any

from apr_core.plugin import BoundOps, FeedForward, MixerExample, Weights

Array = Any


class GeGLU(FeedForward):
    """Gated feed-forward: down(gelu(gate(x)) * up(x))."""

    matrices = ("gate_proj", "up_proj", "down_proj")
    activation = "gelu"

    def __call__(self, o: BoundOps, w: Weights, x: Array) -> Array:
        """Map x [T, hidden] to [T, hidden]."""
        gate, up = o.linears(x, (w.gate_proj, w.up_proj))
        return o.linear(o.geglu(gate, up), w.down_proj)

    @staticmethod
    def example() -> MixerExample:
        """Return a small case for the conformance kit."""
        shapes = {"gate_proj": (96, 40), "up_proj": (96, 40), "down_proj": (40, 96)}
        return MixerExample({}, 40, shapes)
