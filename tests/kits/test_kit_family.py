"""The family kit: families that say something wrong, and the check that says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("apr_qwen2", reason="the family that is broken here")

from apr_core.plugin import Contract
from apr_devkit.kits.checks import run_check
from apr_qwen2.family import Qwen2
from tests.kits.broken.families import assert_caught, changed_contract, kit_of, own_checks


def test_a_right_family_passes_on_references_alone():
    kit = kit_of()
    results = {c: run_check(kit, c) for c in own_checks()}
    assert {c: r.reason for c, r in results.items() if r.outcome == "failed"} == {}
    assert results["test_prefill_equals_decode"].outcome == "passed"


def test_every_check_is_shown_to_catch_something():
    here = Path(__file__)
    shown = here.read_text("utf-8") + here.with_name("test_kit_family_runs.py").read_text("utf-8")
    assert [c for c in own_checks() if c not in shown] == []


def test_an_architecture_of_everybody_is_named():
    kit = kit_of(architectures=("Qwen2ForCausalLM", "*"))
    assert_caught(kit, "test_its_own_config_leads_to_it", "claims ['*']")


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
    assert_caught(kit, "test_its_own_config_leads_to_it", "family that config() says is 'other'")


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


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"head_dim": 32}, "hidden_size and num_attention_heads * head_dim are 128"),
        ({"num_attention_heads": 4, "head_dim": 4}, "num_attention_heads and head_dim are 4"),
        ({"intermediate_size": 128}, "hidden_size and intermediate_size are 128"),
        ({"vocab_size": 320, "intermediate_size": 320}, "intermediate_size and vocab_size are 320"),
    ],
)
def test_sizes_that_happen_to_be_the_same_are_named(sizes, said):
    class WithHeadDim(Qwen2):
        def config(self, hf, generation=None):
            found = super().config(hf, generation)
            return replace(found, head_dim=hf.get("head_dim", found.head_dim))

    kit = kit_of(WithHeadDim)
    kit.tiny_config = Qwen2().tiny_config() | sizes
    assert_caught(kit, "test_sizes_tell_axes_apart", said)


def test_a_head_size_that_follows_from_others_may_be_what_it_is():
    config = Qwen2().config(Qwen2().tiny_config())
    assert config.num_heads * config.head_dim == config.hidden_size
    assert run_check(kit_of(), "test_sizes_tell_axes_apart").outcome == "passed"


def test_sampling_defaults_that_are_lost_are_named():
    class Forgetful(Qwen2):
        def config(self, hf, generation=None):
            return super().config(hf, None)

    check = "test_generation_defaults_are_read"
    assert_caught(kit_of(Forgetful), check, "eos_token_id of generation_config.json is lost")


def test_a_plan_that_means_other_norms_is_named():
    class Shifted(Qwen2):
        def plan(self, config):
            return replace(super().plan(config), norm_offset=1.0)

    assert_caught(kit_of(Shifted), "test_plan_fits_the_contract", "norm_offset of the plan is 1.0")


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


def test_a_shape_that_the_plan_does_not_mean_is_found():
    def widen(content):
        content["shape_template"]["k_proj"] = "[num_heads * head_dim, hidden_dim]"
        content["shape_template"]["k_bias"] = "[num_heads * head_dim]"

    kit = kit_of(changed_contract(widen))
    assert_caught(kit, "test_the_contract_fits_the_plan", "k_proj.weight has shape [128, 128]")


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


def test_a_family_without_a_tiny_config_is_told_so():
    class Silent(Qwen2):
        tiny_config = None

    said = "has no tiny_config()"
    assert_caught(kit_of(Silent), "test_plan_fits_the_contract", said)


def test_a_tiny_config_of_the_test_replaces_the_familys():
    kit = kit_of()
    kit.tiny_config = Qwen2().tiny_config() | {"num_hidden_layers": 3}
    assert kit().config.num_layers == 3
    assert run_check(kit, "test_logits_are_sane").outcome == "passed"
