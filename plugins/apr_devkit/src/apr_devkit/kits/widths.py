"""Whether the matrices of a contract fit together: each takes in what the one before it gives.

A contract that says a shape wrongly is met by a file that was imported with it, so only the plan
can tell. It is run here on three rows of zeros, with matrices that have a shape and no values.
"""

from __future__ import annotations

from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np

from apr_core.family.modelspec import ModelConfig, Plan
from apr_core.model.loading import NORMS, make_mixer, plugin_ops
from apr_core.model.step import make_step
from apr_core.model.trial import Nowhere
from apr_core.model.widths import HINT, Tensors, check_outside, refuse
from apr_core.ops.binding import Binder
from apr_core.plugin import BoundOps, Contract, ContractError, Mixer, StateMakers, Weight
from apr_core.runtime import Registry
from apr_devkit.kits.rig import Floats, text_layout

ROWS = 3  # not 1, which NumPy would stretch to any number, and not 2, of which that is the half


def check_fit(contract: Contract, config: ModelConfig, plan: Plan, registry: Registry) -> None:
    """Run a mixer of each kind on weights without values. Raises ContractError naming a tensor."""
    shapes = {rule.name: rule.shape for rule in contract.rules(config, text_layout(contract))}
    tensors = Tensors(contract.check(config, shapes), shapes)
    check_outside(tensors, config, NORMS)
    ops, used = plugin_ops(registry, [block.mixer for block in plan.blocks])
    bound = Binder(Nowhere(), ops).bind_ops(used)
    tried = set()
    for layer, block in enumerate(plan.blocks):
        mixer = make_mixer(registry, block)
        roles = (*mixer.matrices, *mixer.vectors)
        kind = (block.mixer, repr(block.options), *(tensors.shape(r, layer) for r in roles))
        if kind not in tried:
            tried.add(kind)
            _Trial(tensors, layer, config.hidden_size, mixer).run(bound)


class _Trial:
    """One mixer, run on zeros. `last` is the matrix that was multiplied with last."""

    def __init__(self, tensors: Tensors, layer: int, hidden: int, mixer: Mixer) -> None:
        self.tensors, self.layer, self.hidden, self.mixer = tensors, layer, hidden, mixer
        self.last: Weight | None = None

    def run(self, ops: BoundOps) -> None:
        """Raise ContractError if something does not fit. Other failures are the model's to show."""
        mixer, shape = self.mixer, self.tensors.shape
        weights = SimpleNamespace(**{role: self._matrix(role) for role in mixer.matrices})
        for role in mixer.vectors:
            setattr(weights, role, np.zeros(shape(role, self.layer), np.float32))
        vars(weights).update(mixer.constants)
        state = mixer.new_state(StateMakers(Nowhere().zeros))
        state.open(0)
        x = np.zeros((ROWS, self.hidden), np.float32)
        try:
            with np.errstate(all="ignore"):
                y = np.shape(mixer(ops, weights, x, make_step([(0, ROWS, 0)]), state))
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
        """x [T, in] -> zeros [T, out], that remember whose they are."""
        self.last = w
        if x.shape[-1] != w.cols:
            why = f"it is multiplied with rows of {x.shape[-1]} values"
            self._refuse(w, f"[{w.rows}, {x.shape[-1]}]", why)
        product = np.zeros((*x.shape[:-1], w.rows), np.float32).view(_Product)
        product.weight = w
        return product

    def _explained(self, error: object) -> str:
        """For what NumPy refuses, which does not say whose shape it is: all of them."""
        roles, t = (*self.mixer.matrices, *self.mixer.vectors), self.tensors
        shapes = (f"\n    {t.name(r, self.layer)} {list(t.shape(r, self.layer))}" for r in roles)
        name = type(self.mixer).__name__
        return f"{name} does not fit the tensors of layer {self.layer}: {error}{''.join(shapes)}"


class _Product(np.ndarray[Any, np.dtype[np.float32]]):
    """What a matrix gave. To take it apart into heads says how many rows that matrix should have.

    Without this, reshape(-1, heads, size) would make more or fewer rows of the batch.
    """

    weight: Weight | None = None

    def __array_finalize__(self, obj: Any) -> None:
        self.weight = getattr(obj, "weight", None)

    def reshape(self, *shape: Any, **options: Any) -> Any:
        """Into [T, ...]. Raises ContractError where that is impossible for the matrix's rows."""
        sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        w, rest = self.weight, [int(size) for size in sizes[1:]]
        if w and self.shape == (ROWS, w.rows) and sizes[0] in (-1, ROWS):
            whole = prod(size for size in rest if size != -1)
            fits = w.rows % whole == 0 if -1 in rest else w.rows == whole
            if not fits:
                expected = f"[{'a multiple of ' * (-1 in rest)}{whole}, {w.cols}]"
                refuse(w.name, (w.rows, w.cols), expected, f"its rows are read as {rest}")
        return super().reshape(*shape, **options)
