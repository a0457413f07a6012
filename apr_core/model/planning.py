"""Works out whether a model fits a device, before anything is uploaded.

A backend whose device has memory of its own says how much is free (`capacity`) and what a matrix
takes there (`matrix_bytes`). What does not fit is refused with all numbers and the largest context
that would fit, instead of failing in the first long chat.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apr_core.errors import BackendError
from apr_core.generate.boundaries import CHUNK
from apr_core.model.state import KVType, sequence_bytes, state_makers
from apr_core.ops.binding import DENSE, BackendPlugin

if TYPE_CHECKING:
    from apr_core.family.modelspec import ModelConfig
    from apr_core.model.decoder import Layer, Part
    from apr_core.model.loading import WeightLoader

Shape = tuple[int, ...]
STEP = 256  # tokens; the advised context is a multiple of it
RESERVE = 512 << 20  # for the runtime: compiled kernels, recorded steps, buffers of uploads
FLOAT = 4  # bytes of an activation, at most
GIB = 1 << 30
ELSEWHERE = ", or choose another `backend`"  # may be a default that nobody chose


@dataclass(frozen=True, slots=True)
class LayerShapes:
    """Shapes of a layer's tensors: matrices of its mixer and of its feed-forward, and the rest."""

    mixer: Sequence[Shape]
    mlp: Sequence[Shape]
    dense: Sequence[Shape] = ()


@dataclass(frozen=True, slots=True)
class Demand:
    """Bytes a model takes on a device. `state_at` gives those of one sequence by its tokens.

    `values` are those of all matrices: with the bytes of weights, they give the bits of each.
    """

    weights: int
    working: int
    state_at: Callable[[int], int]
    values: int


def demand_of(loader: WeightLoader, config: ModelConfig, kv_type: KVType) -> Demand:
    """Return what the model takes on a device that has memory of its own."""
    backend, parts = loader.binder.backend, loader.parts
    size, weights, values = backend.matrix_bytes, 0, 0
    for entry, uses in loader.matrices():
        format, layout = loader.kept_as(entry, uses)
        weights += size(format, (prod(entry.shape[:-1]), entry.shape[-1]), layout)
        values += prod(entry.shape)
    layers = [layer_shapes(loader, index) for index in range(len(parts.mixers))]
    outside = [loader.entry(role).shape for role in parts.decoder.vectors]
    for shape in (*outside, *(shape for layer in layers for shape in layer.dense)):
        weights += size(DENSE, (1, prod(shape)), None)
    makers = state_makers(backend, kv_type)
    states = [mixer.new_state(makers) for mixer in parts.mixers]
    working = step_bytes(config.hidden_size, config.vocab_size, layers) + RESERVE
    return Demand(weights, working, partial(sequence_bytes, states), values)


def layer_shapes(loader: WeightLoader, index: int) -> LayerShapes:
    """Return the shapes of a layer's tensors and constants."""

    def of(roles: Iterable[str]) -> list[Shape]:
        return [loader.entry(role, index).shape for role in roles]

    parts = loader.parts
    constants = [np.shape(array) for array in parts.constants(index).values()]
    dense = [*of(parts.vectors(index)), *constants]
    return LayerShapes(of(parts.mixers[index].matrices), of(parts.mlps[index].matrices), dense)


def uploaded_shapes(layer: Layer) -> LayerShapes:
    """Return the shapes of a loaded layer's matrices."""

    def of(part: Part) -> list[Shape]:
        return [getattr(layer.weights, role).shape for role in part.matrices]

    return LayerShapes(of(layer.mixer), of(layer.mlp))


def step_bytes(hidden: int, vocabulary: int, layers: Iterable[LayerShapes]) -> int:
    """Return an upper estimate of a forward's bytes for CHUNK tokens, beside weights and states.

    Live at once are the residual stream, what is added to it, the sum and its norm; of the widest
    layer, the mixer's products, each with its transformed copy (rotated, convolved, gated), or the
    feed-forward's; and logits of all rows, as when a text is scored.
    """
    widest = 0
    for layer in layers:
        mixer, mlp = ([out for out, *_ in part] for part in (layer.mixer, layer.mlp))
        widest = max(widest, 2 * sum(mixer), sum(mlp) + max(mlp, default=0))
    return CHUNK * FLOAT * (4 * hidden + widest + vocabulary)


def check_memory(
    path: Path, backend: BackendPlugin, free: int, demand: Demand, context: int
) -> None:
    """Raise BackendError, with all numbers, if a sequence of `context` tokens does not fit."""
    state = demand.state_at(context)
    if demand.weights + demand.working + state <= free:
        return
    raise BackendError(
        f"{path} does not fit on {backend.name}: {_size(free)} are free, and it takes "
        f"{_size(demand.weights)} for weights, {_size(state)} for the state of {context} tokens "
        f"and {_size(demand.working)} of working memory",
        _advice(free, demand, context),
    )


def _size(nbytes: int) -> str:
    return f"{nbytes / GIB:.2f} GiB" if nbytes >= GIB else f"{nbytes / (1 << 20):.1f} MiB"


def _advice(free: int, demand: Demand, context: int) -> str:
    available = free - demand.weights - demand.working
    fitting = largest_context(available, demand.state_at, context)
    if fitting:
        return f"Load it with `max_len` {fitting}, which is the most that fits{ELSEWHERE}."
    least = free - demand.working - demand.state_at(min(STEP, context))
    now, then = (8 * nbytes / max(1, demand.values) for nbytes in (demand.weights, least))
    if then < 1:
        return f"No recipe makes it small enough: use a device with more memory{ELSEWHERE}."
    return (
        f"Not even a short context fits beside the weights, which have {now:.1f} bits a value "
        f"here: import the model by a recipe of at most {int(then * 10) / 10} bits, or use a "
        f"device with more memory{ELSEWHERE}."
    )


def largest_context(available: int, state_at: Callable[[int], int], context: int) -> int:
    """Return the largest multiple of STEP below `context` whose state fits; 0 if none does."""
    steps = range(1, (context - 1) // STEP + 1)
    return STEP * bisect_right(steps, available, key=lambda count: state_at(count * STEP))
