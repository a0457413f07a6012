"""States: what a sequence keeps between steps. Each says whether it can be rewound.

A state belongs to one layer and holds all slots. Arrays come from the backend (`zeros`). Recurrent
state is float32, because its rounding would accumulate over the whole sequence; keys and values may
be float16, or 8 bits with scales where a backend has attention over those (`q8`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any, ClassVar, Literal

from apr_core.declarations import StateKind
from apr_core.errors import BackendError
from apr_core.ops.binding import BackendPlugin

Array = Any
Zeros = Callable[..., Array]  # (shape, dtype="f32") -> zeros on the backend
KVType = Literal["f32", "f16", "q8"]


class State:
    """Base class of one layer's state, for all slots."""

    kind: ClassVar[StateKind]  # as in the mixer's declaration
    # True: snapshots may hold a part of a sequence. Then `snapshot` takes a third argument, the
    # position to begin at; `restore` takes the same, with everything before it in place; and
    # `shortened(snapshot, rows)` returns the first rows of one
    segments = False
    # tokens: prompts that are cut at its multiples give the same bits however they are cut
    grid = 1

    def open(self, slot: int) -> None:
        """Start an empty sequence in the slot."""
        raise NotImplementedError

    def close(self, slot: int) -> None:
        """Forget the slot and give its memory back."""
        raise NotImplementedError

    def snapshot(self, slot: int, length: int) -> Any:
        """Return a copy of the slot's state after `length` tokens."""
        raise NotImplementedError

    def restore(self, slot: int, snapshot: Any) -> None:
        """Put a snapshot back."""
        raise NotImplementedError

    def nbytes(self) -> int:
        """Return the bytes held now, over all slots."""
        raise NotImplementedError

    def bytes_at(self, length: int) -> int:
        """Return the bytes of a slot with `length` tokens; by default, those of an empty one."""
        before, slot = self.nbytes(), -1
        self.open(slot)
        try:
            return self.nbytes() - before
        finally:
            self.close(slot)


class _KeysAndValues(State):
    """Keys and values, an array [Hkv, rows, D] of each per slot."""

    def __init__(self, zeros: Zeros, kv_heads: int, head_dim: int, dtype: KVType) -> None:
        self._make, self._heads, self._dim, self.dtype = zeros, kv_heads, head_dim, dtype
        self.keys: dict[int, Array] = {}
        self.values: dict[int, Array] = {}

    def _zeros(self, rows: int) -> Array:
        return self._make((self._heads, rows, self._dim), self.dtype)

    def close(self, slot: int) -> None:
        """Forget the slot and give its memory back."""
        del self.keys[slot], self.values[slot]

    def nbytes(self) -> int:
        """Return the bytes held now, over all slots."""
        return sum(a.nbytes for cache in (self.keys, self.values) for a in cache.values())


class KVState(_KeysAndValues):
    """Keys and values of full attention: one growing array [Hkv, capacity, D] each per slot.

    With `q8` the last axis is bytes, as the backend lays them out: only its attention reads them.
    """

    kind: ClassVar[StateKind] = "kv"
    segments = True
    growth = 256  # positions; capacity doubles from here

    def __init__(self, zeros: Zeros, kv_heads: int, head_dim: int, dtype: KVType = "f32") -> None:
        super().__init__(zeros, kv_heads, head_dim, dtype)
        self._row_bytes = 0  # bytes of a position's keys, once looked up

    def open(self, slot: int) -> None:
        """Start an empty sequence in the slot."""
        self.keys[slot], self.values[slot] = self._zeros(self.growth), self._zeros(self.growth)

    def reserve(self, slot: int, length: int) -> None:
        """Make room for `length` positions."""
        if length <= self.keys[slot].shape[1]:
            return
        capacity = self._capacity(length)
        for cache in (self.keys, self.values):
            grown = self._zeros(capacity)
            grown[:, : cache[slot].shape[1]] = cache[slot]
            cache[slot] = grown

    def _capacity(self, length: int) -> int:
        """Return how many positions a slot has room for once its sequence has grown to `length`."""
        capacity = self.growth
        while capacity < length:
            capacity *= 2
        return capacity

    def bytes_at(self, length: int) -> int:
        """Return the bytes of a slot whose sequence has `length` tokens."""
        if not self._row_bytes:
            self._row_bytes = self._zeros(1).nbytes
        return 2 * self._capacity(length) * self._row_bytes

    def append(self, slot: int, position: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Write k, v [n, Hkv, D] at `position`; return all keys and values so far [Hkv, L, D]."""
        if self.dtype == "q8":
            raise BackendError(
                "keys and values of 8 bits are read by a backend's own attention only",
                "Load with kv_type='f16'.",
            )
        length = position + k.shape[0]
        self.reserve(slot, length)
        self.keys[slot][:, position:length] = k.swapaxes(0, 1)
        self.values[slot][:, position:length] = v.swapaxes(0, 1)
        return self.filled(slot, length)

    def filled(self, slot: int, length: int) -> tuple[Array, Array]:
        """Return the first `length` keys and values, both [Hkv, length, D]."""
        return self.keys[slot][:, :length], self.values[slot][:, :length]

    def snapshot(self, slot: int, length: int, since: int = 0) -> tuple[Array, Array]:
        """Return copies of the keys and values of positions `since` to `length`."""
        keys, values = self._zeros(length - since), self._zeros(length - since)
        keys[...] = self.keys[slot][:, since:length]
        values[...] = self.values[slot][:, since:length]
        return keys, values

    def restore(self, slot: int, snapshot: tuple[Array, Array], since: int = 0) -> None:
        """Put a snapshot back; what came before `since` is in its place."""
        keys, values = snapshot
        length = since + keys.shape[1]
        self.reserve(slot, length)
        self.keys[slot][:, since:length], self.values[slot][:, since:length] = keys, values

    def shortened(self, snapshot: tuple[Array, Array], rows: int) -> tuple[Array, Array]:
        """Return the first rows of a snapshot, as views."""
        keys, values = snapshot
        return keys[:, :rows], values[:, :rows]


class RecurrentState(State):
    """Named fixed-size arrays per slot, for mixers that fold the past into a matrix."""

    kind: ClassVar[StateKind] = "recurrent"

    def __init__(self, zeros: Zeros, shapes: Mapping[str, tuple[int, ...]], grid: int = 1) -> None:
        self._zeros, self._shapes, self.grid = zeros, dict(shapes), grid
        self.arrays: dict[str, dict[int, Array]] = {name: {} for name in shapes}

    def open(self, slot: int) -> None:
        """Start an empty sequence in the slot: all zeros."""
        zeros = {name: self._zeros(shape) for name, shape in self._shapes.items()}
        for name, array in zeros.items():
            self.arrays[name][slot] = array

    def close(self, slot: int) -> None:
        """Forget the slot and give its memory back."""
        for arrays in self.arrays.values():
            del arrays[slot]

    def get(self, name: str, slot: int) -> Array:
        """Return the slot's array of that name, to be updated in place."""
        return self.arrays[name][slot]

    def snapshot(self, slot: int, length: int) -> dict[str, Array]:
        """Return copies of all arrays; `length` must be the slot's current length."""
        return {name: arrays[slot] + 0 for name, arrays in self.arrays.items()}

    def restore(self, slot: int, snapshot: dict[str, Array]) -> None:
        """Put a snapshot back."""
        for name, array in snapshot.items():
            self.arrays[name][slot][...] = array

    def bytes_at(self, length: int) -> int:
        """Return the bytes of a slot, independent of sequence length."""
        return sum(4 * prod(shape) for shape in self._shapes.values())

    def nbytes(self) -> int:
        """Return the bytes held now, over all slots."""
        return sum(a.nbytes for arrays in self.arrays.values() for a in arrays.values())


class WindowState(_KeysAndValues):
    """The last keys and values of attention over a window, in room for two windows per slot.

    `window` counts the query's own position. Rows are appended until the room is full; then the
    last `window - 1` move to its front, so memory is bounded and a step rarely copies.
    """

    kind: ClassVar[StateKind] = "window"

    def __init__(
        self, zeros: Zeros, kv_heads: int, head_dim: int, window: int, dtype: KVType = "f32"
    ) -> None:
        if dtype == "q8":
            raise BackendError(
                "keys and values of a window are kept in f32 or f16, not in 8 bits",
                "Load with kv_type='f16'.",
            )
        super().__init__(zeros, kv_heads, head_dim, dtype)
        self.window, self.capacity = window, 2 * window
        self.first: dict[int, int] = {}  # the position of a slot's row 0

    def open(self, slot: int) -> None:
        """Start an empty sequence in the slot."""
        self.keys[slot], self.values[slot] = self._zeros(self.capacity), self._zeros(self.capacity)
        self.first[slot] = 0

    def close(self, slot: int) -> None:
        """Forget the slot and give its memory back."""
        super().close(slot)
        del self.first[slot]

    def append(self, slot: int, position: int, k: Array, v: Array) -> tuple[Array, Array, int]:
        """Write k, v [n, Hkv, D] at `position`, the slot's length.

        Returns all keys and values [Hkv, L, D] that the new rows may look at, and the position of
        the first of them.
        """
        start = position - self.first[slot]
        seen = max(0, start - self.window + 1)  # the oldest row that the first new row looks at
        stop = start + k.shape[0]
        if stop > self.capacity:
            return self._slide(slot, seen, start, k, v)
        for cache, rows in ((self.keys, k), (self.values, v)):
            cache[slot][:, start:stop] = rows.swapaxes(0, 1)
        first = self.first[slot] + seen
        return self.keys[slot][:, seen:stop], self.values[slot][:, seen:stop], first

    def _slide(
        self, slot: int, seen: int, start: int, k: Array, v: Array
    ) -> tuple[Array, Array, int]:
        """Join rows that do not fit outside the room, which then keeps the last ones."""
        length = start - seen + k.shape[0]
        staying = min(length, self.window - 1)
        joined = []
        for cache, rows in ((self.keys, k), (self.values, v)):
            whole = self._zeros(length)
            whole[:, : start - seen] = cache[slot][:, seen:start]
            whole[:, start - seen :] = rows.swapaxes(0, 1)
            cache[slot][:, :staying] = whole[:, length - staying :]
            joined.append(whole)
        first = self.first[slot] + seen
        self.first[slot] = first + length - staying
        return joined[0], joined[1], first

    def snapshot(self, slot: int, length: int) -> tuple[int, Array, Array]:
        """Return the first position that a row at `length` may look at, and copies of k and v."""
        stop = length - self.first[slot]
        seen = max(0, stop - self.window + 1)
        keys, values = self.keys[slot][:, seen:stop], self.values[slot][:, seen:stop]
        return self.first[slot] + seen, keys + 0, values + 0

    def restore(self, slot: int, snapshot: tuple[int, Array, Array]) -> None:
        """Put a snapshot back."""
        self.first[slot], keys, values = snapshot
        length = keys.shape[1]
        self.keys[slot][:, :length], self.values[slot][:, :length] = keys, values

    def bytes_at(self, length: int) -> int:
        """Return the bytes of a slot, independent of sequence length."""
        return 2 * self.capacity * int(self._zeros(1).nbytes)


class StateMakers:
    """The states that a mixer's `new_state` can make.

    `zeros(shape, dtype="f32")` and `kv_type` are for state classes of plugins.
    """

    def __init__(self, zeros: Zeros, kv_type: KVType = "f32") -> None:
        self.zeros, self.kv_type = zeros, kv_type

    def kv(self, kv_heads: int, head_dim: int) -> State:
        """Make a state of the keys and values of everything so far."""
        return KVState(self.zeros, kv_heads, head_dim, self.kv_type)

    def window(self, kv_heads: int, head_dim: int, window: int) -> WindowState:
        """Make a state of the last `window` positions, the query's own included."""
        return WindowState(self.zeros, kv_heads, head_dim, window, self.kv_type)

    def recurrent(self, grid: int = 1, /, **shapes: tuple[int, ...]) -> RecurrentState:
        """Make a state of named float32 arrays of fixed shapes, zeros at first.

        `grid` is the number of tokens that the op folds in at once, see State.
        """
        return RecurrentState(self.zeros, shapes, grid)


def state_makers(
    backend: BackendPlugin, kv_type: KVType = "f32", max_len: int | None = None
) -> StateMakers:
    """Return the makers of states on a backend, for sequences of at most `max_len` tokens."""
    own: StateMakers | None = backend.states(kv_type, max_len)
    return own or StateMakers(backend.zeros, kv_type)


def sequence_bytes(states: Iterable[State], length: int) -> int:
    """Return a slot's bytes over all layers when its sequence has `length` tokens."""
    return sum(state.bytes_at(length) for state in states)
