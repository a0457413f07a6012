"""The family kit: families that are wrong in one way each, and the check that says so."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("apr_qwen2", reason="the family that is broken here")

from apr_core import Attention, Contract, Family
from apr_core.registry import Registry
from apr_core.testing import FamilyConformance
from apr_core.testing.checks import checks_of, run_check
from apr_core.testing.plugin import PluginConformance
from apr_qwen2.family import Qwen2
from apr_qwen2.mixers import FullAttention

OPS = ("linears", "linear", "rope", "attention")


def kit_of(family=Qwen2, mixer=FullAttention, **declared):
    """The kit for a family and its mixer, with nothing else installed: it runs on references."""
    here = sys.modules[__name__]
    for made in (family, mixer):
        setattr(here, made.__name__, made)
    facts = {
        "architectures": ("Qwen2ForCausalLM",), "model_types": ("qwen2",),
        "attention": ("full_attention",),
    } | declared  # fmt: skip
    declarations = [
        Family("qwen2", f"{__name__}:{family.__name__}", **facts),
        Attention("full_attention", f"{__name__}:{mixer.__name__}", ops=OPS),
    ]
    registry = Registry.from_declarations({"apr-mine": declarations})
    return type("Mine", (FamilyConformance,), {"family": "qwen2", "registry": registry})


def changed_contract(change):
    """A family whose contract was changed in place by `change(content)`."""
    content = copy.deepcopy(dict(Qwen2().contract().content))
    change(content)

    class Changed(Qwen2):
        def contract(self):
            return Contract(content, "changed")

    return Changed


def own_checks():
    return [c for c in checks_of(FamilyConformance) if not hasattr(PluginConformance, c)]


def assert_caught(kit, check, said):
    result = run_check(kit, check)
    assert result.outcome == "failed", f"{check} {result.outcome} {result.reason}"
    assert said in result.reason, result.reason


def test_a_right_family_passes_on_references_alone():
    kit = kit_of()
    results = {c: run_check(kit, c) for c in own_checks()}
    assert {c: r.reason for c, r in results.items() if r.outcome == "failed"} == {}
    assert results["test_prefill_equals_decode"].outcome == "passed"


def test_every_check_is_shown_to_catch_something():
    shown = Path(__file__).read_text("utf-8")
    assert [c for c in own_checks() if c not in shown] == []


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"architectures": ("Qwen2ForCausalLM", "OtherForCausalLM")}, "architectures: declared"),
        ({"model_types": ()}, "model_types: declared []"),
    ],
)
def test_a_declaration_and_a_contract_that_disagree_are_named(declared, said):
    assert_caught(kit_of(**declared), "test_its_own_config_leads_to_it", said)


def test_a_config_that_leads_to_nobody_is_named():
    class Elsewhere(Qwen2):
        def tiny_config(self):
            strange = {"architectures": ["OtherForCausalLM"], "model_type": "other"}
            return super().tiny_config() | strange

    kit = kit_of(Elsewhere)
    assert_caught(kit, "test_its_own_config_leads_to_it", "nobody could import tiny_config()")


def test_a_config_under_another_familys_name_is_named():
    class Renamed(Qwen2):
        def config(self, hf, generation=None):
            return replace(super().config(hf, generation), family="other")

    kit = kit_of(Renamed)
    assert_caught(kit, "test_its_own_config_leads_to_it", "config() says family 'other'")


def test_a_key_error_is_no_answer_to_a_missing_key():
    class Careless(Qwen2):
        def config(self, hf, generation=None):
            hf["num_attention_heads"]
            return super().config(hf, generation)

    said = "without num_attention_heads config() raises KeyError"
    assert_caught(kit_of(Careless), "test_missing_keys_are_named", said)


def test_an_invented_size_is_named():
    class Guessing(Qwen2):
        def config(self, hf, generation=None):
            return super().config({"hidden_size": 128} | dict(hf), generation)

    assert_caught(kit_of(Guessing), "test_missing_keys_are_named", "invents hidden_size")


def test_an_arithmetic_error_is_no_answer_to_nonsense():
    class Trusting(Qwen2):
        def config(self, hf, generation=None):
            hf.get("rms_norm_eps", 1) + 1
            return super().config(hf, generation)

    said = "with rms_norm_eps = 'many' config() raises TypeError"
    assert_caught(kit_of(Trusting), "test_nonsense_is_refused_by_name", said)


def test_sampling_defaults_that_are_lost_are_named():
    class Forgetful(Qwen2):
        def config(self, hf, generation=None):
            return super().config(hf, None)

    check = "test_generation_defaults_are_read"
    assert_caught(kit_of(Forgetful), check, "eos_token_id of generation_config.json is lost")


def test_a_config_that_is_read_otherwise_the_second_time_is_found():
    class Counting(Qwen2):
        reads = 0

        def config(self, hf, generation=None):
            self.reads += 1
            found = super().config(hf, generation)
            return replace(found, extra={**found.extra, "reads": self.reads})

    assert_caught(kit_of(Counting), "test_the_file_says_what_the_model_is", "from the checkpoint")


def test_a_mixer_that_is_not_declared_is_named():
    kit = kit_of(attention=("other_attention",))
    assert_caught(kit, "test_plan_fits_the_contract", "['full_attention']")


def test_a_plan_that_means_other_norms_is_named():
    class Shifted(Qwen2):
        def plan(self, config):
            return replace(super().plan(config), norm_offset=1.0)

    assert_caught(kit_of(Shifted), "test_plan_fits_the_contract", "norm_offset is 1.0 in the plan")


def test_a_weight_that_no_mixer_reads_is_named():
    class WithoutBias(Qwen2):
        def plan(self, config):
            plan = super().plan(config)
            blocks = tuple(replace(b, options=b.options | {"bias": False}) for b in plan.blocks)
            return replace(plan, blocks=blocks)

    said = "['k_bias', 'q_bias', 'v_bias'], which nothing reads"
    assert_caught(kit_of(WithoutBias), "test_plan_fits_the_contract", said)


def test_two_roles_of_one_name_are_found():
    def share(content):
        per_layer = content["tensor_template"]["per_layer"]
        per_layer["v_proj"] = per_layer["k_proj"]

    kit = kit_of(changed_contract(share))
    assert_caught(kit, "test_wrong_tensors_are_named", "two roles share a tensor's name")


def test_a_contract_that_lets_tensors_pass_is_found():
    class Lenient(Contract):
        def _refuse(self, missing, unexpected, misshapen):
            super()._refuse(missing, [], misshapen)

    class Letting(Qwen2):
        def contract(self):
            return Lenient(super().contract().content, "lenient")

    said = "although nobody.reads.this is wrong or missing"
    assert_caught(kit_of(Letting), "test_wrong_tensors_are_named", said)


def test_a_wrong_shape_in_the_contract_is_found_by_transformers():
    pytest.importorskip("transformers")

    def transpose(content):
        content["shape_template"]["down_proj"] = "[intermediate_dim, hidden_dim]"

    kit = kit_of(changed_contract(transpose))
    assert_caught(kit, "test_contract_is_that_of_transformers", "mlp.down_proj.weight has shape")
    assert run_check(kit, "test_logits_are_sane").outcome == "failed"


def test_a_tensor_the_contract_forgets_is_found_by_transformers():
    pytest.importorskip("transformers")

    def forget(content):
        for part in ("shape_template", "quantization_policy"):
            del content[part]["q_bias"]
        del content["tensor_template"]["per_layer"]["q_bias"]

    kit = kit_of(changed_contract(forget))
    check = "test_contract_is_that_of_transformers"
    assert_caught(kit, check, "model.layers.0.self_attn.q_proj.bias")


def test_a_value_that_changes_on_the_way_is_found(monkeypatch):
    from apr_core.testing import running

    real = running.to_float32
    monkeypatch.setattr(running, "to_float32", lambda *a: real(*a) * np.float32(1.01))
    assert_caught(kit_of(), "test_round_trip_keeps_every_bit", "f32: 26 tensors changed")


def mixer(change):
    """Full attention whose input is changed first, by `change(x, step)`."""

    class Other(FullAttention):
        def __call__(self, o, w, x, step, state):
            return super().__call__(o, w, change(x, step).astype(np.float32), step, state)

    return Other


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
        (of_the_step, "test_prefill_equals_decode", "2 tokens at once, or 1"),
        (of_long_steps, "test_chunked_prefill_is_prefill", "chunks of 64 or at once"),
        (of_the_batch, "test_batch_equals_each_alone", "first of two"),
    ],
)
def test_results_that_depend_on_how_the_work_was_cut_are_found(change, check, said):
    assert_caught(kit_of(mixer=mixer(change)), check, said)


def with_state(change):
    """Full attention whose state's class is `change(class of the real one)`."""

    class Other(FullAttention):
        def new_state(self, states):
            made = super().new_state(states)
            made.__class__ = change(type(made))
            return made

    return Other


def test_snapshots_that_lose_something_are_found():
    def losing(base):
        class Losing(base):
            def snapshot(self, slot, length):
                keys, values = super().snapshot(slot, length)
                return keys, values * np.float32(0.5)

        return Losing

    kit = kit_of(mixer=with_state(losing))
    assert_caught(kit, "test_snapshots_resume", "from a snapshot after 1 tokens")


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
    result = run_check(kit, "test_rewound_sequences_go_on")
    assert result.outcome == "failed", result


def test_slots_that_keep_their_memory_are_found():
    def keeping(base):
        class Keeping(base):
            def close(self, slot):
                pass

        return Keeping

    assert_caught(kit_of(mixer=with_state(keeping)), "test_slots_are_reused", "bytes of state")


def test_a_backend_that_disagrees_with_the_references_is_found():
    kit = kit_of()
    kit.kept("model", lambda: kit().tiny.load())._decoder.final_norm[:] *= np.float32(1.01)
    assert_caught(kit, "test_runs_on_references_alone", "differ by")


def test_a_rope_that_turns_the_wrong_way_is_found_by_transformers():
    pytest.importorskip("transformers")

    class Backwards(FullAttention):
        def __init__(self, **options):
            super().__init__(**options)
            self.constants = {"inv_freq": self.constants["inv_freq"] * np.float32(0.9)}

    kit = kit_of(mixer=Backwards)
    assert_caught(kit, "test_parity_with_transformers", "differs from transformers by")


def test_a_family_without_a_tiny_config_is_told_so():
    class Silent(Qwen2):
        tiny_config = None

    said = "has no tiny_config()"
    assert_caught(kit_of(Silent), "test_plan_fits_the_contract", said)


def test_a_tiny_config_of_the_test_replaces_the_familys():
    kit = kit_of()
    kit.tiny_config = Qwen2().tiny_config() | {"num_hidden_layers": 3}
    assert kit().config.num_layers == 3
    assert run_check(kit, "test_round_trip_keeps_every_bit").outcome == "passed"


def test_without_the_oracle_parity_is_skipped_and_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    result = run_check(kit_of(), "test_parity_with_transformers")
    assert result.outcome == "skipped" and "torch is not installed" in result.reason
