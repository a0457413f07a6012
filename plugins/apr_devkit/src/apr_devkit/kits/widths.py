"""Checks that the matrices of a contract fit together: each takes the output of the one before.

A file that was imported with a contract has the contract's wrong shapes, so only the plan can tell.
Its parts are run here on three rows of zeros, with matrices that have a shape and no values.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, NoReturn

import numpy as np

from apr_core.family.contract import Resolution
from apr_core.model.parts import Parts, plugin_ops
from apr_core.model.step import make_step
from apr_core.model.trial import Nowhere
from apr_core.ops.binding import Binder
from apr_core.plugin import (
    BoundOps,
    Contract,
    ContractError,
    Decoder,
    Mixer,
    ModelConfig,
    Plan,
    StateMakers,
    Weight,
    Weights,
)
from apr_core.runtime import Registry
from apr_devkit.kits.rig import Floats, text_layout

Shape = tuple[int, ...]
ROWS = 3  # not 1, which NumPy would stretch to any number, and not 2, of which that is the half
HINT = "The shape_template of the family's contract, or the options of its plan, are wrong."


def check_fit(contract: Contract, config: ModelConfig, plan: Plan, registry: Registry) -> None:
    """Run the parts of each kind of layer. Raises ContractError naming a tensor."""
    shapes = {rule.name: rule.shape for rule in contract.rules(config, text_layout(contract))}
    tensors, parts = Tensors(contract.check(config, shapes), shapes), Parts(registry, plan)
    check_outside(tensors, config, parts)
    ops, tried = Binder(Nowhere(), plugin_ops(registry, plan)).ops, set()
    for layer, block in enumerate(plan.blocks):
        for part in (parts.mixers[layer], parts.mlps[layer]):
            roles = (*part.matrices, *part.vectors)
            kind = (type(part), repr(block), *(tensors.shape(r, layer) for r in roles))
            if kind not in tried:
                tried.add(kind)
                _Trial(tensors, layer, config.hidden_size, part).run(ops)


class Tensors:
    """The tensors of a model by role: names and shapes."""

    def __init__(self, resolution: Resolution, shapes: Mapping[str, Shape]) -> None:
        self.name, self._shapes = resolution.name_of, shapes

    def shape(self, role: str, layer: int | None = None) -> Shape:
        """Return the tensor's shape. Raises ContractError if the contract has none in that role."""
        return self._shapes[self.name(role, layer)]

    def expect(self, expected: Shape, role: str, layer: int | None = None) -> None:
        """Raise ContractError unless the tensor has that shape."""
        if tuple(self.shape(role, layer)) != expected:
            refuse(self.name(role, layer), self.shape(role, layer), list(expected))


def refuse(name: str, shape: Shape, expected: object, why: str = "") -> NoReturn:
    """Raise the error for a tensor that does not fit what is around it."""
    raise ContractError(
        f"{name} has shape {list(shape)}, expected {expected}{why and f': {why}'}", HINT
    )


def check_outside(tensors: Tensors, config: ModelConfig, parts: Parts) -> None:
    """Raise ContractError unless embedding, head and norms fit the size of the model."""
    hidden = config.hidden_size
    for role in ("embedding",) if config.tied_embeddings else ("embedding", "lm_head"):
        tensors.expect((config.vocab_size, hidden), role)
    if parts.decoder is not Decoder:
        return  # its own tensors may have any shape
    tensors.expect((hidden,), "final_norm")
    for layer in range(config.num_layers):
        for role in Decoder.layer_vectors(parts.plan, layer):
            tensors.expect((hidden,), role, layer)


class _Trial:
    """One part of a layer, run on zeros. `last` is the matrix used in the last product."""

    def __init__(self, tensors: Tensors, layer: int, hidden: int, part: Any) -> None:
        self.tensors, self.layer, self.hidden, self.part = tensors, layer, hidden, part
        self.last: Weight | None = None

    def run(self, ops: BoundOps) -> None:
        """Raise ContractError if something does not fit. Other failures are left to the model."""
        part, shape = self.part, self.tensors.shape
        weights = Weights(**{role: self._matrix(role) for role in part.matrices})
        for role in part.vectors:
            setattr(weights, role, np.zeros(shape(role, self.layer), np.float32))
        vars(weights).update(part.constants)
        x, more = np.zeros((ROWS, self.hidden), np.float32), list[Any]()
        if isinstance(part, Mixer):
            state = part.new_state(StateMakers(Nowhere().zeros))
            state.open(0)
            more = [make_step([(0, ROWS, 0)]), state]
        try:
            with np.errstate(all="ignore"):
                y = np.shape(part(ops, weights, x, *more))
        except (ValueError, IndexError) as error:  # what NumPy raises for shapes
            raise ContractError(self._explained(error), HINT) from error
        if self.last and y != x.shape and y[-1] == self.last.rows:
            self._refuse(self.last, [self.hidden, self.last.cols], "it ends the layer")
        if y != x.shape:
            said = f"it gives {list(y)} for rows of {list(x.shape)}"
            raise ContractError(self._explained(said), HINT)

    def _matrix(self, role: str) -> Weight:
        name, shape = self.tensors.name(role, self.layer), self.tensors.shape(role, self.layer)
        if len(shape) != 2:
            refuse(name, shape, "two dimensions", "it is a matrix")
        weight = Weight(name, "", (shape[0], shape[1]), None)
        weight.linear = self._linear
        return weight

    def _refuse(self, w: Weight, expected: object, why: str) -> None:
        refuse(w.name, (w.rows, w.cols), expected, why)

    def _linear(self, x: Any, w: Weight) -> Floats:
        """Return zeros [T, out] for x [T, in], marked with their matrix."""
        self.last = w
        if x.shape[-1] != w.cols:
            why = f"it is multiplied with rows of {x.shape[-1]} values"
            self._refuse(w, f"[{w.rows}, {x.shape[-1]}]", why)
        product = np.zeros((*x.shape[:-1], w.rows), np.float32).view(_Product)
        product.weight = w
        return product

    def _explained(self, error: object) -> str:
        """Return NumPy's error with all shapes: it does not say whose shape is wrong."""
        roles, t = (*self.part.matrices, *self.part.vectors), self.tensors
        shapes = (f"\n    {t.name(r, self.layer)} {list(t.shape(r, self.layer))}" for r in roles)
        name = type(self.part).__name__
        return f"{name} does not fit the tensors of layer {self.layer}: {error}{''.join(shapes)}"


class _Product(np.ndarray[Any, np.dtype[np.float32]]):
    """The product of a matrix. Splitting it into heads shows how many rows the matrix should have.

    Without this, reshape(-1, heads, size) would make more or fewer rows of the batch.
    """

    weight: Weight | None = None

    def __array_finalize__(self, obj: Any) -> None:
        self.weight = getattr(obj, "weight", None)

    def reshape(self, *shape: Any, **options: Any) -> Any:
        """Reshape to [T, ...]. Raises ContractError if the matrix's rows do not allow it."""
        sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        w, rest = self.weight, [int(size) for size in sizes[1:]]
        if w and self.shape == (ROWS, w.rows) and sizes[0] in (-1, ROWS):
            whole = prod(size for size in rest if size != -1)
            fits = w.rows % whole == 0 if -1 in rest else w.rows == whole
            if not fits:
                expected = f"[{'a multiple of ' * (-1 in rest)}{whole}, {w.cols}]"
                refuse(w.name, (w.rows, w.cols), expected, f"its rows are read as {rest}")
        return super().reshape(*shape, **options)
