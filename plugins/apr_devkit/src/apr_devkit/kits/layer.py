"""Kits for parts of a layer: each is run alone, on references and random weights.

`SequenceChecks` are for all that runs sequences, a mixer or a whole model; `PartConformance` is for
all parts of a layer. `AttentionConformance` is both, `MlpConformance` the second.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.plugin import CORE_OPS, NORMS, AprError, Block, MixerExample, Op, StateMakers, Weight
from apr_core.runtime import GRID, Owned, ReferenceBackend, Registry, Trial, TrialOps, make_step
from apr_devkit.kits import rig
from apr_devkit.kits.cases import Matrix
from apr_devkit.kits.checks import PluginConformance, attribute, shared, skip
from apr_devkit.kits.measures import distance
from apr_devkit.kits.ops import Runner
from apr_devkit.tiny import random_values

ACTIVATIONS = ("silu", "gelu", "relu")
NORM_ROLES = {role for roles in NORMS.values() for role in roles if role}
LENGTHS = (1, 2, 5, GRID - 1, GRID, GRID + 1, 2 * GRID + 2)  # prompts are cut on the grid
REWINDS = ((20, 7), (GRID + 6, GRID), (2 * GRID + 2, 100))  # (tokens run, position to go on from)
Floats = NDArray[np.float32]
Piece = tuple[int, int, NDArray[Any]]  # (slot, first position, token ids or rows)


class SequenceChecks(PluginConformance):
    """The output of a sequence depends neither on how it is cut nor on other sequences."""

    tolerance: float = 5e-5

    @property
    def where(self) -> str:
        """Where it runs, as the end of a message."""
        return ""

    def session(self) -> Any:
        """Return a new session: slots that can be opened, run, copied and closed."""
        raise NotImplementedError

    def inputs(self, count: int, seed: int = 0) -> NDArray[Any]:
        """Return `count` random inputs: token ids or rows."""
        raise NotImplementedError

    def rewindable(self) -> bool:
        """Return True if all states are rewindable."""
        raise NotImplementedError

    @contextmanager
    def opened(self, *slots: int) -> Iterator[Any]:
        """Open slots of a session, and close them at the end."""
        session = self.session()
        for slot in slots:
            session.open(slot)
        try:
            yield session
        finally:
            for slot in slots:
                session.close(slot)

    def fresh(self, *pieces: NDArray[Any]) -> Floats:
        """Return the output [T, features] of a sequence in a new slot, run piece by piece."""
        with self.opened(0) as session:
            return resume(session, 0, 0, *pieces)

    def assert_same(self, actual: Floats, expected: Floats, what: str) -> None:
        """Fail if outputs [T, features] differ by more than the tolerance."""
        off = distance(actual, expected)
        assert off < self.tolerance, (
            f"{what}{self.where}: outputs differ by {off:.1e} of their standard deviation, at most "
            f"{self.tolerance:.0e} is rounding"
        )

    def test_prefill_equals_decode(self) -> None:
        """A prompt in one step, in two, and token by token gives the same outputs."""
        for n in LENGTHS:
            x = self.inputs(n)
            whole, ones = self.fresh(x), [x[i : i + 1] for i in range(n)]
            self.assert_same(self.fresh(*ones), whole, f"{n} tokens, one by one or at once")
            for k in sorted({1, 3, n // 2, GRID, n - 1} & {*range(1, n)}):
                what = f"{n} tokens, as {k} + {n - k} or at once"
                self.assert_same(self.fresh(x[:k], x[k:]), whole, what)

    def test_batch_equals_each_alone(self) -> None:
        """Two sequences of different lengths in one step give what each gives alone."""
        for long, short in ((GRID + 6, 5), (3, 1), (1, 1)):
            a, b = self.inputs(long + 4, seed=1), self.inputs(short + 4, seed=2)
            with self.opened(1, 0) as session:
                first = session.run((1, 0, a[:long]), (0, 0, b[:short]))
                then = session.run((0, short, b[short : short + 1]), (1, long, a[long : long + 1]))
                last = session.run((0, short + 1, b[short + 1 :]), (1, long + 1, a[long + 1 :]))
            what = f"{long} and {short} tokens in one step or each alone"
            self.assert_same(np.concatenate([first[0], then[1], last[1]]), self.fresh(a), what)
            self.assert_same(np.concatenate([first[1], then[0], last[0]]), self.fresh(b), what)

    def test_rewindable_claim_is_true(self) -> None:
        """If all states say they are rewindable, a sequence goes on from any earlier position."""
        if not self.rewindable():
            skip("not every state claims to be rewindable")
        for n, position in REWINDS:
            x, other = self.inputs(n, seed=1), self.inputs(9, seed=2)
            with self.opened(0) as session:
                session.run((0, 0, x))
                after = resume(session, 0, position, other)
            what = f"rewindable = True, but {n} tokens cut back to {position} go on wrong"
            self.assert_same(after, self.fresh(x[:position], other)[position:], what)

    def test_snapshots_resume(self) -> None:
        """A snapshot, put back into its slot or another, goes on as before, as often as wanted."""
        for n in (1, 7, GRID + 6):
            x, then, other = self.inputs(n, 1), self.inputs(5, 2), self.inputs(n + 5, 3)
            expected = self.fresh(x, then)[n:]
            with self.opened(0, 1) as session:
                session.run((0, 0, x))
                snapshot = session.snapshot(0, n)
                session.run((0, n, other), (1, 0, other))
                for slot in (0, 1, 1):
                    session.restore(slot, snapshot)
                    after = resume(session, slot, n, then[:2], then[2:])
                    what = f"snapshot after {n} tokens, into slot {slot}"
                    self.assert_same(after, expected, what)

    def test_slots_open_and_close(self) -> None:
        """Closing slots gives their memory back, and one that is opened again begins anew."""
        session, x = self.session(), self.inputs(9)
        for _ in range(3):
            held = session.nbytes()
            assert held == 0, f"{held} bytes are held though every slot is closed{self.where}"
            for slot in (3, 0):
                session.open(slot)
            after = resume(session, 0, 0, x[:5], x[5:])
            self.assert_same(after, self.fresh(x), "in a slot that held another sequence")
            session.run((3, 0, self.inputs(70)), (0, 9, self.inputs(2)))
            self.before_closing(session)
            for slot in (3, 0):
                session.close(slot)

    def before_closing(self, session: Any) -> None:
        """Check open slots that hold something; by default nothing."""


def resume(session: Any, slot: int, position: int, *pieces: NDArray[Any]) -> Floats:
    """Return the output [T, features] of the pieces, one step each, from `position` on."""
    outputs = []
    for piece in pieces:
        outputs += session.run((slot, position, piece))
        position += len(piece)
    return np.concatenate(outputs)


class PartRig:
    """A part of a layer with random weights, made with an example's options."""

    def __init__(self, owned: Owned, registry: Registry, example: MixerExample) -> None:
        self.hidden_size = example.hidden_size
        self.part = registry.load(owned)(**example.options)
        brought = {n: registry.load_target(t) for n, t in owned.declaration.brings}
        self.runner = Runner(ReferenceBackend(), brought)
        self.binder = self.runner.binder
        self.weights = SimpleNamespace(**dict(self._weights(example)))

    def _weights(self, example: MixerExample) -> Iterator[tuple[str, Any]]:
        rng, part, upload = np.random.default_rng(0), self.part, self.binder.backend.upload
        for role in (*part.matrices, *part.vectors):
            assert role in example.shapes, (
                f"it names the role {role!r}, but its example has shapes for "
                f"{', '.join(example.shapes)} only"
            )
            values = random_values(role, tuple(example.shapes[role]), rng)
            if role in part.vectors:
                yield role, upload(values)
            else:
                yield role, self.runner.weight(Matrix(values), role)
        for name, array in part.constants.items():
            yield name, upload(array)

    def run(self, rows: Floats, *state: Any) -> Floats:
        """Return the output rows for rows [T, hidden]; a mixer takes a step and a state, too."""
        output: Floats = self.part(self.binder.ops, self.weights, rows, *state)
        return output


class PartConformance(PluginConformance):
    """Checks of any part of a layer: the kits of its kinds derive from this."""

    example: MixerExample | None = None
    taken: Iterable[str] = NORM_ROLES  # roles of the layer's other parts

    @shared
    def rig(self) -> PartRig:
        """Return the checked part with random weights, made once."""
        return self.make_rig()

    def make_rig(self) -> PartRig:
        """Return the checked part with new random weights."""
        return PartRig(self.owned, self.registry, self.made_with())

    def made_with(self) -> MixerExample:
        """Return `example`, else the part's own, else that of an installed family.

        Raises AssertionError if there is none.
        """
        example: MixerExample | None = self.example or self.load().example()
        example = example or next(self._in_families(), None)
        assert example is not None, (
            f"nothing says what {self.declaration.name} is made with: give it a static method "
            "example() -> MixerExample (no installed family with a tiny_config() uses it)"
        )
        return example

    def _in_families(self) -> Iterator[MixerExample]:
        """Yield the first layer that has it, in the tiny model of each installed family."""
        for owned in self.registry.declarations("family"):
            try:
                family = self.registry.make("family", owned.qualified)
                config = family.config(family.tiny_config())
                blocks, contract = family.plan(config).blocks, family.contract()
                rules = contract.rules(config, next(iter(contract.content["layouts"])))
            except (AprError, AttributeError, NotImplementedError):
                continue  # its own kit reports what is wrong
            for layer, block in enumerate(blocks):
                if self.name_in(block) == self.declaration.name:
                    shapes = {rule.role: rule.shape for rule in rules if rule.layer == layer}
                    yield MixerExample(self.options_in(block), config.hidden_size, shapes)
                    break

    def name_in(self, block: Block) -> str:
        """Return the name of the block's part of this kind."""
        return block.mixer

    def options_in(self, block: Block) -> Mapping[str, Any]:
        """Return the options of the block's part of this kind."""
        return block.options

    def inputs(self, count: int, seed: int = 0) -> Floats:
        """Return random rows [count, hidden], of the size that norms leave."""
        rng = np.random.default_rng([seed, count])
        return rng.standard_normal((count, self.rig.hidden_size), np.float32)

    def run(self, part: PartRig, rows: Floats) -> Floats:
        """Return the output rows [T, hidden] of a part for input rows."""
        return part.run(rows)

    def watch(self, part: PartRig, trial: Trial) -> None:
        """Run the part on arrays that report who reads their values."""
        ops = TrialOps(trial, part.binder)
        part.part(ops, part.weights, trial.watched(self.inputs(2)))

    def test_roles_are_named(self) -> None:
        """Weights are named by roles that nothing else in a layer has."""
        part = self.rig.part
        names = [*part.matrices, *part.vectors, *part.constants]
        assert all(isinstance(name, str) for name in names), f"roles must be strings: {names}"
        twice = sorted({n for n in names if names.count(n) > 1} | {*names} & {*self.taken})
        assert not twice, f"roles {twice} are taken: every role of a layer needs its own name"
        for name, array in part.constants.items():
            assert isinstance(array, np.ndarray), f"constant {name!r} is no NumPy array"

    def test_steps_can_be_recorded(self) -> None:
        """It is nothing but ops, so backends may repeat a decode step without running Python."""
        trial = Trial(self.registry.owner_of)
        self.watch(self.make_rig(), trial)
        assert not trial.lines, f"steps are not recorded: {'; '.join(trial.lines)}"

    def test_brought_ops_are_ops_with_cases(self) -> None:
        """Every op it brings is an op of that name, new, and has cases for backends to pass."""
        declared = self.declaration
        for name, target in declared.brings:
            brought = self.registry.load_target(target, self.owned.distribution)
            kind = type(brought).__name__
            assert isinstance(brought, Op), f"{target} is {kind}, expected an @op"
            real = brought.name
            assert real == name, f"{target} is the op {real!r}, declared as {name!r}"
            assert name not in CORE_OPS, f"op {name!r} is one of the core's: choose another name"
        cases = {case.op for case in attribute(declared.cases)()} if declared.cases else set()
        missing = sorted({name for name, _ in declared.brings} - cases)
        assert not missing, (
            f"no case for the ops {missing}: let the declaration's `cases` name a function that "
            "returns a list of apr_devkit.kits.OpCase"
        )

    def test_output_has_the_shape_of_the_input(self) -> None:
        """Rows [T, hidden] in, finite float32 rows [T, hidden] out, to the same bits each time."""
        for n in LENGTHS:
            rows = self.inputs(n)
            out, again = self.run(self.rig, rows), self.run(self.rig, rows)
            assert out.shape == rows.shape, f"{n} rows: found {out.shape}, expected {rows.shape}"
            assert out.dtype == np.float32, f"{n} rows: found {out.dtype}, expected float32"
            assert np.isfinite(out).all(), f"{n} rows: {(~np.isfinite(out)).sum()} not finite"
            assert np.array_equal(out, again), f"two runs of the same {n} rows differ"

    def test_weights_and_inputs_are_left_alone(self) -> None:
        """A run changes neither its weights nor its input."""
        part, rows = self.make_rig(), self.inputs(7)
        weights = vars(part.weights).items()
        given: dict[str, NDArray[Any]] = {
            "the input": rows,
            **{n: w.data if isinstance(w, Weight) else w for n, w in weights},
        }
        before = {name: array.copy() for name, array in given.items()}
        self.run(part, rows)
        changed = [name for name, array in given.items() if not np.array_equal(array, before[name])]
        assert not changed, f"{', '.join(changed)}: changed in place"


class MixerSession:
    """A mixer and a state: slots are opened, run, copied and closed."""

    def __init__(self, part: PartRig, zeros: Any = None) -> None:
        self.part = part
        self.state = part.part.new_state(StateMakers(zeros or part.binder.backend.zeros))
        self.open, self.close = self.state.open, self.state.close
        self.snapshot, self.restore = self.state.snapshot, self.state.restore
        self.nbytes = self.state.nbytes

    def run(self, *pieces: Piece) -> list[Floats]:
        """Run one step; return each piece's output [n, hidden]."""
        step = make_step([(slot, len(rows), position) for slot, position, rows in pieces])
        x = pieces[0][2] if len(pieces) == 1 else np.concatenate([rows for _, _, rows in pieces])
        out = self.part.run(x, step, self.state)
        return [out[seg.start : seg.stop] for seg in step.segments]


class AttentionConformance(PartConformance, SequenceChecks):
    """Checks of one attention variant.

        class TestMine(AttentionConformance):
            attention = "mine"

    It is made with `example`, else with its own `example()`, else as the first installed family
    uses it. `tolerance` is the largest difference of equal results, relative to their spread.
    """

    kind = "attention"
    attention: str = ""
    taken = NORM_ROLES | {"gate_proj", "up_proj", "down_proj"}

    def session(self, zeros: Any = None) -> MixerSession:
        """Return a mixer with a new state."""
        return MixerSession(self.rig, zeros)

    def rewindable(self) -> bool:
        """Return True if the mixer's state is rewindable."""
        return bool(self.session().state.rewindable)

    def run(self, part: PartRig, rows: Floats) -> Floats:
        """Return the output [T, hidden] of a prompt."""
        session = MixerSession(part)
        session.open(0)
        return session.run((0, 0, rows))[0]

    def watch(self, part: PartRig, trial: Trial) -> None:
        """Run a decode step of two sequences, on arrays that report who reads their values."""
        session, ops = MixerSession(part), TrialOps(trial, part.binder)
        for slot in (0, 1):
            session.open(slot)
        rows, step = trial.watched(self.inputs(2)), trial.step((0, 1, 0), (1, 1, 0))
        part.part(ops, part.weights, rows, step, session.state)

    def test_state_is_of_the_declared_kind(self) -> None:
        """The state says it is what the declaration says it is."""
        state, declared = self.session().state, self.declaration.state
        kind = getattr(state, "kind", None)
        assert kind == declared, (
            f"declared state={declared!r}, but {type(state).__name__}.kind is {kind!r}"
        )
        assert isinstance(state.rewindable, bool), f"rewindable is {state.rewindable!r}"

    def before_closing(self, session: Any) -> None:
        """Fail unless all memory is counted; then fill it with NaN for the next sequence."""
        arrays = list(rig.arrays_in(session.state))
        held, seen = session.nbytes(), sum(array.nbytes for array in arrays)
        if self.declaration.state != "none":
            assert held >= seen > 0, f"nbytes() is {held}, its arrays hold {seen} bytes"
        for array in arrays:
            array[...] = np.nan if array.dtype.kind == "f" else array

    def test_slots_do_not_disturb_each_other(self) -> None:
        """A sequence goes on as if the others, one of them full of NaN, were not there."""
        rows, other = self.inputs(12, seed=1), self.inputs(12, seed=2)
        nan = np.full_like(other, np.nan)
        with self.opened(0, 1, 2) as session, np.errstate(invalid="ignore"):
            first = session.run((0, 0, rows[:6]))
            session.run((1, 0, other))
            session.run((2, 0, nan[:6]))
            then = session.run((2, 6, nan[6:]), (0, 6, rows[6:]))
        expected = self.fresh(rows[:6], rows[6:])
        self.assert_same(np.concatenate([first[0], then[1]]), expected, "beside other slots")

    def test_unwritten_state_does_not_leak(self) -> None:
        """What no token has written is never read: it is NaN here, and outputs are not."""
        if self.declaration.state not in ("kv", "window"):
            skip(f"a {self.declaration.state} state begins with zeros, which count")
        for n in LENGTHS:
            rows, session = self.inputs(n + 2), self.session(zeros=_nan)
            session.open(0)
            out = resume(session, 0, 0, rows[:n], rows[n : n + 1], rows[n + 1 :])
            self.assert_same(out, self.fresh(rows), f"{n} tokens in memory full of NaN")


class MlpConformance(PartConformance):
    """Checks of one feed-forward variant.

        class TestMine(MlpConformance):
            mlp = "mine"

    It is made with `example`, else with its own `example()`, else as the first installed family
    uses it.
    """

    kind = "mlp"
    mlp: str = ""
    taken = NORM_ROLES | {"q_proj", "k_proj", "v_proj", "o_proj"}
    tolerance: float = 5e-5

    def name_in(self, block: Block) -> str:
        """Return the name of the block's mlp."""
        return block.mlp

    def options_in(self, block: Block) -> Mapping[str, Any]:
        """Return the options of the block's mlp."""
        return block.mlp_options

    def test_it_says_what_it_is(self) -> None:
        """`activation` and `gated`, which contracts' claims are compared with, are known values."""
        activation, gated = getattr(self.rig.part, "activation", None), self.rig.part.gated
        assert activation in ACTIVATIONS, f"activation is {activation!r}, expected {ACTIVATIONS}"
        assert isinstance(gated, bool), f"gated is {gated!r}, expected True or False"

    def test_rows_do_not_depend_on_each_other(self) -> None:
        """A row among others gives what it gives alone."""
        rows = self.inputs(7)
        together = self.rig.run(rows)
        alone = np.concatenate([self.rig.run(rows[i : i + 1]) for i in range(len(rows))])
        off = distance(together, alone)
        assert off < self.tolerance, f"rows alone or together differ by {off:.1e}"


def _nan(shape: tuple[int, ...], dtype: str = "f32") -> NDArray[Any]:
    return np.full(shape, np.nan, np.float16 if dtype == "f16" else np.float32)
