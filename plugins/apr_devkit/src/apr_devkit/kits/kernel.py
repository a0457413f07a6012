"""The kit for a kernel that one distribution brings for a backend, its own or another's."""

from __future__ import annotations

from apr_core.declarations import Kernel
from apr_core.errors import BackendUnavailable, PluginNotFound
from apr_core.model.loading import foreign_kernels, make_backend
from apr_core.ops.binding import DENSE, GENERIC, BackendPlugin, ForeignKernel
from apr_devkit.kits.case_runs import Runner, half_of_heads, some_columns
from apr_devkit.kits.cases import OpCase
from apr_devkit.kits.checks import skip
from apr_devkit.kits.installed import PACKABLE
from apr_devkit.kits.op_checks import OpComparison, no
from apr_devkit.kits.packed_cases import LAYOUTS, in_layout, packed_cases
from apr_devkit.kits.poison import poisoned, spoil_free_memory

MADE_OF = {"linear": ("linear", "linears", "mlp"), "embed": ("embed",)}  # ops that use a product


class KernelConformance(OpComparison):
    """Checks of one kernel, bound for its backend as a load binds it.

        class TestMine(KernelConformance):
            kernel = "npu/swiglu"

    The cases are the op's, with weights of its format; see `BackendConformance`.
    """

    kind = "kernel"
    kernel: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """(op, weight format)."""
        declared: Kernel = self.declaration
        return declared.op, declared.weight

    def make_device(self) -> BackendPlugin:
        """The backend the kernel is for. Skips where it is not installed or cannot run."""
        wanted = self.declaration.backend
        try:
            return make_backend(self.registry, wanted, None)
        except (BackendUnavailable, PluginNotFound) as error:
            skip(f"it is for backend {wanted!r}: {error.message}")

    @property
    def device(self) -> BackendPlugin:
        """The same, made once."""
        return self.kept("device", self.make_device)

    def make_runner(self) -> Runner:
        """The backend with this kernel and no other foreign one."""
        foreign = ForeignKernel(self.declaration.target, self.owned.distribution)
        return Runner(self.device, self.installed.ops, {self.key: foreign})

    @property
    def cases(self) -> list[OpCase]:
        """Those that the kernel is bound in."""
        return self.kept("cases", self._cases)

    def _cases(self) -> list[OpCase]:
        op, format = self.key
        if self.installed.op(op) is None:
            skip(f"no plugin is installed that brings the op {op!r}")
        ops = MADE_OF.get(op, (op,))
        dense = [case for name in ops for case in self.installed.cases_of(name)]
        if op not in PACKABLE or format == DENSE:
            return dense
        layouts = [c for name in LAYOUTS for c in packed_cases(name, in_layout(name), ops)]
        if format == GENERIC:
            return layouts
        wanted = [format] if format != "*" else list(self.installed.formats)
        if not set(wanted) <= set(self.installed.formats):
            skip(f"no quantizer is installed for {format!r}")
        made = {name: self.installed.formats[name].pack for name in wanted}
        packed = [c for name, pack in made.items() for c in packed_cases(name, pack, ops)]
        return packed + (dense if format == "*" else [])

    def test_declaration_can_be_looked_up(self) -> None:
        """It names a backend and an op, and a weight format only where ops have one."""
        declared: Kernel = self.declaration
        assert declared.backend, f"kernel {self.name!r} names no backend"
        assert declared.op, f"kernel {self.name!r} names no op"
        assert declared.weight == "*" or declared.op in PACKABLE, (
            f"{declared.op}[{declared.weight}] is never looked up: only {' and '.join(PACKABLE)} "
            "have formats, others are declared with weight='*'"
        )

    def test_nobody_else_brings_it(self) -> None:
        """No other distribution brings a kernel for the same op, format and backend."""
        found = foreign_kernels(self.registry, self.declaration.backend)
        assert self.key in found, f"{self.key} is not among the kernels {sorted(found)}"

    def test_it_is_what_gets_bound(self) -> None:
        """The op is bound to this kernel, the report says whose it is, and nothing else changes."""
        op, format = self.key
        plain = Runner(self.device, self.installed.ops)
        for case in self.cases:
            self.runner.run(case)
            plain.run(case)
        ours, theirs = self.runner.binder.report.bound, plain.binder.report.bound
        mine = {key: b for key, b in ours.items() if b.target == self.declaration.target}
        assert mine, f"{op}[{format}] is bound to {[b.target for b in ours.values()]}"
        for key, bound in mine.items():
            assert key[0] == op, f"{key} is bound to the kernel, which is declared for {op!r}"
            assert bound.distribution == self.owned.distribution, (
                f"the report says it is of {bound.distribution!r}, not {self.owned.distribution!r}"
            )
        changed = [k for k, b in ours.items() if k not in mine and theirs.get(k) != b]
        assert not changed, f"with the kernel, other ops are bound otherwise, too: {changed}"

    def test_it_agrees_with_the_reference(self) -> None:
        """Every case of the op gives what the reference body gives, and leaves the same state."""
        self.compare(self.cases)

    def test_views_are_read_where_they_are(self) -> None:
        """Activations may be views of wider arrays, as families slice them."""
        self.compare(self.cases, view=some_columns)
        self.compare(self.cases, view=half_of_heads)

    def test_unwritten_memory_does_not_leak(self) -> None:
        """Results do not depend on what memory and unwritten state held before: it is NaN here."""
        for case in self.cases:
            self.expected(case)  # before memory is poisoned
        with poisoned(self.device.zeros((4,)), xp=self.device.xp):
            spoil_free_memory(*(2**n for n in range(6, 20)))
            self.compare(self.cases, spoiled=True)

    def test_inputs_are_left_alone(self) -> None:
        """It changes neither its arguments nor the state of a slot that is not in the step."""
        no([f"{c} changes {what}" for c in self.cases for what in self.outcome(c).changed])

    def test_results_stay_as_they_are(self) -> None:
        """Called again, with other values, it changes no earlier result of its own."""
        self.assert_results_stay(self.cases)

    def test_rows_alone_equal_rows_in_a_batch(self) -> None:
        """A row or sequence gives alone what it gives in a batch: to the bit, if so claimed."""
        self.compare_rows_alone(self.cases, self.device.bitwise_rows)
