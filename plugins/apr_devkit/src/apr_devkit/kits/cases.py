"""Cases of an op: arguments made from a seed, and the error that a kernel may have.

    def cases() -> list[OpCase]:
        return [OpCase("my_attention", "a prompt of 70", partial(prompt, 70))]

    def prompt(tokens: int, rng: np.random.Generator) -> list[Call]:
        q, k, v = (normal(rng, tokens, 2, 64) for _ in range(3))
        return [(q, k, v, KV(kv_heads=2, head_dim=64), Parts((0, tokens, 0)), 0.125)]

A call is the op's arguments without the leading `xp` or `o`. Arrays are activations: rows first,
uploaded, and passed as views too. `Vector` and `Matrix` are weights, `KV` and `Recurrent` are
states, `Parts` is a step; anything else is passed as it is. Calls of a case run one after the
other; a state that several of them name is one state.

Cases of the core's ops follow: shapes are 1, odd and large, values are what models have. Tolerances
are squared errors between those of two precisions. Float32 passes, summed in any order and with
exponentials that are wrong in a few of the last bits: 4096 products added one after the other have
an NMSE of 1e-12, and 1e-9 is allowed. Factors rounded to the 8 bits of bf16 (5e-6), to the 11 bits
of f16 or of a matrix unit's shortened float32 (8e-8) fail, and so does a gain that is 0.004% off.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from apr_core.plugin import HostMatrix, KVState, KVType, RecurrentState, StateMakers
from apr_core.runtime import make_step

Floats = NDArray[np.float32]
Call = tuple[Any, ...]
Make = Callable[[Generator], list[Call]]
Shape = tuple[int, ...]
Table = Iterable[tuple[Any, ...]]  # rows of arguments


@dataclass(frozen=True, slots=True)
class OpCase:
    """One case of one op.

    `make` builds its calls, always the same for the same generator. `tolerance` is the largest
    normalised mean square error (`measures.nmse`) of any result and of the state afterwards; 1e-10
    is a relative error of 1e-5.
    """

    op: str
    name: str
    make: Make
    tolerance: float = 1e-10

    def calls(self) -> list[Call]:
        """Return its calls, made anew: the caller may change the arrays."""
        return self.make(np.random.default_rng(zlib.crc32(f"{self.op}/{self.name}".encode())))

    def __str__(self) -> str:
        return f"{self.op} ({self.name})"


@dataclass(frozen=True, eq=False, slots=True)
class Matrix:
    """A weight for `linear`, `embed` or another matrix op: float32 [rows, cols], or a stack.

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
        """The position of each slot after the step."""
        return {slot: position + count for slot, count, position in self.parts}

    @property
    def rows(self) -> dict[int, slice]:
        """The rows of each slot."""
        return {s.slot: slice(s.start, s.stop) for s in make_step(self.parts).segments}


@dataclass(frozen=True, eq=False, slots=True)
class KV:
    """Keys and values of attention over all positions, or over the last `window`.

    A state of another kind is an object with these three methods: `new` makes it, no slot open,
    `spoil` writes NaN where an open slot has no value yet, and `read` returns the slot's arrays, as
    far as `length` tokens have filled them.
    """

    kv_heads: int
    head_dim: int
    dtype: KVType = "f32"
    window: int = 0

    def new(self, states: StateMakers) -> Any:
        """Return the state of the backend's choice: a `KVState` by default."""
        return states.kv(self.kv_heads, self.head_dim, self.window)

    def spoil(self, state: Any, slot: int) -> None:
        """Write NaN at many positions: an empty sequence has no values."""
        if state.dtype == "q8":  # bytes: every value is one
            return
        state.reserve(slot, KVState.growth)
        keys, values = state.filled(slot, KVState.growth)  # [Hkv, growth, D], perhaps copies
        keys[...] = np.nan
        values[...] = np.nan
        state.append(slot, 0, keys.swapaxes(0, 1), values.swapaxes(0, 1))

    def read(self, state: Any, slot: int, length: int) -> dict[str, Any]:
        """Return keys and values [Hkv, length, D]; {} where the backend stores them as bytes.

        With a window, of the last positions: those that the next query may see.
        """
        if state.dtype == "q8":
            return {}
        if not state.window or length == 1:
            state.reserve(slot, length)
        rows = min(length, self.window - 1 if self.window else length)
        keys, values = (x[:, x.shape[1] - rows :] for x in state.filled(slot, length))
        return {"keys": keys, "values": values}


class Recurrent:
    """Named arrays of a fixed shape, zeros at first: `Recurrent(conv=(3, 300))`."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        self.shapes: Mapping[str, tuple[int, ...]] = shapes

    def new(self, states: StateMakers) -> RecurrentState:
        """Return a `RecurrentState`."""
        return states.recurrent(**self.shapes)

    def spoil(self, state: RecurrentState, slot: int) -> None:
        """Do nothing: an empty sequence starts from zeros."""

    def read(self, state: RecurrentState, slot: int, length: int) -> dict[str, Any]:
        """Return all arrays of the slot."""
        return {name: state.get(name, slot) for name in self.shapes}


def is_state(argument: Any) -> bool:
    """Return True if an argument of a call becomes a state."""
    return all(hasattr(argument, name) for name in ("new", "spoil", "read"))


def flat(calls: Sequence[Any]) -> Iterator[Any]:
    """Yield all arguments of calls, those in tuples one by one."""
    for each in calls:
        yield from flat(each) if isinstance(each, tuple | list) else [each]


def normal(rng: Generator, *shape: int, scale: float = 1.0) -> Floats:
    """Return normally distributed float32."""
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def uniform(rng: Generator, low: float, high: float, *shape: int) -> Floats:
    """Return uniformly distributed float32."""
    return rng.uniform(low, high, shape).astype(np.float32)


def with_others(calls: Sequence[Call]) -> list[Call]:
    """Return the calls, then the same with reversed activations and new states, but the weights."""
    states = {id(a): copy(a) for a in flat(calls) if is_state(a)}

    def other(argument: Any) -> Any:
        if isinstance(argument, tuple):
            return tuple(map(other, argument))
        if isinstance(argument, np.ndarray):
            return np.flip(argument).copy()
        return states.get(id(argument), argument)

    return [*calls, *map(other, calls)]


def weight(rng: Generator, rows: int, cols: int) -> Matrix:
    """Return a matrix whose products have the size of their inputs."""
    return Matrix(normal(rng, rows, cols, scale=cols**-0.5))


# cases of the core's ops

KV_TYPES: tuple[KVType, ...] = ("f32", "f16", "q8")
EXACT = 0.0  # values that are only copied
ELEMENTWISE = 1e-10
PRODUCT = 1e-9
KV_TOLERANCE: dict[KVType, float] = {"f32": PRODUCT, "f16": 1e-6, "q8": 5e-4}
NORMS = {  # name -> (offset, size of the values, epsilon, which matters for some sizes)
    "{0}, offset {1}, values of {2}": ((0.0, 1.0, 1e-6), (1.0, 1e-3, 1e-6), (1.0, 1e3, 1e-6)),
    "{0}, eps {3}, values of {2}": ((0.0, 1e-3, 1e-6), (0.0, 1e-3, 1e-5), (0.0, 1e-2, 1e-3)),
}
NORM_SHAPES = ((1, 1), (3, 37), (300, 1024), (1, 2, 64), (5, 3, 33))  # rows, then heads


def each(
    op: str, tolerance: float, table: Table, name: str, make: Callable[..., list[Call]]
) -> list[OpCase]:
    """Return a case for each row of a table: `make` gets its values, and the generator."""
    return [OpCase(op, name.format(*row), partial(make, *row), tolerance) for row in table]


def _embed(n: int, rows: int, cols: int, rng: Generator) -> list[Call]:
    return [(rng.integers(0, rows, n), Matrix(normal(rng, rows, cols), ("embed",)))]


def linear(n: int, cols: int, rows: int, rng: Generator) -> list[Call]:
    """Return a call of `linear` with rows [n, cols] and a weight [rows, cols]."""
    return [(normal(rng, n, cols), weight(rng, rows, cols))]


def _linears(n: int, biased: str, rng: Generator) -> list[Call]:
    call = normal(rng, n, 96), tuple(weight(rng, rows, 96) for rows in (64, 1, 33))
    biases = Vector(normal(rng, 64)), None, Vector(normal(rng, 33))
    return [(*call, biases) if biased else call]


def _mlp(n: int, cols: int, inner: int, rng: Generator) -> list[Call]:
    gate, up, down = weight(rng, inner, cols), weight(rng, inner, cols), weight(rng, cols, inner)
    return [(normal(rng, n, cols), gate, up, down)]


def _norm(
    adds: int, shape: Shape, offset: float, scale: float, eps: float, rng: Generator
) -> list[Call]:
    w = Vector(normal(rng, shape[-1], scale=0.5))
    x = normal(rng, *shape, scale=3 * scale if adds else scale)
    more = (normal(rng, *shape, scale=scale),) if adds else ()
    return [(x, *more, w, eps, offset)]


def _add(shape: tuple[int, int], what: str, rng: Generator) -> list[Call]:
    more = Vector(normal(rng, shape[1])) if what == "a row" else normal(rng, *shape)
    return [(normal(rng, *shape), more)]


def _by(shape: tuple[int, int], factor: float, rng: Generator) -> list[Call]:
    return [(normal(rng, *shape, scale=10.0), factor)]


def _gate(more: int, shape: Shape, top: float, rng: Generator) -> list[Call]:
    return [(uniform(rng, -top, top, *shape), *(normal(rng, *shape) for _ in range(more)))]


def _heads_gate(shape: Shape, rng: Generator) -> list[Call]:
    return [(normal(rng, *shape), uniform(rng, -100.0, 100.0, *shape))]


def _rope(
    rotary: int, dim: int, rows: int, last: int, positions: tuple[int, ...], rng: Generator
) -> list[Call]:
    exponent = np.arange(0, rotary, 2, dtype=np.float32) / np.float32(rotary)
    inv_freq = (1.0 / np.float32(1e7) ** exponent).astype(np.float32)
    call = normal(rng, rows, 3, dim), np.array(positions, np.int64), Vector(inv_freq)
    return [call, (*call, 1.1386)]  # plain, and as YaRN scales what is rotated


SHAPES = ((1, 1), (3, 37), (130, 2048))
POSITIONS = ((0,), (1, 2, 3), (0, 1, 7, 4096, 70_000, 1_009_999))  # early and late ones
GATED = [(shape, top) for shape in SHAPES for top in (8.0, 200.0)]  # 200 overflows exponentials
# (op, tolerance, rows of arguments, name of a case, function that makes the calls)
CORE: tuple[tuple[Any, ...], ...] = (
    ("embed", EXACT, ((1, 1, 1), (7, 33, 37), (300, 500, 256)), "{} of {} rows of {}", _embed),
    ("linear", PRODUCT, ((1, 1, 1), (3, 37, 5), (1, 300, 257), (65, 320, 129), (2, 4096, 16)),
     "[{}, {}] by {} rows", linear),
    ("linears", PRODUCT, [(n, more) for n in (1, 5, 70) for more in ("", ", biases")],
     "{} rows{}", _linears),
    ("mlp", PRODUCT, ((1, 32, 64), (3, 37, 45), (70, 256, 512)), "[{}, {}], {} inside", _mlp),
    *((op, ELEMENTWISE, [(s, *row) for s in shapes for row in rows], name, partial(_norm, adds))
      for op, adds, shapes in (("rms_norm", 0, NORM_SHAPES), ("add_rms_norm", 1, NORM_SHAPES[:3]))
      for name, rows in NORMS.items()),
    *((op, ELEMENTWISE, [(s, f) for s in SHAPES for f in (0.125, 30.0)], "{} by {}", _by)
      for op in ("scale", "softcap")),
    ("add", ELEMENTWISE, [(s, what) for s in SHAPES for what in ("rows", "a row")], "{} and {}",
     _add),
    *((op, ELEMENTWISE, GATED, "{}, values to {}", partial(_gate, more))
      for op, more in (("sigmoid", 0), ("silu", 0), ("softplus", 0), ("swiglu", 1))),
    ("sigmoid_gate", ELEMENTWISE, (((1, 1, 1),), ((5, 3, 33),), ((130, 8, 64),)), "{}",
     _heads_gate),
    ("rope", ELEMENTWISE, [(rotary, dim, len(at), at[-1], at) for dim, rotary in
                           ((2, 2), (64, 64), (256, 64), (48, 10)) for at in POSITIONS],
     "{} of {} dims, {} rows to {}", _rope),
)  # fmt: skip


def core_cases() -> list[OpCase]:
    """Return the cases of all ops of the core."""
    return [case for row in CORE for case in each(*row)] + attention_cases()


Steps = tuple[Parts, ...]
STEPS: dict[str, Steps] = {  # name -> the steps that come one after the other
    "one token": (Parts((0, 1, 0)),),
    "a prompt, then tokens": (Parts((0, 37, 0)), Parts((0, 1, 37)), Parts((0, 1, 38))),
    "a prompt in chunks": (Parts((0, 64, 0)), Parts((0, 36, 64)), Parts((0, 3, 100))),
    "a ragged batch": (
        Parts((0, 5, 0), (1, 1, 0), (2, 70, 0)),
        Parts((0, 1, 5), (1, 1, 1), (2, 1, 70)),
        Parts((2, 2, 71), (0, 66, 6)),
    ),
}
LONG: dict[str, Steps] = {
    "a long context": (Parts((0, 1100, 0)), Parts((0, 1, 1100)), Parts((0, 5, 1101)))
}
WINDOWED: dict[str, Steps] = {  # longer than any window, and than what is kept of it
    "two prompts in chunks, then tokens": (
        Parts((0, 300, 0), (1, 3, 0)),
        Parts((1, 1, 3), (0, 290, 300)),
        *(Parts((0, 1, n), (1, 70, 70 * (n - 590) + 4)) for n in range(590, 594)),
    )
}
# heads, kv heads, head size, window
HEADS = (
    ((1, 1, 16, 0), STEPS),
    ((6, 2, 32, 0), STEPS),
    ((8, 1, 64, 0), STEPS),
    ((2, 2, 64, 0), LONG),
    ((6, 2, 32, 24), {"a ragged batch": STEPS["a ragged batch"]}),
    ((1, 1, 16, 1), {"a prompt in chunks": STEPS["a prompt in chunks"]}),
    ((2, 1, 32, 24), WINDOWED),
    ((1, 1, 32, 300), LONG),
)


def attention_cases(kv_type: KVType = "f32") -> list[OpCase]:
    """Return the cases of `attention` with grouped heads over a cache of this precision."""
    table = [
        (name, *shape, kv_type, parts)
        for shape, steps in HEADS
        for name, parts in steps.items()
        if kv_type != "q8" or shape[2] % 32 == 0
    ]
    name = "{}, {} heads over {} of {}, window {}, {} cache"
    return each("attention", KV_TOLERANCE[kv_type], table, name, _attention)


def _attention(
    _: str,
    heads: int,
    kv_heads: int,
    dim: int,
    window: int,
    kv_type: KVType,
    steps: Steps,
    rng: Generator,
) -> list[Call]:
    state, calls = KV(kv_heads, dim, kv_type, window), []
    for step in steps:
        rows = sum(count for _, count, _ in step.parts)
        q = normal(rng, rows, heads, dim, scale=2.0)
        k, v = normal(rng, rows, kv_heads, dim), normal(rng, rows, kv_heads, dim)
        calls.append((q, k, v, state, step, dim**-0.5))
    return calls
