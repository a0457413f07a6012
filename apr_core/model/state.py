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
    # positions that attention looks back over, the query's own included; 0: all
    window = 0

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


class KVState(State):
    """Keys and values of attention: one growing array [Hkv, capacity, D] each per slot.

    With a `window` rows that no later query looks at go, `growth` at a time, so the room is
    bounded: row 0 of a slot's arrays is position `first[slot]`, a multiple of `growth`. With `q8`
    the last axis is bytes, as the backend lays them out: only its attention reads them.
    """

    kind: ClassVar[StateKind] = "kv"
    growth = 256  # positions; capacity doubles from here

    def __init__(
        self, zeros: Zeros, kv_heads: int, head_dim: int, dtype: KVType = "f32", window: int = 0
    ) -> None:
        self._make, self._heads, self._dim, self.dtype = zeros, kv_heads, head_dim, dtype
        self.window, self.segments = window, not window
        # most rows between steps, a quarter of them spare, so that rows are rarely moved
        self._room = self._whole(window + window // 4 + self.growth) if window else 0
        self.keys: dict[int, Array] = {}
        self.values: dict[int, Array] = {}
        self.first: dict[int, int] = {}
        self._row_bytes = 0  # bytes of a position's keys, once looked up

    def _zeros(self, rows: int) -> Array:
        return self._make((self._heads, rows, self._dim), self.dtype)

    def open(self, slot: int) -> None:
        """Start an empty sequence in the slot."""
        self.keys[slot], self.values[slot] = self._zeros(self.growth), self._zeros(self.growth)
        self.first[slot] = 0

    def close(self, slot: int) -> None:
        """Forget the slot and give its memory back."""
        del self.keys[slot], self.values[slot], self.first[slot]

    def nbytes(self) -> int:
        """Return the bytes held now, over all slots."""
        return sum(a.nbytes for cache in (self.keys, self.values) for a in cache.values())

    def reserve(self, slot: int, length: int, position: int = 0) -> None:
        """Make room for `length` positions. Rows that none from `position` on looks at may go."""
        first, held = self.first[slot], self.keys[slot].shape[1]
        if length - first <= held <= (self._room or held):
            return
        kept = max(first, self._begin(position))
        capacity, caches = self._capacity(length - kept), (self.keys, self.values)
        room = [self._zeros(capacity) for _ in caches]  # both, or an error changes nothing
        for cache, moved in zip(caches, room, strict=True):
            old = cache[slot][:, kept - first :][:, :capacity]
            moved[:, : old.shape[1]] = old
            cache[slot] = moved
        self.first[slot] = kept

    def _begin(self, position: int) -> int:
        """Return a position, on the grid, from which on a row at `position` looks at rows."""
        begin = max(0, position - self.window + 1) // self.growth * self.growth
        return begin if self.window else 0

    def _capacity(self, rows: int) -> int:
        """Return how many rows a slot has room for that has grown to hold this many."""
        capacity = self.growth
        while capacity < rows:
            capacity *= 2
        return min(capacity, max(self._whole(rows), self._room)) if self.window else capacity

    def _whole(self, rows: int) -> int:
        return -(-rows // self.growth) * self.growth

    def bytes_at(self, length: int) -> int:
        """Return the bytes of a slot whose sequence has `length` tokens.

        With a window, those between steps: a long step takes more until the next one.
        """
        if not self._row_bytes:
            self._row_bytes = self._zeros(1).nbytes
        rows = self._capacity(length)
        return 2 * min(rows, self._room or rows) * self._row_bytes

    def append(self, slot: int, position: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Write k, v [n, Hkv, D] at `position`; return the keys and values kept [Hkv, L, D].

        These are the last L, the new ones included: all so far if there is no window.
        """
        if self.dtype == "q8":
            raise BackendError(
                "keys and values of 8 bits are read by a backend's own attention only",
                "Load with kv_type='f16'.",
            )
        length = position + k.shape[0]
        self.reserve(slot, length, position)
        here = slice(position - self.first[slot], length - self.first[slot])
        self.keys[slot][:, here] = k.swapaxes(0, 1)
        self.values[slot][:, here] = v.swapaxes(0, 1)
        return self.filled(slot, length)

    def filled(self, slot: int, length: int) -> tuple[Array, Array]:
        """Return the keys and values kept of the first `length`, both [Hkv, L, D]."""
        rows = length - self.first[slot]
        return self.keys[slot][:, :rows], self.values[slot][:, :rows]

    def snapshot(self, slot: int, length: int, since: int = 0) -> tuple[int, Array, Array]:
        """Return a position, and copies of the keys and values from there to `length`.

        The position is `since`, or where a window begins.
        """
        first, since = self.first[slot], max(since, self._begin(length))
        keys, values = self._zeros(length - since), self._zeros(length - since)
        keys[...] = self.keys[slot][:, since - first : length - first]
        values[...] = self.values[slot][:, since - first : length - first]
        return since, keys, values

    def restore(self, slot: int, snapshot: tuple[int, Array, Array], since: int = 0) -> None:
        """Put a snapshot back; what came before it, and is looked at, is in its place."""
        since, keys, values = snapshot
        first = self.first[slot] = since if self.window else 0
        length = since + keys.shape[1]
        self.reserve(slot, length)
        here = slice(since - first, length - first)
        self.keys[slot][:, here], self.values[slot][:, here] = keys, values

    def shortened(self, snapshot: tuple[int, Array, Array], rows: int) -> tuple[int, Array, Array]:
        """Return the first rows of a snapshot, as views."""
        since, keys, values = snapshot
        return since, keys[:, :rows], values[:, :rows]


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


class StateMakers:
    """The states that a mixer's `new_state` can make.

    `zeros(shape, dtype="f32")` and `kv_type` are for state classes of plugins.
    """

    def __init__(self, zeros: Zeros, kv_type: KVType = "f32") -> None:
        self.zeros, self.kv_type = zeros, kv_type

    def kv(self, kv_heads: int, head_dim: int, window: int = 0) -> State:
        """Make a state of the keys and values of everything so far.

        With a `window`, of what attention over the last `window` positions needs.
        """
        return KVState(self.zeros, kv_heads, head_dim, self.kv_type, window)

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
