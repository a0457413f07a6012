"""Runs a layer plan. Knows ops, weights and states; knows no family, format or device."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

from apr_core.model.state import State, StateMakers
from apr_core.model.step import Step
from apr_core.ops.binding import BoundOps, Weight

Array = Any
Weights = SimpleNamespace  # of a layer: one attribute a role, uploaded


class Mixer(Protocol):
    """What the target of an `Attention` declaration makes, called with a block's options.

    `matrices` are the roles it hands to `linear`, `vectors` the roles it needs as dense float32
    arrays, `constants` further arrays that are uploaded with them under their own names. A mixer
    may have a static method `example() -> MixerExample`, on which the conformance kit runs it.
    """

    matrices: tuple[str, ...]
    vectors: tuple[str, ...]
    constants: dict[str, Any]

    def new_state(self, states: StateMakers) -> State:
        """The state of one layer, made by `states.kv(...)`, `.recurrent(...)` or `.window(...)`."""

    def __call__(self, o: BoundOps, w: Weights, x: Array, step: Step, state: Any) -> Array:
        """x [T, hidden] -> [T, hidden], written only in ops, reshape and slices.

        Arithmetic between ops works too, but keeps some backends from recording steps.
        """


@dataclass(frozen=True, slots=True)
class Layer:
    """A block ready to run. `weights` has one attribute a role, uploaded."""

    mixer: Mixer
    weights: Weights


@dataclass(frozen=True, slots=True)
class Decoder:
    """`h += mixer(norm(h)); h += mlp(norm(h))` over all layers, then norm and head."""

    ops: BoundOps
    layers: tuple[Layer, ...]
    embedding: Weight
    head: Weight
    final_norm: Array
    eps: float
    offset: float

    def hidden(self, ids: Array, step: Step, states: list[State]) -> Array:
        """ids [T] -> the normalised hidden state of every row [T, hidden]."""
        slices = self.slices(ids, step, states)
        while True:
            try:
                next(slices)
            except StopIteration as end:
                return end.value

    def slices(self, ids: Array, step: Step, states: list[State]) -> Generator[None, None, Array]:
        """As `hidden`, pausing after every mixer and mlp: other slots may advance meanwhile."""
        o = self.ops
        h = o.embed(ids, self.embedding)  # [T, hidden]
        x = o.rms_norm(h, self.layers[0].weights.input_norm, self.eps, self.offset)
        for i, layer in enumerate(self.layers):
            w = layer.weights
            y = layer.mixer(o, w, x, step, states[i])
            h, x = o.add_rms_norm(h, y, w.post_attention_norm, self.eps, self.offset)
            yield
            y = o.mlp(x, w.gate_proj, w.up_proj, w.down_proj)
            last = i + 1 == len(self.layers)
            norm = self.final_norm if last else self.layers[i + 1].weights.input_norm
            h, x = o.add_rms_norm(h, y, norm, self.eps, self.offset)
            yield
        return x

    def logits(self, hidden: Array) -> Array:
        """hidden [R, hidden] -> [R, vocab]."""
        return self.ops.linear(hidden, self.head)
