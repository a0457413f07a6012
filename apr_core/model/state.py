"""What a sequence keeps between steps. Each state says whether it can be rewound.

A state belongs to one layer and holds all slots. Arrays come from the backend (`zeros`). Recurrent
state is float32, because its rounding would accumulate over the whole sequence; keys and values may
be float16, or 8 bits with scales where a backend has attention over those (`q8`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from apr_core.errors import BackendError

Array = Any
Zeros = Callable[..., Array]  # (shape, dtype="f32") -> zeros on the backend
KVType = Literal["f32", "f16", "q8"]


class State(Protocol):
    """State of one layer, for all slots."""

    rewindable: bool  # True: forgetting the tokens after a position needs no snapshot

    def open(self, slot: int) -> None:
        """Start an empty sequence in the slot."""

    def close(self, slot: int) -> None:
        """Forget the slot and give its memory back."""

    def snapshot(self, slot: int, length: int) -> Any:
        """A copy of the slot's state after `length` tokens."""

    def restore(self, slot: int, snapshot: Any) -> None:
        """Put a snapshot back."""

    def nbytes(self) -> int:
        """Bytes held now, over all slots."""


class KVState:
    """Keys and values of full attention, one growing array [Hkv, capacity, D] a slot.

    With `q8` the last axis is bytes, as the backend lays them out: only its attention reads them.
    """

    rewindable = True
    growth = 256  # positions; capacity doubles from here

    def __init__(self, zeros: Zeros, kv_heads: int, head_dim: int, dtype: KVType = "f32") -> None:
        self._make, self._heads, self._dim, self.dtype = zeros, kv_heads, head_dim, dtype
        self.keys: dict[int, Array] = {}
        self.values: dict[int, Array] = {}

    def open(self, slot: int) -> None:
        """Start an empty sequence in the slot."""
        self.keys[slot] = self._zeros(self.growth)
        self.values[slot] = self._zeros(self.growth)

    def _zeros(self, capacity: int) -> Array:
        return self._make((self._heads, capacity, self._dim), self.dtype)

    def close(self, slot: int) -> None:
        """Forget the slot and give its memory back."""
        del self.keys[slot], self.values[slot]

    def reserve(self, slot: int, length: int) -> None:
        """Make room for `length` positions."""
        capacity = self.keys[slot].shape[1]
        if length <= capacity:
            return
        while capacity < length:
            capacity *= 2
        for cache in (self.keys, self.values):
            grown = self._zeros(capacity)
            grown[:, : cache[slot].shape[1]] = cache[slot]
            cache[slot] = grown

    def append(self, slot: int, position: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Write k, v [n, Hkv, D] at `position`; returns all keys and values so far [Hkv, L, D]."""
        if self.dtype == "q8":
            raise BackendError(
                "keys and values of 8 bits are read by a backend's own attention only",
                "Load with kv_type='f16'.",
            )
        length = position + k.shape[0]
        self.reserve(slot, length)
        self.keys[slot][:, position:length] = k.swapaxes(0, 1)
        self.values[slot][:, position:length] = v.swapaxes(0, 1)
        return self.keys[slot][:, :length], self.values[slot][:, :length]

    def snapshot(self, slot: int, length: int) -> tuple[Array, Array]:
        """Copies of the first `length` keys and values."""
        return self.keys[slot][:, :length] + 0, self.values[slot][:, :length] + 0

    def restore(self, slot: int, snapshot: tuple[Array, Array]) -> None:
        """Put a snapshot back."""
        keys, values = snapshot
        length = keys.shape[1]
        self.reserve(slot, length)
        self.keys[slot][:, :length], self.values[slot][:, :length] = keys, values

    def nbytes(self) -> int:
        """Bytes held now, over all slots."""
        return sum(a.nbytes for cache in (self.keys, self.values) for a in cache.values())


class RecurrentState:
    """Named fixed-size arrays a slot, for mixers that fold the past into a matrix."""

    rewindable = False

    def __init__(self, zeros: Zeros, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._zeros, self._shapes = zeros, dict(shapes)
        self.arrays: dict[str, dict[int, Array]] = {name: {} for name in shapes}

    def open(self, slot: int) -> None:
        """Start an empty sequence in the slot: all zeros."""
        for name, shape in self._shapes.items():
            self.arrays[name][slot] = self._zeros(shape)

    def close(self, slot: int) -> None:
        """Forget the slot and give its memory back."""
        for arrays in self.arrays.values():
            del arrays[slot]

    def get(self, name: str, slot: int) -> Array:
        """The slot's array of that name, to be updated in place."""
        return self.arrays[name][slot]

    def snapshot(self, slot: int, length: int) -> dict[str, Array]:
        """Copies of all arrays; `length` must be where the slot stands."""
        return {name: arrays[slot] + 0 for name, arrays in self.arrays.items()}

    def restore(self, slot: int, snapshot: dict[str, Array]) -> None:
        """Put a snapshot back."""
        for name, array in snapshot.items():
            self.arrays[name][slot][...] = array

    def nbytes(self) -> int:
        """Bytes held now, over all slots."""
        return sum(a.nbytes for arrays in self.arrays.values() for a in arrays.values())
