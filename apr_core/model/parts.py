"""The parts of a layer: mixers and feed-forward variants, written in ops. What plugins derive."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from apr_core.family.modelspec import MixerExample
    from apr_core.model.state import State, StateMakers
    from apr_core.model.step import Step
    from apr_core.ops.binding import BoundOps

Array = Any
Weights = SimpleNamespace  # of a layer: one attribute a role, uploaded


class Part:
    """What a mixer and an mlp have in common.

    `matrices` are the roles it hands to `linear`, `vectors` the roles it needs as dense float32
    arrays, `constants` further arrays that are uploaded with them under their own names.
    """

    matrices: tuple[str, ...] = ()
    vectors: tuple[str, ...] = ()
    constants: Mapping[str, Any] = {}

    @staticmethod
    def example() -> MixerExample | None:
        """A small case, on which the conformance kit runs it; None: it finds one in a family."""
        return None


class Mixer(Part):
    """Base of what the target of an `Attention` declaration makes, called with a block's options.

    Arithmetic between ops works too, but keeps some backends from recording steps.
    """

    def new_state(self, states: StateMakers) -> State:
        """The state of one layer, made by `states.kv(...)`, `.recurrent(...)` or `.window(...)`."""
        raise NotImplementedError

    def __call__(self, o: BoundOps, w: Weights, x: Array, step: Step, state: Any) -> Array:
        """x [T, hidden] -> [T, hidden], written only in ops, reshape and slices."""
        raise NotImplementedError


class FeedForward(Part):
    """Base of what the target of an `Mlp` declaration makes, called with a block's `mlp_options`.

    A contract's claims about the feed-forward are compared with `activation` and `gated`.
    """

    activation: Literal["silu", "gelu", "relu"]
    gated = True  # down(activation(gate(x)) * up(x)); False: down(activation(up(x)))

    def __call__(self, o: BoundOps, w: Weights, x: Array) -> Array:
        """x [T, hidden] -> [T, hidden], written only in ops, reshape and slices."""
        raise NotImplementedError


class SwiGLU(FeedForward):
    """down(silu(gate(x)) * up(x)), the one feed-forward that every backend may fuse."""

    matrices = ("gate_proj", "up_proj", "down_proj")
    activation = "silu"

    def __call__(self, o: BoundOps, w: Weights, x: Array) -> Array:
        """x [T, hidden] -> [T, hidden]."""
        return o.mlp(x, w.gate_proj, w.up_proj, w.down_proj)
