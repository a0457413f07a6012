"""The kit for attention variants: mixers run alone, on references, with states that betray them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from apr_core.family.modelspec import MixerExample
from apr_core.model.loading import MLP_MATRICES, NORMS
from apr_core.model.step import make_step
from apr_core.model.trial import Trial
from apr_core.ops import CORE_OPS, Op
from apr_devkit.kits.checks import skip
from apr_devkit.kits.mixer_rig import (
    Floats,
    MixerRig,
    arrays_in,
    difference,
    example_of,
    poison,
    poisoned_zeros,
)
from apr_devkit.kits.plugin import PluginConformance

CHUNK = 64  # the grid that longer prompts are cut on
LENGTHS = (1, 2, 5, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 2)
REWINDS = ((20, 7), (CHUNK + 6, CHUNK), (2 * CHUNK + 2, 100))  # (tokens run, tokens kept)


class AttentionConformance(PluginConformance):
    """Checks of one attention variant.

        class TestMine(AttentionConformance):
            attention = "mine"

    It is made with `example`, else with what its own `example()` says, else as the first installed
    family uses it. `tolerance` is the largest difference of equal results, over their spread.
    """

    kind = "attention"
    attention: str = ""
    example: MixerExample | None = None
    tolerance: float = 5e-5

    @property
    def rig(self) -> MixerRig:
        """The mixer, ready to run."""
        return self.kept("rig", self.make_rig)

    def make_rig(self) -> MixerRig:
        """The same with nothing shared: for checks that look at what a run leaves behind."""
        example = self.example or example_of(self.owned, self.registry)
        return MixerRig(self.owned, self.registry, example)

    def assert_same(self, actual: Floats, expected: Floats, what: str) -> None:
        """Fail if outputs [T, hidden] differ by more than the tolerance."""
        found = difference(actual, expected)
        assert found < self.tolerance, (
            f"{what}: outputs differ by {found:.1e} of their standard deviation, at most "
            f"{self.tolerance:.0e} is rounding"
        )

    def test_roles_are_named(self) -> None:
        """Weights are named by roles that nothing else in a layer has."""
        mixer = self.rig.mixer
        names = [*mixer.matrices, *mixer.vectors, *mixer.constants]
        assert all(isinstance(name, str) for name in names), f"roles must be strings: {names}"
        twice = sorted(
            {n for n in names if names.count(n) > 1} | {*names} & {*MLP_MATRICES, *NORMS}
        )
        assert not twice, f"roles {twice} are taken: every role of a layer needs its own name"
        for name, array in mixer.constants.items():
            assert isinstance(array, np.ndarray), f"constant {name!r} is no NumPy array"

    def test_declared_ops_are_the_ones_it_uses(self) -> None:
        """A prompt and a decode step use every declared op and no other."""
        rig = self.make_rig()
        state = rig.opened()
        rig.resume(state, 0, 0, rig.rows(5), rig.rows(1))
        unused = sorted(set(self.declaration.ops) - rig.ops.used)
        assert not unused, f"declares the ops {unused}, but used {sorted(rig.ops.used)} only"

    def test_steps_can_be_recorded(self) -> None:
        """It is nothing but ops, so backends may repeat a decode step without running Python."""
        rig, trial = self.make_rig(), Trial(self.registry.owner_of)
        rows, step = trial.watched(rig.rows(2)), trial.step((0, 1, 0), (1, 1, 0))
        rig.mixer(trial.ops(rig.binder), rig.weights, rows, step, rig.opened(0, 1))
        assert not trial.lines, f"steps are not recorded: {'; '.join(trial.lines)}"

    def test_brought_ops_are_ops_with_cases(self) -> None:
        """Every op it brings is an op of that name, new, and has cases for backends to pass."""
        for name, target in self.declaration.brings:
            found = self.registry.load_target(target, self.owned.distribution)
            assert isinstance(found, Op), f"{target} is {type(found).__name__}, expected an @op"
            assert found.name == name, f"{target} is the op {found.name!r}, declared as {name!r}"
            assert name not in CORE_OPS, f"op {name!r} is one of the core's: choose another name"
        missing = sorted({name for name, _ in self.declaration.brings} - self._ops_with_cases())
        assert not missing, (
            f"no case for the ops {missing}: let the declaration's `cases` name a function that "
            "returns a list of apr_devkit.kits.OpCase"
        )

    def _ops_with_cases(self) -> set[str]:
        if not self.declaration.cases:
            return set()
        module, _, function = self.declaration.cases.partition(":")
        return {case.op for case in getattr(import_module(module), function)()}

    def test_state_is_of_the_declared_kind(self) -> None:
        """The state says it is what the declaration says it is."""
        state, declared = self.rig.state(), self.declaration.state
        found = getattr(state, "kind", None)
        assert found == declared, (
            f"declared state={declared!r}, but {type(state).__name__}.kind is {found!r}"
        )
        assert isinstance(state.rewindable, bool), f"rewindable is {state.rewindable!r}"

    def test_slots_open_and_close(self) -> None:
        """Opening a slot takes memory, closing it gives the memory back, and it opens again."""
        rig, state = self.rig, self.rig.state()
        assert state.nbytes() == 0, f"{state.nbytes()} bytes are held before a slot was opened"
        for _ in range(2):
            for slot in (3, 0):
                state.open(slot)
            rig.run(state, (3, 0, rig.rows(70)), (0, 0, rig.rows(2)))
            held, seen = state.nbytes(), sum(a.nbytes for a in arrays_in(state))
            if self.declaration.state != "none":
                assert held >= seen > 0, f"nbytes() is {held}, its arrays hold {seen} bytes"
            state.close(3)
            state.close(0)
            assert state.nbytes() == 0, f"{state.nbytes()} bytes are held after all slots closed"

    def test_output_has_the_shape_of_the_input(self) -> None:
        """Rows [T, hidden] in, finite float32 rows [T, hidden] out."""
        for n in LENGTHS:
            rows = self.rig.rows(n)
            out = self.rig.fresh(rows)
            assert out.shape == rows.shape, f"{n} rows: found {out.shape}, expected {rows.shape}"
            assert out.dtype == np.float32, f"{n} rows: found {out.dtype}, expected float32"
            assert np.isfinite(out).all(), f"{n} rows: {(~np.isfinite(out)).sum()} not finite"

    def test_same_input_gives_the_same_bits(self) -> None:
        """A second run from the beginning gives the same bits."""
        rows = self.rig.rows(CHUNK + 1)
        first, second = self.rig.fresh(rows), self.rig.fresh(rows)
        assert np.array_equal(first, second), "two runs of the same rows differ"

    def test_prefill_equals_decode(self) -> None:
        """A prompt in one step, in two, and token by token gives the same outputs."""
        for n in LENGTHS:
            rows = self.rig.rows(n)
            whole = self.rig.fresh(rows)
            one_by_one = self.rig.fresh(*np.split(rows, n))
            self.assert_same(one_by_one, whole, f"{n} tokens, one by one or at once")
            for k in sorted({1, 3, n // 2, CHUNK, n - 1}):
                if 0 < k < n:
                    halves = self.rig.fresh(rows[:k], rows[k:])
                    self.assert_same(halves, whole, f"{n} tokens, as {k} + {n - k} or at once")

    def test_batch_equals_each_alone(self) -> None:
        """Two sequences of different lengths in one step give what each gives alone."""
        rig = self.rig
        for long, short in ((CHUNK + 6, 5), (3, 1), (1, 1)):
            a, b = rig.rows(long + 4, seed=1), rig.rows(short + 4, seed=2)
            state = rig.opened(1, 0)
            got = [rig.run(state, (1, 0, a[:long]), (0, 0, b[:short]))]
            got.append(rig.run(state, (0, short, b[short : short + 1]), (1, long, a[long:])))
            got.append(rig.run(state, (0, short + 1, b[short + 1 :])))
            alone_a, alone_b = rig.fresh(a), rig.fresh(b)
            what = f"{long} and {short} tokens in one step or each alone"
            self.assert_same(np.concatenate([got[0][0], got[1][1]]), alone_a, what)
            self.assert_same(np.concatenate([got[0][1], got[1][0], got[2][0]]), alone_b, what)

    def test_slots_do_not_disturb_each_other(self) -> None:
        """A sequence goes on as if the others, one of them full of NaN, were not there."""
        rig = self.rig
        rows, other = rig.rows(12, seed=1), rig.rows(12, seed=2)
        expected = rig.fresh(rows[:6], rows[6:])
        state = rig.opened(0, 1, 2)
        first = rig.run(state, (0, 0, rows[:6]))
        rig.run(state, (1, 0, other))
        nan = np.full_like(other, np.nan)
        with np.errstate(invalid="ignore"):
            rig.run(state, (2, 0, nan[:6]))
            second = rig.run(state, (2, 6, nan[6:]), (0, 6, rows[6:]))
        state.close(1)
        self.assert_same(np.concatenate([first[0], second[1]]), expected, "beside other slots")

    def test_rewindable_claim_is_true(self) -> None:
        """If the state is rewindable, a sequence goes on from any earlier position."""
        rig = self.rig
        if not rig.state().rewindable:
            skip("the state does not claim to be rewindable")
        for n, kept in REWINDS:
            rows, other = rig.rows(n, seed=1), rig.rows(9, seed=2)
            expected = rig.fresh(rows[:kept], other)[kept:]
            state = rig.opened()
            rig.run(state, (0, 0, rows))
            found = rig.run(state, (0, kept, other))[0]
            self.assert_same(
                found, expected, f"rewindable = True, but {n} tokens cut back to {kept} go on wrong"
            )

    def test_snapshots_resume(self) -> None:
        """A snapshot, put back into its slot or another, goes on as before, as often as wanted."""
        rig = self.rig
        for n in (1, 7, CHUNK + 6):
            rows, then, other = rig.rows(n, 1), rig.rows(5, 2), rig.rows(n + 5, 3)
            expected = rig.fresh(rows, then)[n:]
            state = rig.opened(0, 1)
            rig.run(state, (0, 0, rows))
            snapshot = state.snapshot(0, n)
            rig.run(state, (0, n, other))
            rig.run(state, (1, 0, other))
            for slot in (0, 1, 1):
                state.restore(slot, snapshot)
                found = rig.resume(state, slot, n, then[:2], then[2:])
                self.assert_same(found, expected, f"snapshot after {n} tokens, into slot {slot}")

    def test_unwritten_state_does_not_leak(self) -> None:
        """What no token has written is never read: it is NaN here, and outputs are not."""
        if self.declaration.state not in ("kv", "window"):
            skip(f"a {self.declaration.state} state begins with zeros, which count")
        rig = self.rig
        for n in LENGTHS:
            rows = rig.rows(n + 2)
            state = rig.opened(zeros=poisoned_zeros)
            found = rig.resume(state, 0, 0, rows[:n], rows[n : n + 1], rows[n + 1 :])
            self.assert_same(found, rig.fresh(rows), f"{n} tokens in memory full of NaN")

    def test_reused_slot_starts_empty(self) -> None:
        """A slot that is closed and opened again knows nothing of what it held, not even NaN."""
        rig = self.rig
        rows = rig.rows(9)
        state = rig.opened()
        rig.run(state, (0, 0, rig.rows(20, seed=5)))
        poison(state)
        state.close(0)
        state.open(0)
        found = rig.resume(state, 0, 0, rows[:5], rows[5:])
        self.assert_same(found, rig.fresh(rows), "in a slot that held another sequence")

    def test_weights_and_inputs_are_left_alone(self) -> None:
        """A run changes neither its weights nor its input."""
        rig = self.make_rig()
        rows, step = rig.rows(7), make_step([(0, 7, 0)])
        given = {**rig.arrays(), "the input": rows, "the positions": step.positions}
        before: dict[str, Any] = {name: array.copy() for name, array in given.items()}
        rig.mixer(rig.ops, rig.weights, rows, step, rig.opened())
        changed = [name for name, array in given.items() if not np.array_equal(array, before[name])]
        assert not changed, f"{', '.join(changed)}: changed in place"
