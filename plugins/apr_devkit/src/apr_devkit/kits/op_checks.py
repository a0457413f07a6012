"""Checks of a backend's ops: every case of every op, against the reference bodies on NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import import_module
from typing import Any, ClassVar, cast

import numpy as np

from apr_core.ops.binding import DENSE, GENERIC, BackendPlugin, Binder
from apr_devkit.kits.case_runs import (
    Outcome,
    Runner,
    alone,
    differences,
    half_of_heads,
    same_bits,
    some_columns,
    whole,
    with_others,
)
from apr_devkit.kits.cases import Matrix, OpCase, flat
from apr_devkit.kits.checks import skip
from apr_devkit.kits.device import DeviceKit
from apr_devkit.kits.installed import PACKABLE, Installed, reader
from apr_devkit.kits.packed_cases import LAYOUTS, NAMES, in_layout, mixed_cases, packed_cases
from apr_devkit.kits.plugin import PluginConformance
from apr_devkit.kits.poison import poisoned, spoil_free_memory
from apr_devkit.kits.reference_backend import ReferenceBackend

SHOWN = 4  # complaints of one check


class OpComparison(PluginConformance):
    """What the kits of backends and kernels share: cases run, and compared with references."""

    def make_runner(self) -> Runner:
        """What is checked, ready to run cases. Skips where it cannot run."""
        raise NotImplementedError

    @property
    def runner(self) -> Runner:
        """The same, made once."""
        return self.kept("runner", self.make_runner)

    @property
    def installed(self) -> Installed:
        """Ops, cases and formats to check with."""
        return self.kept("installed", lambda: Installed.of(self.registry))

    @property
    def references(self) -> Runner:
        """The reference bodies on NumPy."""
        return self.kept("references", lambda: Runner(ReferenceBackend(), self.installed.ops))

    def expected(self, case: OpCase) -> Outcome:
        """What the references give on NumPy."""
        return self.kept(f"expected {id(case)}", lambda: self.references.run(case))

    def outcome(self, case: OpCase) -> Outcome:
        """What the checked backend gives."""
        return self.kept(f"found {id(case)}", lambda: self.runner.run(case))

    def complaints(self, case: OpCase, run: Callable[[], Outcome]) -> list[str]:
        """How the outcome of `run` differs from what is expected of the case."""
        expected = self.expected(case)
        try:
            return differences(run(), expected, case.tolerance)
        except AssertionError as error:
            return [str(error)]
        except Exception as error:
            return [f"raises {type(error).__name__}: {error}"]

    def compare(self, cases: Iterable[OpCase], **how: Any) -> None:
        """Fail unless all cases, run `how` (see `Runner.run`), agree with the references."""
        runner = self.runner
        problems = []
        for case in cases:
            run = partial(runner.run, case, **how) if how else partial(self.outcome, case)
            problems += [f"{case}: {complaint}" for complaint in self.complaints(case, run)]
        no(problems)

    def assert_results_stay(self, cases: Iterable[OpCase]) -> None:
        """Fail if a later call of an op, with the same weights, changes an earlier result."""
        problems = []
        for case in cases:
            found = self.runner.run(case, with_others(case.calls())).overwritten
            problems += [f"{case}: {what} is overwritten by a later call" for what in found]
        no(problems)

    def compare_rows_alone(self, cases: Iterable[OpCase], bitwise: bool) -> None:
        """Fail unless rows and slots give by themselves what they give in a batch."""
        problems = []
        for case in cases:
            together = self.outcome(case)
            for name, calls, part in alone(case.calls()):
                found, expected = self.runner.run(case, calls), part(together)
                if bitwise:
                    wrong = same_bits(found, expected)
                else:  # both may be off, to either side
                    wrong = differences(found, expected, 4 * case.tolerance)
                problems += [f"{case}, {name} alone: {complaint}" for complaint in wrong]
        no(problems)


def no(problems: list[str]) -> None:
    """Fail with the first of these complaints, if there are any."""
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    assert not problems, "; ".join(problems[:SHOWN]) + more


class DeviceComparison(OpComparison, DeviceKit):
    """The same for a backend."""

    def make_runner(self) -> Runner:
        """The backend with its own kernels and nobody else's."""
        return Runner(self.device, self.installed.ops)


class OpChecks(DeviceComparison):
    """The checks themselves."""

    def claimed(self) -> dict[str, tuple[str, ...]]:
        """{format: ops that read it packed}, of the formats that can be made here."""
        kernels = self.device.kernels
        found = {
            name: tuple(op for op in NAMES
                        if any(key in kernels for key in format.keys(reader(op), name)))
            for name, format in self.installed.formats.items()
        }  # fmt: skip
        return {name: ops for name, ops in found.items() if ops}

    @property
    def packed(self) -> list[OpCase]:
        """Cases of every packed format that the kernel table claims and that can be made here."""
        formats = self.installed.formats
        claimed = self.claimed()
        cases = [c for name, ops in claimed.items()
                 for c in packed_cases(name, formats[name].pack, ops)]  # fmt: skip
        several = [formats[name].pack for name, ops in claimed.items() if "linears" in ops]
        return self.kept("packed", lambda: cases + mixed_cases(several))

    @property
    def generic(self) -> list[OpCase]:
        """Cases of declared layouts; none without a kernel for them."""
        ops = tuple(op for op in NAMES if (reader(op), GENERIC) in self.device.kernels)
        return self.kept("generic", lambda: [
            case for name in LAYOUTS for case in packed_cases(name, in_layout(name), ops)
        ])  # fmt: skip

    def test_ops_agree_with_their_references(self) -> None:
        """Every op gives what its reference body gives, and leaves the same state."""
        self.compare(self.installed.cases)

    def test_packed_weights_are_read_as_decoded(self) -> None:
        """Products with packed weights are those with the decoded weights, for every format."""
        cases = self.packed
        if not cases:
            skip("its kernel table claims no packed format that is installed")
        self.compare(cases)

    def test_declared_layouts_are_read_as_decoded(self) -> None:
        """The generic kernels read 4-bit, 8-bit and codebook layouts as they are declared."""
        if not self.generic:
            skip(f"its kernel table has no kernel for {GENERIC!r}")
        self.compare(self.generic)

    def test_views_are_read_where_they_are(self) -> None:
        """Activations may be views of wider arrays, as families slice them."""
        self.compare(self.installed.cases, view=some_columns)
        self.compare(self.installed.cases, view=half_of_heads)

    def test_unwritten_memory_does_not_leak(self) -> None:
        """Results do not depend on what memory and unwritten state held before: it is NaN here."""
        cases = [*self.installed.cases, *self.packed, *self.generic]
        for case in cases:
            self.expected(case)  # before memory is poisoned
        sample = self.device.upload(np.zeros(4, np.float32))
        with poisoned(sample, xp=self.device.xp):
            spoil_free_memory(*(2**n for n in range(6, 20)))
            self.compare(cases, spoiled=True, view=whole)

    def test_inputs_are_left_alone(self) -> None:
        """No op changes its arguments, or the state of a slot that is not in the step."""
        cases = [*self.installed.cases, *self.packed, *self.generic]
        no([f"{case} changes {what}" for case in cases for what in self.outcome(case).changed])

    def test_results_stay_as_they_are(self) -> None:
        """An op that is called again, with other values, changes no earlier result of its own."""
        self.assert_results_stay([*self.installed.cases, *self.packed, *self.generic])

    def test_rows_alone_equal_rows_in_a_batch(self) -> None:
        """A row or sequence gives alone what it gives in a batch: to the bit, if so claimed."""
        cases = [*self.installed.cases, *self.packed, *self.generic]
        self.compare_rows_alone(cases, self.device.bitwise_rows)

    def test_references_run_on_its_arrays(self) -> None:
        """Every reference body runs on its array namespace: ops of the future have no kernel."""
        bare = Runner(cast("BackendPlugin", WithoutKernels(self.device)), self.installed.ops)
        cases = self.installed.cases
        if self.device.kernels:  # dense weights may be laid out for its kernels
            cases = [c for c in cases if not any(isinstance(a, Matrix) for a in flat(c.calls()))]
        no([f"{case}: {complaint}" for case in cases
            for complaint in self.complaints(case, partial(bare.run, case))])  # fmt: skip

    def test_kernel_table_can_be_loaded(self) -> None:
        """Every key can be looked up and every target is a function that can be imported."""
        kernels = self.device.kernels
        assert isinstance(kernels, Mapping), f"kernels is {type(kernels).__name__}, not a mapping"
        problems = []
        for (op, format), target in kernels.items():
            if format != "*" and op not in PACKABLE:
                problems.append(
                    f"({op!r}, {format!r}) is never looked up: only {' and '.join(PACKABLE)} have "
                    "formats, others use '*'"
                )
            module, _, attribute = target.partition(":")
            try:
                function = getattr(import_module(module), attribute)
            except (ImportError, AttributeError, ValueError) as error:
                problems.append(f"({op!r}, {format!r}): {target} cannot be loaded: {error}")
                continue
            if not callable(function):
                problems.append(f"({op!r}, {format!r}): {target} cannot be called")
        no(problems)

    def test_every_kernel_is_compared(self) -> None:
        """There are cases, and where needed an encoder, for every kernel."""
        left_out = []
        formats = {"*", DENSE, GENERIC, *self.installed.formats}
        for op, format in self.device.kernels:
            if self.installed.op(op) is None:
                left_out.append(f"no plugin is installed that brings the op {op!r}")
            elif not self.installed.cases_of(op):
                left_out.append(f"the op {op!r} has no cases")
            elif format not in formats:
                left_out.append(f"no quantizer is installed for {op}[{format}]")
        if left_out:
            skip("; ".join(dict.fromkeys([*left_out, *self.installed.missing])))

    def test_report_is_complete(self) -> None:
        """Every bound op is in the report with what it runs; references are said to be slow."""
        binder = Binder(self.device, self.installed.ops)
        wanted = sorted({c.op for c in self.installed.cases} - {*PACKABLE})
        binder.bind_ops(wanted)
        report = binder.report
        for op in wanted:
            bound = report.bound.get((op, "*"))
            assert bound, f"op {op!r} is bound, but not in the report"
            declared = self.device.kernels.get((op, "*"))
            assert not declared or bound.target == declared, (
                f"op {op!r} is bound to {bound.target}, its kernel table says {declared}"
            )
            slow = [line for line in report.fallbacks if line.startswith(f"{op} ")]
            assert bool(slow) == (bound.via == "reference"), f"op {op!r}: fallbacks say {slow}"
        device = report.lines()[0]
        assert device.strip() and "\n" not in device, f"describe() returns {device!r}: one line"


class WithoutKernels:
    """A backend as it would be with an empty kernel table."""

    kernels: ClassVar[dict[tuple[str, str], str]] = {}

    def __init__(self, backend: BackendPlugin) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)
