"""The parts of a layer, and what runs a plan of layers. All of it is written in ops.

Plugins derive mixers, feed-forwards and decoders from the classes here. They know weights and
states, and no format or device.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import SimpleNamespace
from typing import Any, Literal

from apr_core.family.modelspec import NORMS, Block, MixerExample, Plan
from apr_core.model.state import State, StateMakers
from apr_core.model.step import Step
from apr_core.ops.binding import BoundOps, Weight

Array = Any
Weights = SimpleNamespace  # uploaded weights of a layer, one attribute per role


class Part:
    """Common base of mixers and mlps.

    `matrices` are the roles it hands to `linear`, `vectors` the roles it needs as dense float32
    arrays, `constants` further arrays that are uploaded with them under their own names. `stacks`
    are the roles of several matrices in one tensor [.., rows, cols], and the matrix op of each. A
    row is multiplied by `chosen` matrices of each stack; 0: by all.
    """

    matrices: tuple[str, ...] = ()
    stacks: Mapping[str, str] = {}
    chosen = 0
    vectors: tuple[str, ...] = ()
    constants: Mapping[str, Any] = {}

    @staticmethod
    def example() -> MixerExample | None:
        """Return a small case for the conformance kit; None: the kit finds one in a family."""
        return None


class Mixer(Part):
    """Base class of a mixer: an `Attention` declaration's target, called with a block's options.

    `matrices` and `vectors` name the roles of its weights and `constants` further arrays: all are
    attributes of `w`. Arithmetic between ops works too, but keeps some backends from recording.
    """

    def new_state(self, states: StateMakers) -> State:
        """Return one layer's state, from `states.kv(...)` or `.recurrent(...)`."""
        raise NotImplementedError

    def __call__(self, o: BoundOps, w: Weights, x: Array, step: Step, state: Any) -> Array:
        """Map x [T, hidden] to [T, hidden], written only in ops, reshape and slices."""
        raise NotImplementedError


class FeedForward(Part):
    """Base class of an mlp: an `Mlp` declaration's target, called with a block's `mlp_options`.

    `matrices`, `vectors` and `constants` are as a Mixer has them. A contract's claims about the
    feed-forward are compared with `activation` and `gated`, which is True unless it says otherwise.
    """

    activation: Literal["silu", "gelu", "relu"]
    gated = True  # down(activation(gate(x)) * up(x)); False: down(activation(up(x)))

    def __call__(self, o: BoundOps, w: Weights, x: Array) -> Array:
        """Map x [T, hidden] to [T, hidden], written only in ops, reshape and slices."""
        raise NotImplementedError


class SwiGLU(FeedForward):
    """down(silu(gate(x)) * up(x)), the one feed-forward that every backend may fuse."""

    matrices = ("gate_proj", "up_proj", "down_proj")
    activation = "silu"

    def __call__(self, o: BoundOps, w: Weights, x: Array) -> Array:
        """Map x [T, hidden] to [T, hidden]."""
        return o.mlp(x, w.gate_proj, w.up_proj, w.down_proj)


@dataclass(frozen=True, slots=True)
class Layer:
    """A block ready to run. `weights` has one attribute per role, uploaded."""

    block: Block
    mixer: Mixer
    mlp: FeedForward
    weights: Weights

    def bytes_read(self, rows: int) -> float:
        """Return the bytes of matrices that a step of so many rows reads.

        Of a stack, those of the matrices that are expected to be chosen if all are equally likely.
        """
        total, chosen = 0.0, {s: p.chosen for p in (self.mixer, self.mlp) for s in p.stacks}
        for role, w in vars(self.weights).items():
            if isinstance(w, Weight):
                left = 1 - chosen[role] / prod(w.shape[:-2]) if chosen.get(role) else 0
                total += w.data.nbytes * (1 - left**rows)
        return total


class Decoder:
    """From token ids to logits: embedding, the plan's blocks, final norm, head.

    A family with its own topology subclasses this, names the tensors it needs, and overrides
    `slices`. Attributes: `ops`, `plan`, `layers`, and `weights`, those outside the
    layers, one attribute per role.
    """

    # matrices outside the layers, and the ops that use them; a tied head is the embedding
    matrices: Mapping[str, tuple[str, ...]] = {"embedding": ("embed",), "lm_head": ("linear",)}
    vectors: tuple[str, ...] = ("final_norm",)  # dense tensors outside the layers

    def __init__(
        self, ops: BoundOps, plan: Plan, layers: Sequence[Layer], weights: Weights
    ) -> None:
        self.ops, self.plan, self.layers, self.weights = ops, plan, tuple(layers), weights

    @property
    def head(self) -> Weight:
        """The output matrix; a tied one is the embedding."""
        head: Weight | None = getattr(self.weights, "lm_head", None)
        return self.weights.embedding if head is None else head

    @classmethod
    def layer_vectors(cls, plan: Plan, index: int) -> tuple[str, ...]:
        """Return roles of a layer's dense tensors outside its mixer and mlp: here, its norms."""
        return tuple(role for role in NORMS[plan.blocks[index].norm] if role)

    def hidden(self, ids: Array, step: Step, states: list[State]) -> Array:
        """Return the hidden states of ids [T] after the final norm: [T, hidden]."""
        slices = self.slices(ids, step, states)
        while True:
            try:
                next(slices)
            except StopIteration as end:
                return end.value

    def slices(self, ids: Array, step: Step, states: list[State]) -> Generator[None, None, Array]:
        """Run as `hidden`, pausing after every mixer and mlp, so that other slots may advance."""
        o = self.ops
        h = self.embedded(ids)  # [T, hidden]
        first = NORMS[self.layers[0].block.norm][0]
        x = self.norm(h, getattr(self.layers[0].weights, first)) if first else h
        for i, layer in enumerate(self.layers):
            w = layer.weights
            _, after_mixer, before_mlp, after_mlp = NORMS[layer.block.norm]
            y = layer.mixer(o, w, x, step, states[i])
            if layer.block.norm == "parallel":
                y = o.add(y, layer.mlp(o, w, x))
            else:
                h, x = self._joined(h, y, w, after_mixer, w, before_mlp)
                yield
                y = layer.mlp(o, w, x)
            following, role = self._next(i)
            h, x = self._joined(h, y, w, after_mlp, following, role)
            yield
        return x

    def embedded(self, ids: Array) -> Array:
        """Return the embedding rows of ids [T], scaled as the plan says: [T, hidden]."""
        h = self.ops.embed(ids, self.weights.embedding)
        scale = self.plan.embedding_scale
        return h if scale == 1.0 else self.ops.scale(h, scale)

    def norm(self, x: Array, weight: Array) -> Array:
        """Return the plan's RMS norm of rows x [T, N], with a weight [N]."""
        return self.ops.rms_norm(x, weight, self.plan.norm_eps, self.plan.norm_offset)

    def _next(self, index: int) -> tuple[Weights, str | None]:
        """Return (weights, role) of the norm after a layer: the next layer's first, or the last."""
        if index + 1 == len(self.layers):
            return self.weights, "final_norm"
        following = self.layers[index + 1]
        return following.weights, NORMS[following.block.norm][0]

    def _joined(
        self, h: Array, y: Array, w: Weights, after: str | None, next_w: Weights, before: str | None
    ) -> tuple[Array, Array]:
        """Return (h + y, its norm); y is normed first if `after`, the sum if `before`."""
        o, plan = self.ops, self.plan
        if after:
            y = self.norm(y, getattr(w, after))
        if before:
            weight = getattr(next_w, before)
            h, x = o.add_rms_norm(h, y, weight, plan.norm_eps, plan.norm_offset)
            return h, x
        h = o.add(h, y)
        return h, h

    def logits(self, hidden: Array) -> Array:
        """Return the logits [R, vocab] of hidden states [R, hidden]."""
        logits = self.ops.linear(hidden, self.head)
        cap = self.plan.logit_softcap
        return logits if cap is None else self.ops.softcap(logits, cap)
