"""The attention kit: mixers that are wrong in one way each, and the check that says so."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from apr_core.model.state import KVState, RecurrentState
from apr_core.plugin import Attention, Mixer, MixerExample, op
from apr_core.registry import Registry
from apr_devkit.kits import AttentionConformance
from apr_devkit.kits.checks import PluginConformance, checks_of, run_check

HIDDEN, HEADS, DIM = 32, 2, 16


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


def own_checks():
    return [c for c in checks_of(AttentionConformance) if not hasattr(PluginConformance, c)]


def failures(kit):
    results = [run_check(kit, check) for check in own_checks()]
    return {r.check: r.reason for r in results if r.outcome == "failed"}


def assert_caught(kit, check, said):
    result = run_check(kit, check)
    assert result.outcome == "failed", f"{check} {result.outcome}"
    assert said in result.reason, result.reason


def test_right_mixers_pass():
    assert failures(kit_of(Good)) == {}
    (failed,) = failures(kit_of(Sum, "recurrent")).items()
    assert failed[0] == "test_steps_can_be_recorded"
    assert "step.segments is read on the host in Sum (apr-mine, test_kit_attention.py:" in failed[1]


def test_every_check_is_shown_to_catch_something():
    shown = Path(__file__).read_text("utf-8")
    assert [c for c in own_checks() if c not in shown] == []


def test_two_weights_of_one_role_are_refused():
    class Twice(Good):
        vectors = ("q_bias", "input_norm")

        @staticmethod
        def example():
            found = Good.example()
            return MixerExample(found.options, HIDDEN, {**found.shapes, "input_norm": (HIDDEN,)})

    assert_caught(kit_of(Twice), "test_roles_are_named", "['input_norm'] are taken")


def test_an_example_that_lacks_a_weight_is_named():
    class Lacking(Good):
        vectors = ("q_bias", "k_bias")

    assert_caught(kit_of(Lacking), "test_roles_are_named", "'k_bias'")


def test_a_mixer_of_which_nothing_is_known_is_told_what_to_give():
    class Silent(Good):
        example = staticmethod(Mixer.example)

    assert_caught(kit_of(Silent), "test_roles_are_named", "example() -> MixerExample")


def test_an_op_without_cases_is_named():
    kit = kit_of(Good, brings=(("extra", f"{__name__}:extra"),))
    assert_caught(kit, "test_brought_ops_are_ops_with_cases", "no case for the ops ['extra']")


def test_an_op_called_otherwise_than_declared_is_named():
    kit = kit_of(Good, brings=(("other", f"{__name__}:extra"),))
    assert_caught(kit, "test_brought_ops_are_ops_with_cases", "the op 'extra'")


def test_a_state_of_another_kind_is_named():
    kit = kit_of(Good, state="recurrent")
    assert_caught(kit, "test_state_is_of_the_declared_kind", "KVState.kind is 'kv'")


class Mixed:
    """Makes a Good mixer whose state is another."""

    def __init_subclass__(cls, state, **options):
        cls.new_state = lambda self, states: state(states.zeros, HEADS, DIM)


def test_memory_that_is_not_given_back_is_counted():
    class Keeping(KVState):
        def close(self, slot):
            self.keys[-1 - slot] = self.keys.pop(slot)

    class Leaking(Mixed, Good, state=Keeping):
        pass

    assert_caught(kit_of(Leaking), "test_slots_open_and_close", "held though every slot is closed")


def test_memory_that_is_not_counted_is_found():
    class Modest(KVState):
        def nbytes(self):
            return 1 if self.keys else 0

    class Lying(Mixed, Good, state=Modest):
        pass

    assert_caught(kit_of(Lying), "test_slots_open_and_close", "nbytes() is 1")


def test_an_output_of_the_wrong_shape_or_type_is_found():
    class Longer(Good):
        def __call__(self, o, w, x, step, state):
            out = super().__call__(o, w, x, step, state)
            return np.concatenate([out, out], axis=1)

    class Wider(Good):
        def __call__(self, o, w, x, step, state):
            return super().__call__(o, w, x, step, state).astype(np.float64)

    check = "test_output_has_the_shape_of_the_input"
    assert_caught(kit_of(Longer), check, "found (1, 64), expected (1, 32)")
    assert_caught(kit_of(Wider), check, "found float64")


def test_a_mixer_with_a_memory_of_its_own_is_found():
    class Counting(Good):
        runs = 0

        def __call__(self, o, w, x, step, state):
            self.runs += 1
            return super().__call__(o, w, x, step, state) + np.float32(self.runs)

    assert_caught(kit_of(Counting), "test_output_has_the_shape_of_the_input", "two runs")


def test_prefill_that_differs_from_decode_is_found():
    class Ahead(Good):
        """Every row sees the mean of its step, so also what comes after it."""

        def __call__(self, o, w, x, step, state):
            x = x + 0.01 * x.mean(axis=0, keepdims=True)
            return super().__call__(o, w, x.astype(np.float32), step, state)

    assert_caught(kit_of(Ahead), "test_prefill_equals_decode", "one by one or at once")


def test_positions_that_begin_again_with_every_step_are_found():
    class Restarting(Good):
        def __call__(self, o, w, x, step, state):
            at = np.concatenate([np.arange(s.stop - s.start) for s in step.segments])
            x = x * (1 + 0.1 * at[:, None]).astype(np.float32)
            return super().__call__(o, w, x, step, state)

    assert_caught(kit_of(Restarting), "test_prefill_equals_decode", "2 tokens")


def test_a_batch_that_is_taken_for_one_sequence_is_found():
    class Blind(Sum):
        def __call__(self, o, w, x, step, state):
            sums = x.cumsum(axis=0)
            for seg in step.segments:
                total = state.get("total", seg.slot)
                sums[seg.start : seg.stop] += total
                total[...] = sums[seg.stop - 1]
            return o.linear(sums / np.float32(8), w.o_proj)

    kit = kit_of(Blind, "recurrent")
    assert_caught(kit, "test_batch_equals_each_alone", "70 and 5 tokens in one step")


def test_a_state_that_all_slots_share_is_found():
    class Shared(RecurrentState):
        def __init__(self, zeros, heads, dim):
            super().__init__(zeros, {"total": (HIDDEN,)})

        def get(self, name, slot):
            return next(iter(self.arrays[name].values()))

    class Sharing(Mixed, Sum, state=Shared):
        pass

    kit = kit_of(Sharing, "recurrent")
    assert_caught(kit, "test_slots_do_not_disturb_each_other", "beside other slots")


def test_a_false_rewindable_claim_is_found():
    class Rewindable(RecurrentState):
        rewindable = True

        def __init__(self, zeros, heads, dim):
            super().__init__(zeros, {"total": (HIDDEN,)})

    class Claiming(Mixed, Sum, state=Rewindable):
        pass

    kit = kit_of(Claiming, "recurrent")
    assert_caught(kit, "test_rewindable_claim_is_true", "20 tokens cut back to 7")


def test_a_snapshot_that_is_no_copy_is_found():
    class Views(RecurrentState):
        def __init__(self, zeros, heads, dim):
            super().__init__(zeros, {"total": (HIDDEN,)})

        def snapshot(self, slot, length):
            return {name: arrays[slot] for name, arrays in self.arrays.items()}

    class Viewing(Mixed, Sum, state=Views):
        pass

    kit = kit_of(Viewing, "recurrent")
    assert_caught(kit, "test_snapshots_resume", "snapshot after 1 tokens")


def test_a_read_of_what_was_never_written_is_found():
    class Greedy(KVState):
        """Hands out one position too many, with a weight of nothing: harmless but for NaN."""

        def append(self, slot, position, k, v):
            keys, values = super().append(slot, position, k, v)
            after = position + k.shape[0]
            spare = self.values[slot][:, after : after + 1].sum() * np.float32(0)
            return keys, values + spare

    class Reading(Mixed, Good, state=Greedy):
        pass

    kit = kit_of(Reading)
    assert run_check(kit, "test_prefill_equals_decode").outcome == "passed"
    assert_caught(kit, "test_unwritten_state_does_not_leak", "1 tokens in memory full of NaN")


def test_a_slot_that_remembers_its_last_sequence_is_found():
    class Remembering(RecurrentState):
        def __init__(self, zeros, heads, dim):
            super().__init__(zeros, {"total": (HIDDEN,)})
            self.old = {}

        def close(self, slot):
            self.old[slot] = self.arrays["total"][slot]
            super().close(slot)

        def open(self, slot):
            super().open(slot)
            if slot in self.old:
                self.arrays["total"][slot] = self.old.pop(slot)

    class Remembers(Mixed, Sum, state=Remembering):
        pass

    kit = kit_of(Remembers, "recurrent")
    assert_caught(kit, "test_slots_open_and_close", "held another sequence")


@pytest.mark.parametrize("what", ["input", "weight"])
def test_a_change_in_place_is_found(what):
    class Changing(Good):
        def __call__(self, o, w, x, step, state):
            changed = x if what == "input" else w.q_bias
            changed *= np.float32(2)
            return super().__call__(o, w, x, step, state)

    said = "the input: changed" if what == "input" else "q_bias: changed"
    assert_caught(kit_of(Changing), "test_weights_and_inputs_are_left_alone", said)
