"""Kits for parts of a layer: each is run alone, on references and random weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.plugin import CORE_OPS, NORMS, AprError, MixerExample, Op, State, StateMakers, Weight
from apr_core.runtime import Binder, Owned, ReferenceBackend, Registry, Trial, TrialOps, make_step
from apr_devkit.kits.cases import Matrix
from apr_devkit.kits.checks import PluginConformance, attribute, equal, shared, skip
from apr_devkit.kits.measures import Floats, distance
from apr_devkit.kits.ops import Runner
from apr_devkit.kits.rig import LENGTHS, Piece, SequenceChecks, resume
from apr_devkit.tiny import random_values

ACTIVATIONS = ("silu", "gelu", "relu")
NORM_ROLES = {role for roles in NORMS.values() for role in roles if role}


class PartRig:
    """A part of a layer with random weights, made with an example's options."""

    def __init__(self, owned: Owned, registry: Registry, example: MixerExample) -> None:
        self.hidden_size = example.hidden_size
        self.part = registry.load(owned)(**example.options)
        brought = {n: registry.load_target(t) for n, t in owned.declaration.brings}
        self.binder = Binder(ReferenceBackend(), brought)
        self.runner = Runner(self.binder)
        self.weights = SimpleNamespace(**dict(self._weights(example)))

    def _weights(self, example: MixerExample) -> Iterator[tuple[str, Any]]:
        rng, part, upload = np.random.default_rng(0), self.part, self.binder.backend.upload
        for role in (*part.matrices, *part.stacks, *part.vectors):
            assert role in example.shapes, (
                f"it names the role {role!r}, but its example has shapes for "
                f"{', '.join(example.shapes)} only"
            )
            values = random_values(role, tuple(example.shapes[role]), rng)
            if role in part.vectors:
                yield role, upload(values)
            else:
                matrix = Matrix(values, (part.stacks.get(role, "linear"),))
                yield role, self.runner.weight(matrix, role)
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
    in_block = ("mixer", "options")  # fields of a Block: the part's name, its options

    @shared
    def rig(self) -> PartRig:
        """Return the checked part with random weights, made once."""
        return self.make_rig()

    def make_rig(self) -> PartRig:
        """Return the checked part with new random weights."""
        return PartRig(self.owned, self.registry, self.made_with())

    def made_with(self) -> MixerExample:
        """Return `example`, else the part's own, else that of an installed family."""
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
                name, options = (getattr(block, field) for field in self.in_block)
                if name == self.declaration.name:
                    shapes = {rule.role: rule.shape for rule in rules if rule.layer == layer}
                    yield MixerExample(options, config.hidden_size, shapes)
                    break

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
        names = [*part.matrices, *part.stacks, *part.vectors, *part.constants]
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
            assert isinstance(brought, Op), f"{target} is {type(brought).__name__}, expected an @op"
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
        """Rows [T, hidden] in, finite float32 rows out, the same each time, and nothing changes."""
        part = self.make_rig()
        weights = {n: w.data if isinstance(w, Weight) else w for n, w in vars(part.weights).items()}
        for n in LENGTHS:
            rows = self.inputs(n)
            given: dict[str, NDArray[Any]] = {"the input": rows, **weights}
            before = {name: array.copy() for name, array in given.items()}
            out = self.run(part, rows)
            changed = [name for name in given if not np.array_equal(given[name], before[name])]
            assert not changed, f"{', '.join(changed)}: changed in place"
            assert out.shape == rows.shape, f"{n} rows: found {out.shape}, expected {rows.shape}"
            assert out.dtype == np.float32, f"{n} rows: found {out.dtype}, expected float32"
            assert np.isfinite(out).all(), f"{n} rows: {(~np.isfinite(out)).sum()} not finite"
            same = np.array_equal(out, self.run(part, rows))
            assert same, f"two runs of the same {n} rows differ"


class MixerSession:
    """A mixer and a state: slots are opened, run, copied and closed."""

    def __init__(self, part: PartRig, *slots: int, zeros: Any = None) -> None:
        self.part = part
        self.state = part.part.new_state(StateMakers(zeros or part.binder.backend.zeros))
        self.open, self.close = self.state.open, self.state.close
        self.snapshot, self.restore = self.state.snapshot, self.state.restore
        self.nbytes = self.state.nbytes
        for slot in slots:
            self.open(slot)

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

    def session(self) -> MixerSession:
        """Return a mixer with a new state."""
        return MixerSession(self.rig)

    def run(self, part: PartRig, rows: Floats) -> Floats:
        """Return the output [T, hidden] of a prompt."""
        return MixerSession(part, 0).run((0, 0, rows))[0]

    def watch(self, part: PartRig, trial: Trial) -> None:
        """Run a decode step of two sequences, on arrays that report who reads their values."""
        session, ops = MixerSession(part, 0, 1), TrialOps(trial, part.binder)
        rows, step = trial.watched(self.inputs(2)), trial.step((0, 1, 0), (1, 1, 0))
        part.part(ops, part.weights, rows, step, session.state)

    def test_state_is_of_the_declared_kind(self) -> None:
        """The state says it is what the declaration says it is."""
        state = self.session().state
        kind = getattr(state, "kind", None)
        equal(f"{type(state).__name__}.kind", kind, self.declaration.state)

    def before_closing(self, session: Any) -> None:
        """Fail unless all memory is counted; then fill it with NaN for the next sequence."""
        arrays = list(_arrays_in(session.state))
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
        if self.declaration.state != "kv":
            skip(f"a {self.declaration.state} state begins with zeros, which count")
        for n in LENGTHS:
            rows, session = self.inputs(n + 2), MixerSession(self.rig, 0, zeros=_nan)
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
    in_block = ("mlp", "mlp_options")
    tolerance: float = 5e-5

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


def _arrays_in(thing: Any) -> Iterator[NDArray[Any]]:
    """Yield every array that a state holds, also in dicts, lists and tuples."""
    inner = vars(thing) if isinstance(thing, State) else thing
    if isinstance(thing, np.ndarray):
        yield thing
    elif isinstance(inner, Mapping | list | tuple):
        for part in inner.values() if isinstance(inner, Mapping) else inner:
            yield from _arrays_in(part)
