"""The family kit: models that run wrongly, each in one way, and the check that says so."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("apr_qwen2", reason="the family that is broken here")

from apr_core.errors import BackendUnavailable
from apr_core.plugin import Backend
from apr_devkit.kits.checks import run_check
from apr_devkit.kits.rig import ReferenceBackend
from apr_qwen2.family import Qwen2
from apr_qwen2.mixers import FullAttention
from tests.kits.broken.families import assert_caught, kit_of, mixer, own_checks, with_state


def test_logits_of_nan_are_found():
    kit = kit_of(mixer=mixer(lambda x, step: x * np.nan))
    assert_caught(kit, "test_logits_are_sane", "not finite")


def test_a_model_without_memory_is_found():
    kit = kit_of(mixer=mixer(lambda x, step: x * 0))
    assert_caught(kit, "test_logits_are_sane", "the first token changes nothing later")


def of_the_step(x, step):
    return x + 0.1 * x.mean(axis=0)


def of_long_steps(x, step):
    return x * (1 + 0.01 * (len(x) > 64))


def of_the_batch(x, step):
    return x * (1 + 0.01 * len(step.segments))


@pytest.mark.parametrize(
    ("change", "check", "said"),
    [
        (of_the_step, "test_prefill_equals_decode", "2 tokens, one by one or at once"),
        (of_long_steps, "test_chunked_prefill_is_prefill", "chunks of 64 or at once"),
        (of_the_batch, "test_batch_equals_each_alone", "70 and 5 tokens in one step"),
    ],
)
def test_results_that_depend_on_how_the_work_was_cut_are_found(change, check, said):
    assert_caught(kit_of(mixer=mixer(change)), check, said)


def test_arithmetic_outside_ops_is_named_with_its_line():
    kit = kit_of(mixer=mixer(lambda x, step: x * 1))
    said = "arithmetic outside ops in Other (apr-mine, families.py:"
    assert_caught(kit, "test_steps_can_be_recorded", said)


def test_snapshots_that_lose_something_are_found():
    def losing(base):
        class Losing(base):
            def snapshot(self, slot, length):
                keys, values = super().snapshot(slot, length)
                return keys, values * np.float32(0.5)

        return Losing

    kit = kit_of(mixer=with_state(losing))
    assert_caught(kit, "test_snapshots_resume", "snapshot after 1 tokens")


def test_a_false_claim_to_be_rewindable_is_found():
    def only_growing(base):
        class Growing(base):
            """Appends where the last ones end, whatever the position says."""

            def append(self, slot, position, k, v):
                self.ends = getattr(self, "ends", {})
                start = self.ends.get(slot, 0)
                self.ends[slot] = start + len(k)
                return super().append(slot, start, k, v)

            def close(self, slot):
                super().close(slot)
                self.ends.pop(slot, None)

        return Growing

    kit = kit_of(mixer=with_state(only_growing))
    assert run_check(kit, "test_prefill_equals_decode").outcome == "passed"
    result = run_check(kit, "test_rewindable_claim_is_true")
    assert result.outcome == "failed", result


def test_slots_that_keep_their_memory_are_found():
    def keeping(base):
        class Keeping(base):
            def close(self, slot):
                pass

        return Keeping

    assert_caught(kit_of(mixer=with_state(keeping)), "test_slots_open_and_close", "bytes are held")


def test_a_backend_that_disagrees_with_the_references_is_found():
    kit = kit_of()
    kit().model._decoder.final_norm[:] *= np.float32(1.01)
    assert_caught(kit, "test_runs_on_references_alone", "differ by")


FIXED = "test_constants_come_from_the_config"


def test_an_epsilon_that_is_in_the_code_is_found():
    class Fixed(Qwen2):
        def plan(self, config):
            return replace(super().plan(config), norm_eps=1e-6)

    kit = kit_of(Fixed)
    assert_caught(kit, FIXED, "another rms_norm_eps in config.json changes nothing")
    others = [c for c in own_checks() if c not in (FIXED, "test_parity_with_other_constants")]
    assert not [c for c in others if run_check(kit, c).outcome == "failed"]


def test_a_base_of_rope_that_is_in_the_code_is_found():
    class Fixed(FullAttention):
        def __init__(self, *, rope_theta, **options):
            super().__init__(rope_theta=1e6, **options)

    assert_caught(kit_of(mixer=Fixed), FIXED, "another rope_theta in config.json changes nothing")


def test_a_config_without_such_constants_is_skipped_with_a_reason():
    constants = {"rms_norm_eps": 1e-6, "rope_theta": 1e6}

    class Guessing(Qwen2):
        def config(self, hf, generation=None):
            return super().config(constants | dict(hf), generation)

    kit = kit_of(Guessing)
    kit.tiny_config = {k: v for k, v in Qwen2().tiny_config().items() if k not in constants}
    for check in (FIXED, "test_parity_with_other_constants"):
        result = run_check(kit, check)
        assert result.outcome == "skipped" and "has none of rms_norm_eps, rope" in result.reason


def test_a_constant_that_is_read_wrongly_is_found_by_transformers():
    pytest.importorskip("transformers")

    class Clipping(Qwen2):
        def plan(self, config):
            return replace(super().plan(config), norm_eps=min(config.rms_norm_eps, 1e-3))

    kit = kit_of(Clipping)
    for check in (FIXED, "test_parity_with_transformers"):
        assert run_check(kit, check).outcome == "passed"
    said = "on backend reference and of transformers, with another rms_norm_eps: they differ by"
    assert_caught(kit, "test_parity_with_other_constants", said)


class Worse(ReferenceBackend):
    name = "ape"


class Best(ReferenceBackend):
    name = "zebra"


class BestHereButBroken(ReferenceBackend):
    def __init__(self, threads=None):
        raise BackendUnavailable("the device is in use", "Wait.")


def score_of_five():
    return 5, "five"


def score_of_nine():
    return 9, "nine"


WORSE = Backend("ape", f"{__name__}:Worse", summary="first by name")
ZEBRA = Backend("zebra", f"{__name__}:Best", probe=f"{__name__}:score_of_five", summary="best")
BROKEN = Backend(
    "broken", f"{__name__}:BestHereButBroken", probe=f"{__name__}:score_of_nine", summary="broken"
)


def test_it_runs_on_the_best_backend_that_can_be_made_and_failures_name_it():
    for others, name in (
        ([WORSE], "ape"), ([WORSE, ZEBRA], "zebra"), ([WORSE, ZEBRA, BROKEN], "zebra"),
    ):  # fmt: skip
        kit = kit_of(mixer=mixer(of_the_step), others=others)
        assert kit().model.backend.name == name
        assert_caught(kit, "test_prefill_equals_decode", f"on backend {name}: outputs differ by")


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda x, step: x * np.nan, "test_logits_are_sane"),
        (lambda x, step: x * 0, "test_logits_are_sane"),
        (of_long_steps, "test_chunked_prefill_is_prefill"),
        (of_the_batch, "test_batch_equals_each_alone"),
        (of_the_batch, "test_parity_with_transformers"),
    ],
)
def test_failures_of_every_run_name_the_backend(change, check):
    kit = kit_of(mixer=mixer(change), others=[ZEBRA])
    if "transformers" in check:
        pytest.importorskip("transformers")
    assert_caught(kit, check, "on backend zebra")


def test_a_backend_that_was_named_is_the_one():
    kit = kit_of(others=[WORSE, ZEBRA])
    kit.backend = "ape"
    assert kit().model.backend.name == "ape"


def test_a_rope_that_turns_the_wrong_way_is_found_by_transformers():
    pytest.importorskip("transformers")

    class Backwards(FullAttention):
        def __init__(self, **options):
            super().__init__(**options)
            self.constants = {"inv_freq": self.constants["inv_freq"] * np.float32(0.9)}

    kit = kit_of(mixer=Backwards)
    assert_caught(kit, "test_parity_with_transformers", "of transformers, 9 tokens: they differ by")


def test_without_the_oracle_parity_is_skipped_and_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    result = run_check(kit_of(), "test_parity_with_transformers")
    assert result.outcome == "skipped" and "torch is not installed" in result.reason
