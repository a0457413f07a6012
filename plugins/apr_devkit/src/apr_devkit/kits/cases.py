"""What an op is checked with: arguments made from a seed, and the error a kernel may have.

    def cases() -> list[OpCase]:
        return [OpCase("window_attention", "a prompt of 70", partial(prompt, 70))]

    def prompt(tokens: int, rng: np.random.Generator) -> list[Call]:
        q, k, v = (normal(rng, tokens, 2, 64) for _ in range(3))
        return [(q, k, v, KV(kv_heads=2, head_dim=64), Parts((0, tokens, 0)), 0.125)]

A call is the op's arguments without the leading `xp` or `o`. Arrays are activations: rows first,
uploaded, and handed over as views too. `Vector` and `Matrix` are weights, `KV`, `Window` and
`Recurrent` are states, `Parts` is a step; anything else is handed over as it is. Calls of a case
come one after the other; a state that several of them name is one state. Knows no backend.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from apr_core.model.state import KVState, KVType, RecurrentState, StateMakers, WindowState
from apr_core.ops.binding import HostMatrix

Floats = NDArray[np.float32]
Call = tuple[Any, ...]
Make = Callable[[np.random.Generator], list[Call]]


@dataclass(frozen=True, slots=True)
class OpCase:
    """One case of one op.

    `make` builds its calls, always the same for the same generator. `tolerance` is the largest
    normalised mean square error (see `nmse`) of any result and of the state afterwards; 1e-10 is
    a relative error of 1e-5.
    """

    op: str
    name: str
    make: Make
    tolerance: float = 1e-10

    def calls(self) -> list[Call]:
        """Its calls, made anew: the arrays are the caller's to change."""
        return self.make(np.random.default_rng(zlib.crc32(f"{self.op}/{self.name}".encode())))

    def __str__(self) -> str:
        return f"{self.op} ({self.name})"


@dataclass(frozen=True, eq=False, slots=True)
class Matrix:
    """A weight for `linear` or `embed`: float32 [rows, cols].

    With `host` a backend gets those bytes, and `values` are what they decode to.
    """

    values: Floats
    uses: tuple[str, ...] = ("linear",)
    host: HostMatrix | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Vector:
    """A weight of any shape that a model uploads as dense float32: never a view."""

    values: NDArray[Any]


class Parts:
    """A step, as (slot, number of tokens, first position) parts."""

    def __init__(self, *parts: tuple[int, int, int]) -> None:
        self.parts = parts

    @property
    def ends(self) -> dict[int, int]:
        """Where each slot stands after the step."""
        return {slot: position + count for slot, count, position in self.parts}


class StateMaker(Protocol):
    """An argument that becomes a state. Derive one for a state of your own."""

    def new(self, states: StateMakers) -> Any:
        """The state, no slot open. `states` makes it as the backend wants it."""

    def spoil(self, state: Any, slot: int) -> None:
        """Write NaN wherever an open slot's state has no value yet."""

    def read(self, state: Any, slot: int, length: int) -> dict[str, Any]:
        """The slot's arrays, on the backend, as far as `length` tokens have filled them."""


@dataclass(frozen=True, eq=False, slots=True)
class KV:
    """Keys and values of full attention."""

    kv_heads: int
    head_dim: int
    dtype: KVType = "f32"

    def new(self, states: StateMakers) -> Any:
        """As the backend keeps them: a `KVState` if it says nothing."""
        return states.kv(self.kv_heads, self.head_dim)

    def spoil(self, state: Any, slot: int) -> None:
        """NaN at many positions: an empty sequence has none."""
        if state.dtype == "q8":  # bytes: every value is one
            return
        state.reserve(slot, KVState.growth)
        keys, values = state.filled(slot, KVState.growth)  # [Hkv, growth, D], perhaps copies
        keys[...] = np.nan
        values[...] = np.nan
        state.append(slot, 0, keys.swapaxes(0, 1), values.swapaxes(0, 1))

    def read(self, state: Any, slot: int, length: int) -> dict[str, Any]:
        """Keys and values [Hkv, length, D]; as bytes they are the backend's own affair."""
        if state.dtype == "q8":
            return {}
        state.reserve(slot, length)
        keys, values = state.filled(slot, length)
        return {"keys": keys, "values": values}


@dataclass(frozen=True, eq=False, slots=True)
class Window:
    """Keys and values of the last `window` positions."""

    kv_heads: int
    head_dim: int
    window: int
    dtype: KVType = "f32"

    def new(self, states: StateMakers) -> WindowState:
        """A `WindowState`."""
        return states.window(self.kv_heads, self.head_dim, self.window)

    def spoil(self, state: WindowState, slot: int) -> None:
        """NaN at every position: an empty sequence has none."""
        state.keys[slot][...] = np.nan
        state.values[slot][...] = np.nan

    def read(self, state: WindowState, slot: int, length: int) -> dict[str, Any]:
        """Keys and values [Hkv, up to window - 1, D] that the next token may look at."""
        _, keys, values = state.snapshot(slot, length)
        return {"keys": keys, "values": values}


class Recurrent:
    """Named arrays of a fixed shape, zeros at first: `Recurrent(conv=(3, 300))`."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        self.shapes: Mapping[str, tuple[int, ...]] = shapes

    def new(self, states: StateMakers) -> RecurrentState:
        """A `RecurrentState`."""
        return states.recurrent(**self.shapes)

    def spoil(self, state: RecurrentState, slot: int) -> None:
        """Nothing: the zeros of an empty sequence count."""

    def read(self, state: RecurrentState, slot: int, length: int) -> dict[str, Any]:
        """All arrays of the slot."""
        return {name: state.get(name, slot) for name in self.shapes}


def is_state(argument: Any) -> bool:
    """Whether an argument of a call becomes a state."""
    return all(hasattr(argument, name) for name in ("new", "spoil", "read"))


def flat(calls: Sequence[Any]) -> Iterator[Any]:
    """All arguments of calls, those in tuples one by one."""
    for each in calls:
        if isinstance(each, (tuple, list)):
            yield from flat(each)
        else:
            yield each


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Floats:
    """Normally distributed float32."""
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> Floats:
    """Evenly distributed float32."""
    return rng.uniform(low, high, shape).astype(np.float32)


def nmse(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """Normalised mean square error: mean((a - e)^2) / mean(e^2); infinite if a is not finite.

    Where `expected` is all zeros it is mean(a^2). 0.0 for empty arrays.
    """
    if expected.size == 0:
        return 0.0
    wanted, found = expected.astype(np.float64), actual.astype(np.float64)
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.mean((found - wanted) ** 2) / (np.mean(wanted**2) or 1.0))


def gain(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """The factor that `expected` appears with in `actual`: 1.0 if errors are mere rounding.

    A systematic error of a percent shows here where 8-bit rounding would hide it from `nmse`.
    """
    wanted, found = expected.astype(np.float64), actual.astype(np.float64)
    power = float(np.sum(wanted * wanted))
    return float(np.sum(found * wanted)) / power if power else 1.0
