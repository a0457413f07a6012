"""Kits of kernels, compared with the references on NumPy: one kernel, or all that a backend has."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from apr_core.plugin import DENSE, GENERIC, BackendError, BackendPlugin, BackendUnavailable, Kernel
from apr_core.runtime import (
    Binder,
    ForeignKernel,
    PluginNotFound,
    ReferenceBackend,
    foreign_kernels,
    make_backend,
    resolve,
)
from apr_devkit.kits import ops
from apr_devkit.kits.cases import Matrix, OpCase, flat, with_others
from apr_devkit.kits.checks import PluginConformance, no, shared, skip
from apr_devkit.kits.ops import Array, Installed, Outcome, Runner, Upload

NEVER = "is never looked up: only {} have formats, others use '*'"


@contextmanager
def nan_memory(device: BackendPlugin) -> Iterator[None]:
    """Fill what `empty` and `empty_like` of the array libraries return with NaN, in this context.

    A kernel that leaves part of its result unwritten then returns NaN where a reference does not.
    """
    library = type(device.upload(np.zeros(4, np.float32))).__module__.partition(".")[0]
    owners = {id(each): each for each in (np, sys.modules[library], device.xp)}.values()
    places = [(o, name) for o in owners for name in ("empty", "empty_like") if hasattr(o, name)]
    with ExitStack() as stack:
        for owner, name in places:
            filled = partial(_filled, getattr(owner, name))
            with suppress(AttributeError, TypeError):  # a namespace that is read-only
                stack.enter_context(patch.object(owner, name, filled))
        yield


def _filled(make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    array = make(*args, **options)
    with suppress(TypeError, ValueError, RuntimeError):  # booleans, or no device
        array[...] = np.nan if "float" in str(array.dtype) else 99
    return array


def half_of_heads(upload: Upload, values: NDArray[Any]) -> tuple[Array, Array]:
    """Return an upload that is half NaN, and the half of its last axis with the values."""
    wide = upload(np.concatenate([np.full_like(values, np.nan), values], axis=-1))
    return wide, wide[..., values.shape[-1] :]


def some_columns(upload: Upload, values: NDArray[Any]) -> tuple[Array, Array]:
    """Return an upload [T, 3n] with NaN at both sides, and its middle columns, reshaped."""
    rows = values.reshape(values.shape[0], -1)
    n, beside = rows.shape[1], np.full_like(rows, np.nan)
    wide = upload(np.concatenate([beside, rows, beside], axis=1))
    return wide, wide[:, n : 2 * n].reshape(*values.shape)


class DeviceKit(PluginConformance):
    """A kit that runs something on a backend."""

    kind = "backend"
    backend: str = ""

    @shared
    def device(self) -> BackendPlugin:
        """Return the checked backend."""
        return self.make_device(self.name)

    def make_device(self, name: str, threads: int | None = None) -> BackendPlugin:
        """Return a new backend. Skips where it is missing or cannot run."""
        try:
            return make_backend(self.registry, name, threads)
        except (BackendUnavailable, PluginNotFound) as error:
            skip(error.message)


class OpComparison(DeviceKit):
    """Runs ops on the checked backend, and compares with the reference bodies."""

    @shared
    def runner(self) -> Runner:
        """Return a runner of ops on the checked backend."""
        return Runner(Binder(self.device, self.installed.ops))

    @shared
    def installed(self) -> Installed:
        """Return the installed ops, cases and formats."""
        return Installed.of(self.registry)

    @shared
    def references(self) -> Runner:
        """Return a runner of the reference bodies on NumPy."""
        return Runner(Binder(ReferenceBackend(), self.installed.ops))


class CaseChecks(OpComparison):
    """Checks that run a list of cases."""

    @shared
    def cases(self) -> Sequence[OpCase]:
        """Return the cases of all checks."""
        raise NotImplementedError

    @property
    def viewed_cases(self) -> Sequence[OpCase]:
        """The cases whose activations may be views."""
        return self.cases

    def expected(self, case: OpCase) -> Outcome:
        """Return the references' outcome of a case."""
        return self.once(f"expected {id(case)}", lambda: self.references.run(case))

    def outcome(self, case: OpCase) -> Outcome:
        """Return the checked backend's outcome of a case."""
        return self.once(f"outcome {id(case)}", lambda: self.runner.run(case))

    def compare(self, cases: Iterable[OpCase], runner: Runner | None = None, **how: Any) -> None:
        """Fail unless all cases, run with `how` (see `Runner.run`), match the references."""
        problems = [p for c in cases for p in self.problems(c, self.expected(c), runner, **how)]
        no(problems)

    def problems(
        self, case: OpCase, expected: Outcome, runner: Runner | None = None, **how: Any
    ) -> list[str]:
        """Return what is wrong with a case that is run with `how`, in words."""
        stored, runner = not (runner or how), runner or self.runner
        try:
            outcome = self.outcome(case) if stored else runner.run(case, **how)
            wrong = ops.differences(outcome, expected, case.tolerance)
        except AssertionError as error:
            return [f"{case}: {error}"]
        except Exception as error:
            return [f"{case}: raises {type(error).__name__}: {error}"]
        later = (f"{name} is overwritten by a later call" for name in outcome.overwritten)
        return [
            *(f"{case}: {each}" for each in (*wrong, *later)),
            *(f"{case} changes {what}" for what in outcome.changed),
        ]

    def test_views_are_read_where_they_are(self) -> None:
        """Activations may be views of wider arrays, as families slice them."""
        for view in (some_columns, half_of_heads):
            self.compare(self.viewed_cases, view=view)

    def test_other_memory_neither_changes_nor_shows(self) -> None:
        """No op changes arguments, other slots or earlier results, nor shows the NaN of memory."""
        runs = [(case, with_others(case.calls())) for case in self.cases]
        expected = [self.references.run(case, calls) for case, calls in runs]
        problems = []
        with nan_memory(self.device):
            for (case, calls), wanted in zip(runs, expected, strict=True):
                problems += self.problems(case, wanted, calls=calls, spoiled=True)
        no(problems)

    def test_rows_alone_equal_rows_in_a_batch(self) -> None:
        """A row or sequence gives alone what it gives in a batch: to the bit, if so claimed."""
        problems = []
        for case in self.cases:
            calls, together = case.calls(), self.outcome(case)
            for name, part, expected in ops.shares(calls, together):
                alone = self.runner.run(case, part)
                if self.device.bitwise_rows:
                    wrong = [f"{array} differs" for array in ops.different(alone, expected)]
                else:  # both may be off, in either direction
                    wrong = ops.differences(alone, expected, 4 * case.tolerance)
                problems += [f"{case}, {name} alone: {problem}" for problem in wrong]
        no(problems)


class KernelConformance(CaseChecks):
    """Checks of one kernel, bound for its backend as a load binds it.

        class TestMine(KernelConformance):
            kernel = "npu/swiglu"

    The cases are the op's, with weights of its format; see `BackendConformance`.
    """

    kind = "kernel"
    kernel: str = ""

    @shared
    def device(self) -> BackendPlugin:
        """Return the backend that the kernel is for."""
        return self.make_device(self.declaration.backend)

    @property
    def key(self) -> tuple[str, str]:
        """The kernel's op and weight format."""
        return self.declaration.op, self.declaration.weight

    @shared
    def runner(self) -> Runner:
        """Return a runner on the backend with this kernel and no other distribution's."""
        foreign = ForeignKernel(self.declaration.target, self.owned.distribution)
        return Runner(Binder(self.device, self.installed.ops, {self.key: foreign}))

    @shared
    def cases(self) -> Sequence[OpCase]:
        """Return the cases of the kernel's op, with weights of its format."""
        (op, format), formats = self.key, self.installed.formats
        if self.installed.op(op) is None:
            skip(f"no plugin is installed that brings the op {op!r}")
        readers, packed_cases = self.installed.readers, self.installed.packed_cases
        uses = [each for each, read_by in readers.items() if read_by == op] or [op]
        dense = self.installed.cases_of(*uses)
        if op not in self.installed.packable or format == DENSE:
            return dense
        if format == GENERIC:
            return self.installed.layout_cases(uses)
        wanted = list(formats) if format == "*" else [format]
        if not set(wanted) <= set(formats):
            skip(f"no quantizer is installed for {format!r}")
        packed = [c for name in wanted for c in packed_cases(name, formats[name], uses)]
        return packed + (dense if format == "*" else [])

    def test_declaration_can_be_looked_up(self) -> None:
        """It names a backend, an op and a format that are looked up, and nobody else brings it."""
        declared: Kernel = self.declaration
        for field in ("backend", "op"):
            assert getattr(declared, field), f"kernel {self.name!r} names no {field}"
        packable = self.installed.packable
        used = declared.weight == "*" or declared.op in packable
        assert used, f"{declared.op}[{declared.weight}] {NEVER.format(' and '.join(packable))}"
        known = foreign_kernels(self.registry, declared.backend)
        assert self.key in known, f"{self.key} is not among the kernels {sorted(known)}"

    def test_it_agrees_with_the_reference(self) -> None:
        """The op is bound to it, gives what its reference body gives, and leaves the same state."""
        self.compare(self.cases)
        bound, d = self.runner.binder.report.bound, self.declaration
        owners = {b.distribution for b in bound.values() if (b.target, b.op) == (d.target, d.op)}
        said = [f"{b.key}: {b.target} ({b.distribution})" for b in bound.values()]
        assert owners == {self.owned.distribution}, f"{d.op}[{d.weight}] is bound to {said}"


class OpChecks(CaseChecks):
    """Checks of a backend's kernel table, and of every op on its arrays."""

    @shared
    def packed(self) -> list[OpCase]:
        """Return cases of every packed format in the kernel table that can be made here."""
        cases, several, installed = [], [], self.installed
        for name, pack in installed.formats.items():
            wanted = {name, "*", *([GENERIC] if name in installed.generic else [])}
            uses = self._reading(wanted)
            cases += installed.packed_cases(name, pack, uses)
            several += [pack] if "linears" in uses else []
        return cases + ops.mixed_cases(several) + installed.layout_cases(self._reading({GENERIC}))

    def _reading(self, formats: set[str]) -> list[str]:
        """Return the ops for which the kernel table claims one of these formats."""
        claimed = {op for op, format in self.device.kernels if format in formats}
        return [op for op, reader in self.installed.readers.items() if reader in claimed]

    @property
    def viewed_cases(self) -> Sequence[OpCase]:
        """The installed cases, without packed weights."""
        return self.installed.cases

    @shared
    def cases(self) -> Sequence[OpCase]:
        """Return the installed cases, also with packed weights."""
        return [*self.installed.cases, *self.packed]

    def test_ops_agree_with_their_references(self) -> None:
        """Every op gives what its reference body gives, and leaves the same state."""
        self.compare(self.installed.cases)

    def test_packed_weights_are_read_as_decoded(self) -> None:
        """Products with weights of each format and layout are those with the decoded ones."""
        self.compare(self.packed or skip("its kernel table claims no packed format that is here"))

    def test_references_run_on_its_arrays(self) -> None:
        """Every reference body runs on its array namespace: ops of the future have no kernel."""
        device = copy(self.device)
        device.kernels = {}
        cases = self.installed.cases
        if self.device.kernels:  # dense weights may be laid out for its kernels
            cases = [c for c in cases if not any(isinstance(a, Matrix) for a in flat(c.calls()))]
        self.compare(cases, Runner(Binder(device, self.installed.ops)))

    def test_kernel_table_can_be_loaded(self) -> None:
        """Every key can be looked up and every target is a function that can be imported."""
        kernels, packable = self.device.kernels, self.installed.packable
        assert isinstance(kernels, Mapping), f"kernels is {type(kernels).__name__}, not a mapping"
        problems = []
        for (op, format), target in kernels.items():
            if format != "*" and op not in packable:
                problems.append(f"({op!r}, {format!r}) {NEVER.format(' and '.join(packable))}")
            try:
                if not callable(resolve(target)):
                    problems.append(f"({op!r}, {format!r}): {target} cannot be called")
            except (BackendError, ValueError) as error:
                problems.append(f"({op!r}, {format!r}): {error}")
        no(problems)

    def test_every_kernel_is_compared(self) -> None:
        """There are cases, and where needed an encoder, for every kernel."""
        missing = []
        formats = {"*", DENSE, GENERIC, *self.installed.formats}
        for op, format in self.device.kernels:
            if self.installed.op(op) is None:
                missing.append(f"no plugin is installed that brings the op {op!r}")
            elif not self.installed.cases_of(op):
                missing.append(f"the op {op!r} has no cases")
            elif format not in formats:
                missing.append(f"no quantizer is installed for {op}[{format}]")
        if missing:
            skip("; ".join(dict.fromkeys([*missing, *self.installed.missing])))
