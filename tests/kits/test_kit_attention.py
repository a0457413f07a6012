"""The attention kit: mixers that are wrong in one way each, and the check that says so."""

from __future__ import annotations

import sys

import numpy as np

from apr_core.model.state import KVState, RecurrentState
from apr_core.plugin import Attention, Mixer, MixerExample, op
from apr_core.registry import Registry
from apr_devkit.kits import AttentionConformance
from apr_devkit.kits.checks import run_check
from tests.kits.caught import Wrong, assert_caught, own_checks

HIDDEN, HEADS, DIM = 32, 2, 16
RECURRENT = {"state": "recurrent"}
WRONG = Wrong()
caught = WRONG.caught


class Good(Mixer):
    """Attention without positions."""

    matrices = ("q_proj", "k_proj", "v_proj", "o_proj")
    vectors = ("q_bias",)

    def __init__(self, *, heads):
        self.heads = heads
        self.constants = {"ones": np.ones(DIM, np.float32)}

    @staticmethod
    def example():
        square = dict.fromkeys(Good.matrices, (HIDDEN, HIDDEN))
        return MixerExample({"heads": HEADS}, HIDDEN, {**square, "q_bias": (HIDDEN,)})

    def new_state(self, states):
        return states.kv(self.heads, DIM)

    def __call__(self, o, w, x, step, state):
        products = o.linears(x, (w.q_proj, w.k_proj, w.v_proj), (w.q_bias, None, None))
        q, k, v = (y.reshape(-1, self.heads, DIM) for y in products)
        out = o.attention(q, k, v, state, step, DIM**-0.5)
        return o.linear(out.reshape(len(x), HIDDEN), w.o_proj)


class Sum(Mixer):
    """A running sum of what it is fed: the smallest recurrent mixer."""

    matrices = ("o_proj",)

    @staticmethod
    def example():
        return MixerExample({}, HIDDEN, {"o_proj": (HIDDEN, HIDDEN)})

    def new_state(self, states):
        return states.recurrent(total=(HIDDEN,))

    def __call__(self, o, w, x, step, state):
        outs = []
        for seg in step.segments:
            total = state.get("total", seg.slot)
            sums = np.cumsum(np.concatenate([total[None], x[seg.start : seg.stop]]), axis=0)[1:]
            total[...] = sums[-1]
            outs.append(sums / np.float32(8))
        return o.linear(np.concatenate(outs), w.o_proj)


@op
def extra(xp, x):
    return x


def kit_of(mixer, state="kv", **declared):
    """The kit for one mixer of this module, with nothing else installed."""
    setattr(sys.modules[__name__], mixer.__name__, mixer)
    declaration = Attention("mine", f"{__name__}:{mixer.__name__}", state=state, **declared)
    registry = Registry.from_declarations({"apr-mine": [declaration]})
    members = {"attention": "mine", "registry": registry}
    return type("Mine", (AttentionConformance,), members)


def test_right_mixers_pass():
    for mixer, how in ((Good, {}), (Sum, RECURRENT)):
        results = [run_check(kit_of(mixer, **how), check) for check in own_checks(kit_of(mixer))]
        failed = {r.check: r.reason for r in results if r.outcome == "failed"}
        assert list(failed) == ["test_steps_can_be_recorded"] * (mixer is Sum), failed
    said = "step.segments is read on the host in Sum (apr-mine, test_kit_attention.py:"
    assert said in failed["test_steps_can_be_recorded"]


def keeping(base):
    """A mixer whose state is the decorated class, made as a KVState is."""

    def decorated(state):
        members = {"new_state": lambda self, states: state(states.zeros, HEADS, DIM)}
        return type(f"{base.__name__}With{state.__name__}", (base,), members)

    return decorated


class Totals(RecurrentState):
    """The state of `Sum`."""

    def __init__(self, zeros, heads, dim):
        super().__init__(zeros, {"total": (HIDDEN,)})


WRONG.add(Good, "state_is_of_the_declared_kind", "KVState.kind is 'kv'", state="recurrent")
for name, said in (("extra", "no case for the ops ['extra']"), ("other", "the op 'extra'")):
    brings = ((name, f"{__name__}:extra"),)
    WRONG.add(Good, "brought_ops_are_ops_with_cases", said, brings=brings)


@caught("roles_are_named", "['input_norm'] are taken")
class TwoOfOneRole(Good):
    vectors = ("q_bias", "input_norm")

    @staticmethod
    def example():
        example = Good.example()
        return MixerExample(example.options, HIDDEN, {**example.shapes, "input_norm": (HIDDEN,)})


@caught("roles_are_named", "'k_bias'")
class LacksAShape(Good):
    vectors = ("q_bias", "k_bias")


@caught("roles_are_named", "example() -> MixerExample")
class Silent(Good):
    example = staticmethod(Mixer.example)


@caught("slots_open_and_close", "held though every slot is closed")
@keeping(Good)
class NotGivenBack(KVState):
    def close(self, slot):
        self.keys[-1 - slot] = self.keys.pop(slot)


@caught("slots_open_and_close", "nbytes() is 1")
@keeping(Good)
class NotCounted(KVState):
    def nbytes(self):
        return 1 if self.keys else 0


SHAPE = "output_has_the_shape_of_the_input"


@caught(SHAPE, "found (1, 64), expected (1, 32)")
class Longer(Good):
    def __call__(self, o, w, x, step, state):
        out = super().__call__(o, w, x, step, state)
        return np.concatenate([out, out], axis=1)


@caught(SHAPE, "found float64")
class Wider(Good):
    def __call__(self, o, w, x, step, state):
        return super().__call__(o, w, x, step, state).astype(np.float64)


@caught(SHAPE, "two runs")
class Counting(Good):
    """Has a memory of its own."""

    runs = 0

    def __call__(self, o, w, x, step, state):
        self.runs += 1
        return super().__call__(o, w, x, step, state) + np.float32(self.runs)


@caught("prefill_equals_decode", "one by one or at once")
class Ahead(Good):
    """Every row sees the mean of its step, so also what comes after it."""

    def __call__(self, o, w, x, step, state):
        x = x + 0.01 * x.mean(axis=0, keepdims=True)
        return super().__call__(o, w, x.astype(np.float32), step, state)


@caught("prefill_equals_decode", "2 tokens")
class Restarting(Good):
    """Positions begin again with every step."""

    def __call__(self, o, w, x, step, state):
        at = np.concatenate([np.arange(s.stop - s.start) for s in step.segments])
        x = x * (1 + 0.1 * at[:, None]).astype(np.float32)
        return super().__call__(o, w, x, step, state)


@caught("batch_equals_each_alone", "70 and 5 tokens in one step", **RECURRENT)
class Blind(Sum):
    """Takes a batch for one sequence."""

    def __call__(self, o, w, x, step, state):
        sums = x.cumsum(axis=0)
        for seg in step.segments:
            total = state.get("total", seg.slot)
            sums[seg.start : seg.stop] += total
            total[...] = sums[seg.stop - 1]
        return o.linear(sums / np.float32(8), w.o_proj)


@caught("slots_do_not_disturb_each_other", "beside other slots", **RECURRENT)
@keeping(Sum)
class OneForAllSlots(Totals):
    def get(self, name, slot):
        return next(iter(self.arrays[name].values()))


@caught("snapshots_resume", "snapshot after 1 tokens", **RECURRENT)
@keeping(Sum)
class SnapshotsAreViews(Totals):
    def snapshot(self, slot, length):
        return {name: arrays[slot] for name, arrays in self.arrays.items()}


@keeping(Good)
class ReadsTheUnwritten(KVState):
    """Hands out one position too many, with a weight of nothing: harmless but for NaN."""

    def append(self, slot, position, k, v):
        keys, values = super().append(slot, position, k, v)
        after = position + k.shape[0]
        spare = self.values[slot][:, after : after + 1].sum() * np.float32(0)
        return keys, values + spare


def test_a_read_of_what_was_never_written_is_found():
    kit = kit_of(ReadsTheUnwritten)
    assert run_check(kit, "test_prefill_equals_decode").outcome == "passed"
    assert_caught(kit, "test_unwritten_state_does_not_leak", "1 tokens in memory full of NaN")


@caught("slots_open_and_close", "held another sequence", **RECURRENT)
@keeping(Sum)
class RemembersTheLast(Totals):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.old = {}

    def close(self, slot):
        self.old[slot] = self.arrays["total"][slot]
        super().close(slot)

    def open(self, slot):
        super().open(slot)
        if slot in self.old:
            self.arrays["total"][slot] = self.old.pop(slot)


@caught(SHAPE, "the input: changed")
class ChangesItsInput(Good):
    def __call__(self, o, w, x, step, state):
        x *= np.float32(2)
        return super().__call__(o, w, x, step, state)


@caught(SHAPE, "q_bias: changed")
class ChangesAWeight(Good):
    def __call__(self, o, w, x, step, state):
        w.q_bias *= np.float32(2)
        return super().__call__(o, w, x, step, state)


@WRONG.each
def test_a_wrong_mixer_is_caught(wrong, check, said, how):
    assert_caught(kit_of(wrong, **how), check, said)


def test_every_check_is_shown_to_catch_something():
    elsewhere = {"test_steps_can_be_recorded", "test_unwritten_state_does_not_leak"}
    assert WRONG.checks() | elsewhere == set(own_checks(AttentionConformance))
