"""The op of the feed-forward, as a reference. Backends may have a faster one of the same name."""

from __future__ import annotations

from typing import Any

from apr_core.plugin import op

Array = Any


@op
def geglu(xp: Any, gate: Array, up: Array) -> Array:
    """Return gelu(gate) * up; gelu(x) = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))."""
    inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
    return 0.5 * gate * (1.0 + xp.tanh(inner)) * up
