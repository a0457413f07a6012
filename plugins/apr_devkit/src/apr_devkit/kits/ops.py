"""Comparison of ops: what is installed, weights in every format, and runs of cases.

A backend is compared with the product of the decoded weights, so the error of a format itself does
not count. It may round activations to 8 bits where weights have few, which is an NMSE of about
1e-4 a product; a systematic error shows in the gain. Knows backends by their protocol only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha1
from itertools import chain
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from apr_core.plugin import (
    CORE_OPS,
    DENSE,
    AprError,
    BlockLayout,
    HostMatrix,
    Layout,
    Numbers,
    Op,
    from_float32,
    layouts,
    to_float32,
)
from apr_core.runtime import Binder, Owned, Registry, make_step, state_makers
from apr_devkit.kits import cases
from apr_devkit.kits.cases import Call, Matrix, OpCase, Parts, Vector, flat, is_state, normal
from apr_devkit.kits.measures import Floats, Raw, difference

Array = Any
Upload = Callable[[NDArray[Any]], Array]
View = Callable[[Upload, NDArray[Any]], tuple[Array, Array]]  # -> (what was uploaded, the view)
Pack = Callable[[Matrix, str], Matrix]  # (weight, its name)

# weights in the formats of files

PACKED, PACKED_TWICE = 5e-4, 1.5e-3  # NMSE of one product, and of the three in `mlp`
HALVES = 1e-5  # of float formats: a backend may multiply in half precision
FLOAT_FORMATS, UNKNOWN = ("f16", "bf16"), "unknown"
MOVED = 1e-10  # `embed` only decodes
WIDE = ((1, 1024, 300), (11, 512, 37), (70, 1280, 64))  # rows, columns, rows of the weight
READERS = {"linears": "linear", "mlp": "linear"}  # composites, and the op that reads their weights
LEVELS = (
    -1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
)  # fmt: skip
F16 = (Numbers(0, "f16"),)
LAYOUTS = {  # name -> (layout, values of a block, bytes of a block)
    "4 bits in pairs, minima": (Layout(32, 4, 4, F16, (Numbers(2, "f16"),)), 32, 20),
    "4 bits in halves": (Layout(32, 2, 4, F16, order="halves", zero=8), 32, 18),
    "5 bits": (Layout(32, 4, 4, F16, order="halves", zero=16, high=20), 64, 44),
    "4 bits in large blocks": (Layout(64, 32, 4, F16), 1024, 544),
    "a codebook": (
        Layout(64, 12, 4, (Numbers(0, "u8"), Numbers(8, "f32", True)), codebook=LEVELS), 256, 140,
    ),
    "8 bits, signed": (Layout(128, 4, 8, (Numbers(0, "bf16"),), signed=True), 128, 132),
    "8 bits, minima": (Layout(32, 8, 8, F16, (Numbers(4, "f16"),), zero=100), 64, 72),
}  # fmt: skip


def in_format(
    format: str,
    encode: Callable[[Floats], Raw],
    decode: Callable[[Raw, int], Floats],
    layout: BlockLayout | None = None,
) -> Pack:
    """Return a function that packs weights by a quantizer, each once: checks share cases."""
    packed: dict[tuple[bytes, tuple[int, ...]], tuple[Raw, Floats]] = {}

    def pack(matrix: Matrix, name: str) -> Matrix:
        shape = matrix.values.shape
        key = (sha1(matrix.values.tobytes()).digest(), shape)
        if key not in packed:
            raw = encode(matrix.values.reshape(-1, shape[-1]))
            dense = HostMatrix(name, format, shape, raw, decode, layout).dense().reshape(shape)
            packed[key] = raw, dense
        raw, dense = packed[key]
        host = HostMatrix(name, format, shape, raw, decode, layout)
        return replace(matrix, values=dense, host=host)

    return pack


def in_floats(format: str) -> Pack:
    """Return a function that packs weights in f32, f16 or bf16."""

    def encode(rows: Floats) -> Raw:
        return from_float32(rows, format).reshape(len(rows), -1)

    def decode(raw: Raw, cols: int) -> Floats:
        return to_float32(raw.reshape(-1), format, (raw.shape[0], cols))

    return in_format(format, encode, decode)


def in_unknown() -> Pack:
    """Return a function that packs weights in a format no backend knows: big-endian floats."""

    def encode(rows: Floats) -> Raw:
        return rows.astype(">f4").view(np.uint8)

    def decode(raw: Raw, cols: int) -> Floats:
        return np.ascontiguousarray(raw).view(">f4").astype(np.float32)

    return in_format(UNKNOWN, encode, decode)


def in_layout(name: str) -> Pack:
    """Return a function that makes random blocks of a layout, without codec; values about 0.01."""
    layout, block, nbytes = LAYOUTS[name]

    def encode(rows: Floats) -> Raw:
        rng = np.random.default_rng(crc32(rows.tobytes()))  # other blocks for other weights
        raw = rng.integers(0, 256, (len(rows), -(-rows.shape[1] // block), nbytes), dtype=np.uint8)
        for part in (*layout.scale, *layout.minimum):
            shape = (*raw.shape[:2], 1 if part.per_block else block // layout.group)
            # either sign: otherwise a common part of all rows would dominate the rounding
            signs = rng.choice(np.array([-1, 1], np.float32), shape)
            numbers = signs * cases.uniform(rng, 0.005, 0.02, *shape)
            if part.dtype in ("f32", "f16", "bf16"):
                stored = from_float32(numbers, part.dtype).reshape(*raw.shape[:2], -1)
                raw[:, :, part.offset : part.offset + stored.shape[-1]] = stored
        return raw.reshape(len(rows), -1)

    decode, spec = partial(layouts.decode, *LAYOUTS[name]), BlockLayout(*LAYOUTS[name])
    return in_format(f"layout of {name}", encode, decode, spec)


def _packed(case: OpCase, pack: Pack, rng: np.random.Generator) -> list[Call]:
    def replaced(argument: Any, label: str) -> Any:
        if isinstance(argument, tuple):
            return tuple(replaced(each, f"{label}.{i}") for i, each in enumerate(argument))
        return pack(argument, label) if isinstance(argument, Matrix) else argument

    return [replaced(call, case.op) for call in case.make(rng)]


def mixed_cases(packs: Sequence[Pack]) -> list[OpCase]:
    """Return cases of `linears` with weights of three different formats, neighbours in `packs`."""

    def mixed(n: int, first: int, rng: np.random.Generator) -> list[Call]:
        three = [(packs[(first + i) % len(packs)], f"weight {i}") for i in range(3)]
        weights = tuple(pack(cases.weight(rng, 33, 512), label) for pack, label in three)
        return [(normal(rng, n, 512), weights)]

    table = [(n, first) for n in (1, 6) for first in range(len(packs))]
    return cases.each("linears", PACKED, table, "{} rows, formats from number {} on", mixed)


@dataclass(slots=True)
class Installed:
    """Ops that plugins bring, cases of all ops, formats by name."""

    ops: dict[str, Op] = field(default_factory=dict)
    cases: list[OpCase] = field(default_factory=cases.core_cases)
    formats: dict[str, Pack] = field(default_factory=dict)
    generic: set[str] = field(default_factory=set)  # formats that declare a layout
    missing: list[str] = field(default_factory=list)  # what is unusable, and why

    @classmethod
    def of(cls, registry: Registry) -> Installed:
        """Collect everything usable; unusable plugins are named in `missing`."""
        floats = {name: in_floats(name) for name in FLOAT_FORMATS}
        installed = cls(formats={**floats, UNKNOWN: in_unknown()})
        for owned in chain(*map(registry.declarations, ("attention", "mlp", "quantizer"))):
            try:
                installed._add(owned, registry)
            except AprError as error:
                installed.missing.append(f"{owned.qualified}: {error.message}")
        return installed

    def _add(self, owned: Owned, registry: Registry) -> None:
        d, load = owned.declaration, partial(registry.load_target, distribution=owned.distribution)
        if d.kind == "quantizer":
            codec = registry.make("quantizer", d.name)
            layout = BlockLayout(d.layout, d.block, d.bytes_per_block) if d.layout else None
            self.formats[d.name] = in_format(d.name, codec.encode, codec.decode, layout)
            self.generic |= {d.name} if layout else set()
            return
        self.ops |= {name: load(target) for name, target in d.brings}
        self.cases += load(d.cases)() if d.cases else []

    def op(self, name: str) -> Op | None:
        """Return an op by name, of a plugin or of the core."""
        return self.ops.get(name) or CORE_OPS.get(name)

    @property
    def packable(self) -> list[str]:
        """The ops that see packed weights."""
        return [name for name, op in (CORE_OPS | self.ops).items() if op.reads_weight]

    @property
    def readers(self) -> dict[str, str]:
        """The ops with packed weights in their cases, and those that read them."""
        return {**READERS, **{name: name for name in self.packable}}

    def packed_cases(self, format: str, pack: Pack, ops: Sequence[str]) -> list[OpCase]:
        """Return the cases of products and wider ones, with packed weights."""
        wide = cases.each("linear", PACKED, WIDE, "[{}, {}] by {} rows", cases.linear)
        once, twice = (HALVES, HALVES) if format in FLOAT_FORMATS else (PACKED, PACKED_TWICE)
        limits = {"embed": MOVED, "mlp": twice}
        return [
            OpCase(c.op, f"{c.name}, {format}", partial(_packed, c, pack), limits.get(c.op, once))
            for c in (*self.cases, *wide)
            if c.op in ops
        ]

    def layout_cases(self, ops: Sequence[str]) -> list[OpCase]:
        """Return the cases that read one weight in every one of `LAYOUTS`, and all in the first."""
        few = {name: [each for each in ops if each in self.packable] for name in LAYOUTS}
        few[next(iter(LAYOUTS))] = list(ops)
        made = [(name, in_layout(name), uses) for name, uses in few.items()]
        return [c for each in made for c in self.packed_cases(*each)]

    def cases_of(self, *ops: str) -> list[OpCase]:
        """Return the installed cases of these ops."""
        return [case for name in ops for case in self.cases if case.op == name]


# runs of cases


def whole(upload: Upload, values: NDArray[Any]) -> tuple[Array, Array]:
    """Return an uploaded array and the same as its view."""
    array = upload(values)
    return array, array


@dataclass(slots=True)
class Outcome:
    """The outcome of a run: one tuple of `results` a call, and the states' arrays."""

    results: list[tuple[NDArray[Any], ...]] = field(default_factory=list)
    states: dict[str, NDArray[Any]] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)  # names of arguments
    overwritten: list[str] = field(default_factory=list)  # names of results, by a later call

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all arrays by name."""
        results = {
            f"result {i} of call {n}": array
            for n, call in enumerate(self.results, 1)
            for i, array in enumerate(call, 1)
        }
        return results | {f"state {name}": array for name, array in self.states.items()}


class Runner:
    """Runs ops of one backend, as they are bound."""

    def __init__(self, binder: Binder) -> None:
        self.binder, self.backend = binder, binder.backend

    def run(self, case: OpCase, calls: Sequence[Call] | None = None, **how: Any) -> Outcome:
        """Run the case's calls, or the given ones.

        With `view`, activations are views; with `spoiled=True`, states are NaN where they may be.
        """
        return _Run(self, case.calls() if calls is None else calls, **how)(case.op)

    def weight(self, matrix: Matrix, name: str) -> Any:
        """Return the matrix on the backend, bound for its uses; dense if it is not packed."""
        host = matrix.host or in_floats(DENSE)(matrix, name).host
        assert host
        return self.binder.weight(host, matrix.uses)


class _Run:
    """One run. Converted arguments are stored by identity, so that calls share them."""

    def __init__(
        self, runner: Runner, calls: Sequence[Call], view: View = whole, spoiled: bool = False
    ) -> None:
        self.runner, self.backend = runner, runner.backend
        self.calls, self.view, self.spoiled = calls, view, spoiled
        self.given: list[tuple[str, NDArray[Any], Array]] = []
        self.ready: dict[int, Any] = {}
        self.states: list[tuple[Any, Any]] = []  # (maker, state)
        self.ends: dict[int, int] = {}
        for step in (a for a in flat(calls) if isinstance(a, Parts)):
            self.ends |= step.ends
        self.bystander = max(self.ends, default=0) + 1  # a slot that no call names

    def __call__(self, op: str) -> Outcome:
        function = getattr(self.runner.binder.ops, op)
        ready = [
            tuple(self._ready(a, f"argument {i}") for i, a in enumerate(call))
            for call in self.calls
        ]
        before = self._read(self.bystander, 1)
        returned, outcome = [], Outcome()
        for call in ready:
            arrays = function(*call)
            returned.append(arrays if isinstance(arrays, tuple) else (arrays,))
            outcome.results.append(tuple(map(self._copy, returned[-1])))
        # results are still referenced: their memory must not be reused
        after = Outcome([tuple(map(self._copy, arrays)) for arrays in returned])
        outcome.overwritten = different(after, outcome)
        outcome.changed = [
            label
            for label, values, array in self.given
            if not np.array_equal(self.backend.download(array), values, equal_nan=True)
        ] + [
            f"{name.partition(' of ')[0].removeprefix('state ')} of a slot that was not in the step"
            for name in different(Outcome([], self._read(self.bystander, 1)), Outcome([], before))
        ]
        for slot, length in self.ends.items():
            outcome.states |= self._read(slot, length)
        return outcome

    def _copy(self, array: Array) -> NDArray[Any]:
        return np.array(self.backend.download(array))

    def _read(self, slot: int, length: int) -> dict[str, NDArray[Any]]:
        """Return a slot's arrays in all states, as far as `length` tokens have filled them."""
        return {
            f"{name} of slot {slot}": self._copy(array)
            for maker, state in self.states
            for name, array in maker.read(state, slot, length).items()
        }

    def _ready(self, argument: Any, label: str) -> Any:
        if isinstance(argument, tuple):
            return tuple(self._ready(each, label) for each in argument)
        if id(argument) not in self.ready:
            self.ready[id(argument)] = self._make(argument, label)
        return self.ready[id(argument)]

    def _make(self, argument: Any, label: str) -> Any:
        if isinstance(argument, Matrix):
            return self.runner.weight(argument, f"matrix {len(self.ready)}")
        if isinstance(argument, Vector):
            return self._uploaded(argument.values, label, whole)
        if isinstance(argument, np.ndarray):
            is_activation = argument.dtype == np.float32 and argument.ndim > 1
            return self._uploaded(argument, label, self.view if is_activation else whole)
        if isinstance(argument, Parts):
            return make_step(argument.parts, self.backend.upload)
        return self._state(argument) if is_state(argument) else argument

    def _uploaded(self, values: NDArray[Any], label: str, view: View) -> Array:
        uploaded, array = view(self.backend.upload, values)
        self.given.append((label, self._copy(uploaded), uploaded))
        return array

    def _state(self, maker: Any) -> Any:
        state = maker.new(state_makers(self.backend, getattr(maker, "dtype", "f32")))
        for slot in (*self.ends, self.bystander):
            state.open(slot)
            if self.spoiled:
                maker.spoil(state, slot)
        self.states.append((maker, state))
        return state


def differences(actual: Outcome, expected: Outcome, tolerance: float) -> list[str]:
    """Return what is wrong with an outcome, in words; [] if all is within the tolerance."""
    counts = [[len(call) for call in each.results] for each in (actual, expected)]
    assert counts[0] == counts[1], f"returns {counts[0]} arrays, the reference {counts[1]}"
    wanted = expected.arrays()
    problems = ((n, difference(a, wanted[n], tolerance)) for n, a in actual.arrays().items())
    return [f"{name} {problem}" for name, problem in problems if problem]


def different(actual: Outcome, expected: Outcome) -> list[str]:
    """Return the names of the arrays that differ in any bit."""
    wanted = expected.arrays()
    return [n for n, array in actual.arrays().items() if array.tobytes() != wanted[n].tobytes()]


def shares(calls: Sequence[Call], together: Outcome) -> Iterator[tuple[str, list[Call], Outcome]]:
    """Yield parts of calls that can run alone, and their outcome in a whole run.

    Parts are those of one slot where there is a step, else a middle and the last row.
    """
    for name, slot, spans in _spans(calls):
        alone = [tuple(_cut(a, span, slot) for a in calls[i]) for i, span in spans.items()]
        results = [tuple(a[span] for a in together.results[i]) for i, span in spans.items()]
        states = {k: v for k, v in together.states.items() if k.endswith(f" of slot {slot}")}
        yield name, alone, Outcome(results, states)


def _spans(calls: Sequence[Call]) -> Iterator[tuple[str, int | None, dict[int, slice]]]:
    """Yield (name, slot, {number of a call: rows}) of parts of calls."""
    steps = {i: a.rows for i, call in enumerate(calls) for a in call if isinstance(a, Parts)}
    slots = dict.fromkeys(slot for rows in steps.values() for slot in rows)
    for slot in slots if len(slots) > 1 else ():
        yield f"slot {slot}", slot, {i: rows[slot] for i, rows in steps.items() if slot in rows}
    counts = [next(len(a) for a in call if isinstance(a, np.ndarray)) for call in calls]
    for name, at in (("middle", 0.5), ("last", 1.0)):
        if not slots and min(counts) > 1:
            starts = [int((n - 1) * at) for n in counts]
            yield f"the {name} row", None, {i: slice(s, s + 1) for i, s in enumerate(starts)}


def _cut(argument: Any, span: slice, slot: int | None) -> Any:
    if isinstance(argument, Parts):
        return Parts(next(p for p in argument.parts if p[0] == slot))
    return argument[span] if isinstance(argument, np.ndarray) else argument
