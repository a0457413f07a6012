"""Whether the tensors of a contract fit together: each takes in what the one before it gives.

A contract that says a shape wrongly is met by a file that was imported with it, so only the plan
can tell. It is run here on three rows of zeros, with matrices that have a shape and no values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from apr_core.binding import Binder, BoundOps, HostMatrix, Weight
from apr_core.contract import Resolution
from apr_core.errors import ContractError
from apr_core.model.decoder import Mixer
from apr_core.model.state import StateMakers
from apr_core.model.step import make_step
from apr_core.modelspec import Block, ModelConfig, Plan
from apr_core.ops import Op

Shape = tuple[int, ...]
ROWS = 3  # not 1, which NumPy would stretch to any number, and not 2, of which that is the half
HINT = "The shape_template of the family's contract, or the options of its plan, are wrong."


@dataclass(frozen=True, slots=True)
class Tensors:
    """The tensors of a file by role: names and shapes."""

    resolution: Resolution
    shapes: Mapping[str, Shape]

    def name(self, role: str, layer: int | None = None) -> str:
        """The tensor's name. Raises ContractError if the contract has none."""
        return self.resolution.name_of(role, layer)

    def shape(self, role: str, layer: int | None = None) -> Shape:
        """The tensor's shape."""
        return self.shapes[self.name(role, layer)]

    def expect(self, expected: Shape, role: str, layer: int | None = None) -> None:
        """Raise ContractError unless the tensor has that shape."""
        if tuple(self.shape(role, layer)) != expected:
            refuse(self.name(role, layer), self.shape(role, layer), list(expected))


def refuse(name: str, found: Shape, expected: object, why: str = "") -> NoReturn:
    """Raise the error for a tensor that does not fit what is around it."""
    raise ContractError(
        f"{name} has shape {list(found)}, expected {expected}{why and f': {why}'}", HINT
    )


def check_outside(tensors: Tensors, config: ModelConfig, norms: Iterable[str]) -> None:
    """Raise ContractError unless embedding, head, norms and feed-forwards fit together.

    `norms` are the roles of a layer's norms.
    """
    hidden, norms = config.hidden_size, tuple(norms)
    for role in ("embedding",) if config.tied_embeddings else ("embedding", "lm_head"):
        tensors.expect((config.vocab_size, hidden), role)
    tensors.expect((hidden,), "final_norm")
    for layer in range(config.num_layers):
        for role in norms:
            tensors.expect((hidden,), role, layer)
        gate = tensors.shape("gate_proj", layer)
        inner = gate[0] if gate[1:] == (hidden,) else config.intermediate_size
        for role in ("gate_proj", "up_proj"):
            tensors.expect((inner, hidden), role, layer)
        tensors.expect((hidden, inner), "down_proj", layer)


def check_mixers(
    tensors: Tensors, config: ModelConfig, plan: Plan, mixers: Sequence[Mixer],
    make: Callable[[Block], Mixer], ops: Mapping[str, Op], used: Iterable[str],
) -> None:  # fmt: skip
    """Run a mixer of each kind on weights without values. Raises ContractError naming a tensor.

    `make` makes another mixer of a block, as those of the model see arrays of its backend only.
    `ops` are the ops that mixers bring, `used` the names of all they use.
    """
    bound = Binder(Nowhere(), ops).bind_ops(used)
    tried = set()
    for layer, (block, mixer) in enumerate(zip(plan.blocks, mixers, strict=True)):
        roles = (*mixer.matrices, *mixer.vectors)
        shapes = tuple(tensors.shape(role, layer) for role in roles)
        kind = (block.mixer, repr(block.options), roles, shapes)
        if kind not in tried:
            tried.add(kind)
            _Trial(tensors, layer, config.hidden_size).run(make(block), bound)


class _Trial:
    """One mixer, run on zeros."""

    def __init__(self, tensors: Tensors, layer: int, hidden: int) -> None:
        self.tensors, self.layer, self.hidden = tensors, layer, hidden
        self.last: Weight | None = None  # that was multiplied with

    def run(self, mixer: Mixer, ops: BoundOps) -> None:
        """Raise ContractError if something does not fit. Other failures are the model's to show."""
        weights = SimpleNamespace(**dict(self._weights(mixer)))
        state = mixer.new_state(StateMakers(Nowhere().zeros))
        state.open(0)
        x = np.zeros((ROWS, self.hidden), np.float32)
        try:
            with np.errstate(all="ignore"):
                y = mixer(ops, weights, x, make_step([(0, ROWS, 0)]), state)
        except (ValueError, IndexError) as error:  # what NumPy raises for shapes
            raise ContractError(self._explained(mixer, error), HINT) from error
        if self.last and np.shape(y) != x.shape and np.shape(y)[-1] == self.last.rows:
            expected = [self.hidden, self.last.cols]
            refuse(self.last.name, (self.last.rows, self.last.cols), expected, "it ends the layer")
        if np.shape(y) != x.shape:
            said = f"it gives {list(np.shape(y))} for rows of {list(x.shape)}"
            raise ContractError(self._explained(mixer, said), HINT)

    def _weights(self, mixer: Mixer) -> Iterator[tuple[str, Any]]:
        for role in mixer.matrices:
            yield role, self._matrix(role)
        for role in mixer.vectors:
            yield role, np.zeros(self.tensors.shape(role, self.layer), np.float32)
        yield from mixer.constants.items()

    def _matrix(self, role: str) -> Weight:
        name, shape = self.tensors.name(role, self.layer), self.tensors.shape(role, self.layer)
        if len(shape) != 2:
            refuse(name, shape, "two dimensions", "it is a matrix")
        weight = Weight(name, "", (shape[0], shape[1]), None)
        weight.linear = self._linear
        return weight

    def _linear(self, x: Any, w: Weight) -> NDArray[np.float32]:
        """x [T, in] -> zeros [T, out], that remember whose they are."""
        self.last = w
        if x.shape[-1] != w.cols:
            why = f"it is multiplied with rows of {x.shape[-1]} values"
            refuse(w.name, (w.rows, w.cols), f"[{w.rows}, {x.shape[-1]}]", why)
        made = np.zeros((*x.shape[:-1], w.rows), np.float32).view(_Product)
        made.weight = w
        return made

    def _explained(self, mixer: Mixer, error: object) -> str:
        """For what NumPy refuses, which does not say whose shape it is: all of them."""
        roles = (*mixer.matrices, *mixer.vectors)
        shapes = (
            f"\n    {self.tensors.name(role, self.layer)} "
            f"{list(self.tensors.shape(role, self.layer))}"
            for role in roles
        )
        return (
            f"{type(mixer).__name__} does not fit the tensors of layer {self.layer}: {error}"
            f"{''.join(shapes)}"
        )


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


class Nowhere:
    """A backend of the references, for arrays that are looked at and thrown away."""

    name = "nowhere"
    xp: Any = np
    kernels: Mapping[tuple[str, str], str] = {}

    def describe(self) -> str:
        return ""

    def zeros(self, shape: Shape, dtype: str = "f32") -> NDArray[Any]:
        return np.zeros(shape, np.float16 if dtype == "f16" else np.float32)

    def upload(self, array: NDArray[Any]) -> NDArray[Any]:
        return array

    def upload_matrix(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        return array

    def upload_packed(self, matrix: HostMatrix) -> NDArray[np.uint8]:
        return matrix.raw

    def download(self, array: NDArray[Any]) -> NDArray[Any]:
        return array
