"""One mixer on the reference backend, with random weights: what the attention kit runs.

The rig hands out only the ops that the mixer's declaration lists, and remembers which were used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.declarations import Attention
from apr_core.errors import AprError
from apr_core.family.modelspec import MixerExample
from apr_core.model.loading import plugin_ops
from apr_core.model.state import State, StateMakers, Zeros
from apr_core.model.step import make_step
from apr_core.ops.binding import DENSE, Binder, BoundOps, HostMatrix, Weight
from apr_core.registry import Owned, Registry
from apr_devkit.kits.reference_backend import ReferenceBackend

Floats = NDArray[np.float32]
Part = tuple[int, int, Floats]  # (slot, first position, rows [n, hidden])
NORM_SPREAD, BIAS_SPREAD = 0.1, 0.1


class WatchedOps:
    """The bound ops, as far as they were declared."""

    def __init__(self, bound: BoundOps, declaration: Attention) -> None:
        self._bound, self._declaration = bound, declaration
        self.used: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        declared = self._declaration.ops
        assert name in declared, (
            f"{self._declaration.name} uses the op {name!r}, but declares "
            f"ops={declared}: add it, or a model may be loaded without it"
        )
        self.used.add(name)
        return getattr(self._bound, name)


class MixerRig:
    """A mixer ready to run. `weights` has one attribute a role, and the constants."""

    def __init__(
        self, owned: Owned, registry: Registry, example: MixerExample, seed: int = 0
    ) -> None:
        self.declaration: Attention = owned.declaration
        self.hidden_size = example.hidden_size
        self.mixer = registry.load(owned)(**example.options)
        self.backend = ReferenceBackend()
        brought, _ = plugin_ops(registry, [owned.qualified])
        self.binder = Binder(self.backend, brought)
        self.ops = WatchedOps(self.binder.bind_ops(self.declaration.ops), self.declaration)
        self.weights = make_weights(self.mixer, example, self.binder, np.random.default_rng(seed))

    def state(self, zeros: Zeros | None = None) -> State:
        """A new state, no slot open. `zeros` may make something else, to see what is read."""
        made: State = self.mixer.new_state(StateMakers(zeros or self.backend.zeros))
        return made

    def opened(self, *slots: int, zeros: Zeros | None = None) -> State:
        """A new state with these slots open, by default slot 0."""
        state = self.state(zeros)
        for slot in slots or (0,):
            state.open(slot)
        return state

    def run(self, state: State, *parts: Part) -> list[Floats]:
        """One step over (slot, position, rows) parts: each part's output [n, hidden]."""
        step = make_step([(slot, len(rows), position) for slot, position, rows in parts])
        x = np.concatenate([rows for _, _, rows in parts])
        out = self.mixer(self.ops, self.weights, x, step, state)
        return [out[seg.start : seg.stop] for seg in step.segments]

    def fresh(self, *pieces: Floats) -> Floats:
        """The output of one sequence in a state of its own, run piece by piece: [T, hidden]."""
        return self.resume(self.opened(), 0, 0, *pieces)

    def resume(self, state: State, slot: int, position: int, *pieces: Floats) -> Floats:
        """The output of the pieces, one step each, from `position` on."""
        outs = []
        for piece in pieces:
            outs += self.run(state, (slot, position, piece))
            position += len(piece)
        return np.concatenate(outs)

    def rows(self, count: int, seed: int = 0) -> Floats:
        """Random inputs [count, hidden], of the size that norms leave."""
        rng = np.random.default_rng([seed, count])
        return rng.standard_normal((count, self.hidden_size), np.float32)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every weight and constant, by role."""
        found = vars(self.weights)
        return {k: v.data if isinstance(v, Weight) else v for k, v in found.items()}


def make_weights(
    mixer: Any, example: MixerExample, binder: Binder, rng: np.random.Generator
) -> SimpleNamespace:
    """Random values for every role that the mixer names."""
    weights = SimpleNamespace()
    for role in (*mixer.matrices, *mixer.vectors):
        assert role in example.shapes, (
            f"the mixer names the role {role!r}, but its example has shapes for "
            f"{', '.join(example.shapes)} only"
        )
    for role in mixer.matrices:
        setattr(weights, role, dense_weight(role, random_values(role, example, rng), binder))
    for role in mixer.vectors:
        setattr(weights, role, binder.backend.upload(random_values(role, example, rng)))
    for name, array in mixer.constants.items():
        setattr(weights, name, binder.backend.upload(array))
    return weights


def random_values(role: str, example: MixerExample, rng: np.random.Generator) -> Floats:
    """Matrices keep the scale of what they multiply, norms are near 1, biases are not zero."""
    shape = tuple(example.shapes[role])
    values: Floats = rng.standard_normal(shape, np.float32)
    if len(shape) > 1:
        return values * np.float32(prod(shape[1:]) ** -0.5)
    if "norm" in role:
        return values * np.float32(NORM_SPREAD) + np.float32(1)
    return values * np.float32(BIAS_SPREAD)


def dense_weight(name: str, values: Floats, binder: Binder) -> Weight:
    """A float32 matrix [rows, cols], uploaded for `linear`."""
    rows, cols = values.shape
    raw = np.ascontiguousarray(values).view(np.uint8).reshape(rows, -1)
    matrix = HostMatrix(name, DENSE, (rows, cols), raw, lambda _raw, _cols: values)
    return binder.weight(matrix, ("linear",))


def example_of(owned: Owned, registry: Registry) -> MixerExample:
    """The mixer's own example, else one from the first family that lists the mixer.

    Raises AssertionError if there is neither.
    """
    offered = getattr(registry.load(owned), "example", None)
    if offered is not None:
        made: MixerExample = offered() if callable(offered) else offered
        return made
    for family in registry.declarations("family"):
        if owned.declaration.name in family.declaration.attention:
            found = _from_family(owned.declaration.name, family, registry)
            if found is not None:
                return found
    raise AssertionError(
        f"nothing says what {owned.declaration.name} is made with: give the mixer a static method "
        "example() -> MixerExample (no installed family with a tiny_config() uses it)"
    )


def _from_family(mixer: str, family: Owned, registry: Registry) -> MixerExample | None:
    """Options and shapes of the first layer of a family's tiny model that has this mixer."""
    try:
        plugin = registry.make("family", family.qualified)
        config = plugin.config(plugin.tiny_config())
        blocks, contract = plugin.plan(config).blocks, plugin.contract()
        layer = next(i for i, block in enumerate(blocks) if block.mixer == mixer)
        rules = contract.rules(config, next(iter(contract.content["layouts"])))
    except (AprError, AttributeError, StopIteration):
        return None  # that family's own kit says what is wrong with it
    shapes = {rule.role: rule.shape for rule in rules if rule.layer == layer}
    return MixerExample(blocks[layer].options, config.hidden_size, shapes)


def difference(actual: Floats, expected: Floats) -> float:
    """max |actual - expected| over the standard deviation of expected; infinite if not finite."""
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return float("inf")
    return float(np.abs(actual - expected).max() / (expected.std() or 1.0))


def arrays_in(thing: Any, seen: set[int] | None = None) -> Iterator[NDArray[Any]]:
    """Every array that an object holds, in whatever it is made of."""
    seen = set() if seen is None else seen
    if id(thing) in seen or callable(thing) or isinstance(thing, type):
        return
    seen.add(id(thing))
    if isinstance(thing, np.ndarray):
        yield thing
        return
    inner: list[Any] = []
    if isinstance(thing, Mapping):
        inner = list(thing.values())
    elif isinstance(thing, list | tuple | set):
        inner = list(thing)
    else:
        slots = [name for cls in type(thing).__mro__ for name in getattr(cls, "__slots__", ())]
        inner = [*getattr(thing, "__dict__", {}).values(), *(getattr(thing, n, 0) for n in slots)]
    for part in inner:
        yield from arrays_in(part, seen)


def poison(state: State) -> None:
    """NaN into every floating-point array of a state."""
    for array in arrays_in(state):
        if array.dtype.kind == "f":
            array[...] = np.nan


def poisoned_zeros(shape: tuple[int, ...], dtype: str = "f32") -> NDArray[Any]:
    """What an allocation looks like to a reader that should not read it: all NaN."""
    return np.full(shape, np.nan, np.float16 if dtype == "f16" else np.float32)
