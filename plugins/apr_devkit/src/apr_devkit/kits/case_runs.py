"""Runs a case on a backend, the op bound as a load binds it, and says how results differ.

Knows backends by their protocol only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.format.values import to_float32
from apr_core.model.state import state_makers
from apr_core.model.step import make_step
from apr_core.ops import Op
from apr_core.ops.binding import DENSE, BackendPlugin, Binder, ForeignKernel, HostMatrix, Weight
from apr_devkit.kits.cases import Call, Matrix, OpCase, Parts, Vector, flat, gain, is_state, nmse

Array = Any
Upload = Callable[[NDArray[Any]], Array]
View = Callable[[Upload, NDArray[Any]], tuple[Array, Array]]  # -> (what was uploaded, the view)
ENOUGH = 256  # values; a gain is measured over as many
GAIN = 6e-3  # what a gain may differ from 1: a codebook's levels may be rounded to 8 bits
FEW, LENIENCE = 16, 10  # values that may all happen to be small, so that errors look large


def whole(upload: Upload, values: NDArray[Any]) -> tuple[Array, Array]:
    """An array of its own."""
    array = upload(values)
    return array, array


def half_of_heads(upload: Upload, values: NDArray[Any]) -> tuple[Array, Array]:
    """The second half of the last axis of an array that is NaN elsewhere."""
    wide = upload(np.concatenate([np.full_like(values, np.nan), values], axis=-1))
    return wide, wide[..., values.shape[-1] :]


def some_columns(upload: Upload, values: NDArray[Any]) -> tuple[Array, Array]:
    """Columns from the middle of wider rows [T, 3n], reshaped, that are NaN elsewhere."""
    rows = values.reshape(values.shape[0], -1)
    n, beside = rows.shape[1], np.full_like(rows, np.nan)
    wide = upload(np.concatenate([beside, rows, beside], axis=1))
    return wide, wide[:, n : 2 * n].reshape(*values.shape)


@dataclass(slots=True)
class Outcome:
    """What a run left. `changed` names arguments that no longer hold what they held, `overwritten`
    results that a later call of the run has changed."""

    results: list[tuple[NDArray[Any], ...]] = field(default_factory=list)  # one tuple a call
    states: dict[str, NDArray[Any]] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    overwritten: list[str] = field(default_factory=list)


class Runner:
    """Ops of one backend. `ops` are those that plugins bring, `foreign` others' kernels."""

    def __init__(
        self,
        backend: BackendPlugin,
        ops: Mapping[str, Op],
        foreign: Mapping[tuple[str, str], ForeignKernel] | None = None,
    ) -> None:
        self.backend = backend
        self.binder = Binder(backend, ops, foreign)

    def run(
        self, case: OpCase, calls: Sequence[Call] | None = None, view: View = whole,
        spoiled: bool = False,
    ) -> Outcome:  # fmt: skip
        """Run the case's calls, or the given ones. `spoiled` states are NaN where they may be."""
        return _Run(self, case.calls() if calls is None else calls, view, spoiled)(case.op)

    def bound(self, op: str) -> Callable[..., Any]:
        """The function the op is bound to."""
        function: Callable[..., Any] = getattr(self.binder.bind_ops([op]), op)
        return function

    def weight(self, matrix: Matrix, name: str) -> Weight:
        """The matrix on the backend, bound for its uses."""
        return self.binder.weight(matrix.host or dense_matrix(matrix, name), matrix.uses)


def dense_matrix(matrix: Matrix, name: str) -> HostMatrix:
    """A matrix as a file of f32 has it."""
    values = np.ascontiguousarray(matrix.values)
    raw = values.reshape(-1).view(np.uint8).reshape(values.shape[0], -1)
    return HostMatrix(name, DENSE, values.shape, raw, _float_rows)


def _float_rows(raw: NDArray[np.uint8], cols: int) -> NDArray[np.float32]:
    return to_float32(raw.reshape(-1), DENSE, (raw.shape[0], cols))


class _Run:
    """One run: what its arguments became, by identity, so that calls share them."""

    def __init__(
        self, runner: Runner, calls: Sequence[Call], view: View, spoiled: bool
    ) -> None:  # fmt: skip
        self.runner, self.calls, self.view, self.spoiled = runner, calls, view, spoiled
        self.backend = runner.backend
        self.given: list[tuple[str, NDArray[Any], Array]] = []
        self.made: dict[int, Any] = {}
        self.states: list[tuple[Any, Any]] = []  # (maker, state)
        self.ends: dict[int, int] = {}
        for argument in flat(calls):
            if isinstance(argument, Parts):
                self.ends |= argument.ends
        self.bystander = max(self.ends, default=0) + 1  # a slot that no call names

    def __call__(self, op: str) -> Outcome:
        outcome, function = Outcome(), self.runner.bound(op)
        ready = [tuple(self._made(a, f"argument {i}") for i, a in enumerate(call))
                 for call in self.calls]  # fmt: skip
        before = [self._read(maker, state, self.bystander, 1) for maker, state in self.states]
        kept = []  # as the op returned them, so that nobody else may have their memory
        for call in ready:
            found = function(*call)
            kept.append(found if isinstance(found, tuple) else (found,))
            outcome.results.append(self._copies(kept[-1]))
        outcome.overwritten = [
            name for name, now, then in _results([self._copies(k) for k in kept], outcome.results)
            if now.tobytes() != then.tobytes()
        ]  # fmt: skip
        outcome.changed = [
            label for label, values, array in self.given
            if not np.array_equal(self.backend.download(array), values, equal_nan=True)
        ]  # fmt: skip
        for (maker, state), old in zip(self.states, before, strict=True):
            new = self._read(maker, state, self.bystander, 1)
            changed = [n for n in old if not np.array_equal(old[n], new[n], equal_nan=True)]
            outcome.changed += [f"{name} of a slot that was not in the step" for name in changed]
        outcome.states = self._after()
        return outcome

    def _copies(self, arrays: tuple[Array, ...]) -> tuple[NDArray[Any], ...]:
        return tuple(np.array(self.backend.download(array)) for array in arrays)

    def _made(self, argument: Any, label: str) -> Any:
        if isinstance(argument, tuple):
            return tuple(self._made(each, label) for each in argument)
        if id(argument) not in self.made:
            self.made[id(argument)] = self._make(argument, label)
        return self.made[id(argument)]

    def _make(self, argument: Any, label: str) -> Any:
        if isinstance(argument, Matrix):
            return self.runner.weight(argument, f"matrix {len(self.made)}")
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
        self.given.append((label, np.array(self.backend.download(uploaded)), uploaded))
        return array

    def _state(self, maker: Any) -> Any:
        state = maker.new(state_makers(self.backend, getattr(maker, "dtype", "f32")))
        for slot in (*self.ends, self.bystander):
            state.open(slot)
            if self.spoiled:
                maker.spoil(state, slot)
        self.states.append((maker, state))
        return state

    def _read(self, maker: Any, state: Any, slot: int, length: int) -> dict[str, NDArray[Any]]:
        return {name: np.array(self.backend.download(array))
                for name, array in maker.read(state, slot, length).items()}  # fmt: skip

    def _after(self) -> dict[str, NDArray[Any]]:
        return {
            f"state {name} of slot {slot}": array
            for maker, state in self.states
            for slot, length in self.ends.items()
            for name, array in self._read(maker, state, slot, length).items()
        }


def differences(found: Outcome, expected: Outcome, tolerance: float) -> list[str]:
    """What is wrong with `found`, in words. Empty if all is within the tolerance."""
    pairs = list(_results(found.results, expected.results))
    pairs += [(name, array, expected.states[name]) for name, array in found.states.items()]
    return [f"{name} {complaint}" for name, actual, wanted in pairs
            if (complaint := difference(actual, wanted, tolerance))]  # fmt: skip


def _results(
    found: Sequence[tuple[Any, ...]], expected: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
    for number, (one, other) in enumerate(zip(found, expected, strict=True), 1):
        assert len(one) == len(other), f"returns {len(one)} arrays, the reference {len(other)}"
        for i, (actual, wanted) in enumerate(zip(one, other, strict=True), 1):
            yield f"result {i} of call {number}", actual, wanted


def difference(
    actual: NDArray[Any], expected: NDArray[Any], tolerance: float, off: float = GAIN
) -> str:
    """How an array differs from the expected one, or an empty string.

    `tolerance` is for its NMSE, `off` is what its gain may differ from 1.
    """
    if actual.shape != expected.shape:
        return f"has shape {list(actual.shape)}, expected {list(expected.shape)}"
    if actual.dtype != expected.dtype:
        return f"is {actual.dtype}, expected {expected.dtype}"
    if not np.isfinite(actual).all():
        return f"has {int((~np.isfinite(actual)).sum())} of {actual.size} values NaN or infinite"
    error = nmse(actual, expected)
    if error > tolerance * (LENIENCE if expected.size < FEW else 1):
        return f"has an NMSE of {error:.1e}, at most {tolerance:.1e} is allowed"
    factor = gain(actual, expected)
    if expected.size >= ENOUGH and abs(factor - 1) > off:
        return f"is {factor:.4f} times the expected values, beside rounding"
    return ""


def same_bits(found: Outcome, expected: Outcome) -> list[str]:
    """Which arrays of two runs differ in any bit."""
    pairs = list(_results(found.results, expected.results))
    pairs += [(name, array, expected.states[name]) for name, array in found.states.items()]
    return [f"{name} differs" for name, one, other in pairs if one.tobytes() != other.tobytes()]


def with_others(calls: Sequence[Call]) -> list[Call]:
    """The calls, then the same with other activations and new states, but the same weights."""
    states = {id(a): copy(a) for a in flat(calls) if is_state(a)}
    return [*calls, *(tuple(_other(a, states) for a in call) for call in calls)]


def _other(argument: Any, states: Mapping[int, Any]) -> Any:
    """Activations back to front: still values that the op is meant for."""
    if isinstance(argument, tuple):
        return tuple(_other(each, states) for each in argument)
    if isinstance(argument, np.ndarray):
        return np.flip(argument).copy()
    return states.get(id(argument), argument)


def alone(calls: Sequence[Call]) -> Iterator[tuple[str, list[Call], Callable[[Outcome], Outcome]]]:
    """Parts of calls that a backend may be given by themselves, and what they leave of a whole run.

    Those of one slot where a step is among the arguments, else single rows: the first, one from the
    middle and the last.
    """
    slots = {slot: None for a in flat(calls) if isinstance(a, Parts) for slot, _, _ in a.parts}
    if slots:
        for slot in slots if len(slots) > 1 else ():
            spans = [_span(call, slot) for call in calls]
            yield f"slot {slot}", *_cut(calls, spans, f"slot {slot}", slot)
        return
    rows = [_rows(call) for call in calls]
    for name, at in (("first", 0.0), ("middle", 0.5), ("last", 1.0)):
        spans = [slice(i := int((n - 1) * at), i + 1) for n in rows]
        if min(rows) > 1:
            yield f"the {name} row", *_cut(calls, spans, None, 0)


def _rows(call: Call) -> int:
    return next(len(a) for a in call if isinstance(a, np.ndarray))


def _span(call: Call, slot: int) -> slice | None:
    """The rows of a slot in a call; None if it has none."""
    start = 0
    for number, count, _ in next(a for a in call if isinstance(a, Parts)).parts:
        if number == slot:
            return slice(start, start + count)
        start += count
    return None


def _cut(
    calls: Sequence[Call], spans: Sequence[slice | None], state: str | None, slot: int
) -> tuple[list[Call], Callable[[Outcome], Outcome]]:
    rows = [(call, span) for call, span in zip(calls, spans, strict=True) if span]
    kept = [tuple(_part(a, span, slot) for a in call) for call, span in rows]
    return kept, partial(_only, spans=spans, state=state)


def _part(argument: Any, span: slice, slot: int) -> Any:
    if isinstance(argument, Parts):
        return Parts(next(p for p in argument.parts if p[0] == slot))
    return argument[span] if isinstance(argument, np.ndarray) else argument


def _only(outcome: Outcome, spans: Sequence[slice | None], state: str | None) -> Outcome:
    """The part of an outcome that those rows and that state are."""
    results = [tuple(a[span] for a in found)
               for found, span in zip(outcome.results, spans, strict=True) if span]  # fmt: skip
    states = {name: a for name, a in outcome.states.items() if state and name.endswith(state)}
    return Outcome(results, states)
