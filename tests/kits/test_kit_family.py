"""The family kit: families that say something wrong or run wrongly, and the check that says so."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("apr_qwen2", reason="the family that is broken here")

from apr_core.errors import BackendUnavailable
from apr_core.plugin import Attention, Backend, Contract, Family, FamilyPlugin
from apr_core.registry import Registry
from apr_core.runtime import ReferenceBackend
from apr_devkit.kits import FamilyConformance
from apr_devkit.kits.checks import run_check
from apr_qwen2.family import Qwen2
from apr_qwen2.mixers import FullAttention
from tests.kits.caught import Wrong, assert_caught, own_checks

WRONG, WITH_ORACLE = Wrong(), Wrong()  # the second need transformers
caught = WRONG.caught


def kit_of(family=Qwen2, mixer=FullAttention, others=(), tiny=None, **declared):
    """The kit for a family and its mixer, beside `others`. Without a backend among them it runs on
    references. `tiny` changes the config.json.
    """
    here = sys.modules[__name__]
    for target in (family, mixer):
        setattr(here, target.__name__, target)
    facts = {"architectures": ("Qwen2ForCausalLM",), "model_types": ("qwen2",)} | declared
    declarations = [
        Family("qwen2", f"{__name__}:{family.__name__}", **facts),
        Attention("full_attention", f"{__name__}:{mixer.__name__}"),
    ]
    registry = Registry.from_declarations({"apr-mine": declarations, "others": list(others)})
    members = {"family": "qwen2", "registry": registry}
    if tiny:
        members["tiny_config"] = Qwen2().tiny_config() | tiny
    return type("Mine", (FamilyConformance,), members)


def test_a_right_family_passes_on_references_alone():
    kit = kit_of()
    results = {c: run_check(kit, c) for c in own_checks(kit)}
    assert {c: r.reason for c, r in results.items() if r.outcome == "failed"} == {}
    assert results["test_prefill_equals_decode"].outcome == "passed"


# what a family says

LEADS, KEYS = "its_own_config_leads_to_it", "missing_keys_and_nonsense_are_named"
WRONG.add(Qwen2, LEADS, "claims ['*']", architectures=("Qwen2ForCausalLM", "*"))


@caught(LEADS, "nobody could import tiny_config()")
class LeadsToNobody(Qwen2):
    def tiny_config(self):
        strange = {"architectures": ["OtherForCausalLM"], "model_type": "other"}
        return super().tiny_config() | strange


@caught(LEADS, "family that config() says is 'other'")
class Renamed(Qwen2):
    def config(self, hf, generation=None):
        return replace(super().config(hf, generation), family="other")


@caught(KEYS, "without num_attention_heads config() raises KeyError")
class Careless(Qwen2):
    def config(self, hf, generation=None):
        hf["num_attention_heads"]
        return super().config(hf, generation)


@caught(KEYS, "invents hidden_size")
class Guessing(Qwen2):
    def config(self, hf, generation=None):
        return super().config({"hidden_size": 128} | dict(hf), generation)


@caught(KEYS, "with rms_norm_eps = 'many' config() raises TypeError")
class Trusting(Qwen2):
    def config(self, hf, generation=None):
        hf.get("rms_norm_eps", 1) + 1
        return super().config(hf, generation)


class WithHeadDim(Qwen2):
    def config(self, hf, generation=None):
        config = super().config(hf, generation)
        return replace(config, head_dim=hf.get("head_dim", config.head_dim))


for sizes, words in (
    ({"head_dim": 32}, "hidden_size and num_attention_heads * head_dim are 128"),
    ({"num_attention_heads": 4, "head_dim": 4}, "num_attention_heads and head_dim are 4"),
    ({"intermediate_size": 128}, "hidden_size and intermediate_size are 128"),
    ({"vocab_size": 320, "intermediate_size": 320}, "intermediate_size and vocab_size are 320"),
):
    WRONG.add(WithHeadDim, "sizes_tell_axes_apart", words, tiny=sizes)


def test_a_head_size_that_follows_from_others_may_be_what_it_is():
    config = Qwen2().config(Qwen2().tiny_config())
    assert config.num_heads * config.head_dim == config.hidden_size
    assert run_check(kit_of(), "test_sizes_tell_axes_apart").outcome == "passed"


@caught("generation_defaults_are_read", "eos_token_id of generation_config.json is lost")
class Forgetful(Qwen2):
    def config(self, hf, generation=None):
        return super().config(hf, None)


@caught("plan_fits_the_contract", "norm_offset of the plan is 1.0")
class Shifted(Qwen2):
    def plan(self, config):
        return replace(super().plan(config), norm_offset=1.0)


@caught("plan_fits_the_contract", "q_proj.bias, role 'q_bias' of the contract")
class WithoutBias(Qwen2):
    def plan(self, config):
        plan = super().plan(config)
        blocks = tuple(replace(b, options=b.options | {"bias": False}) for b in plan.blocks)
        return replace(plan, blocks=blocks)


@caught("plan_fits_the_contract", "has no tiny_config()")
class Silent(Qwen2):
    tiny_config = FamilyPlugin.tiny_config  # as if there were none


def contract(change):
    """A family whose contract was changed in place by the decorated function."""
    content = copy.deepcopy(dict(Qwen2().contract().content))
    change(content)
    members = {"contract": lambda self: Contract(content, "changed")}
    return type(change.__name__, (Qwen2,), members)


@caught("wrong_tensors_are_named", "two roles share a tensor's name")
@contract
def two_of_one_name(content):
    per_layer = content["tensor_template"]["per_layer"]
    per_layer["v_proj"] = per_layer["k_proj"]


@caught("plan_fits_the_contract", "k_proj.weight has shape [128, 128]")
@contract
def wide_keys(content):
    content["shape_template"]["k_proj"] = "[num_heads * head_dim, hidden_dim]"
    content["shape_template"]["k_bias"] = "[num_heads * head_dim]"


class Lenient(Contract):
    def _refuse(self, missing, unexpected, misshapen):
        super()._refuse(missing, [], misshapen)


@caught("wrong_tensors_are_named", "although nobody.reads.this is wrong or missing")
class LetsTensorsPass(Qwen2):
    def contract(self):
        return Lenient(super().contract().content, "lenient")


OF_TRANSFORMERS = "contract_is_that_of_transformers"


@WITH_ORACLE.caught(OF_TRANSFORMERS, "mlp.down_proj.weight has shape")
@caught("logits_are_sane", "")
@contract
def transposed(content):
    content["shape_template"]["down_proj"] = "[intermediate_dim, hidden_dim]"


@WITH_ORACLE.caught(OF_TRANSFORMERS, "model.layers.0.self_attn.q_proj.bias")
@contract
def a_tensor_less(content):
    for part in ("shape_template", "quantization_policy"):
        del content[part]["q_bias"]
    del content["tensor_template"]["per_layer"]["q_bias"]


def test_a_tiny_config_of_the_test_replaces_the_familys():
    kit = kit_of(tiny={"num_hidden_layers": 3})
    assert kit().config.num_layers == 3
    assert run_check(kit, "test_logits_are_sane").outcome == "passed"


# how it runs


def mixer(change):
    """Full attention whose input is changed first, by `change(x, step)`."""

    class Other(FullAttention):
        def __call__(self, o, w, x, step, state):
            return super().__call__(o, w, change(x, step).astype(np.float32), step, state)

    return Other


def state(change):
    """Full attention whose state's class is the decorated one, derived from the real one."""

    class Other(FullAttention):
        def new_state(self, states):
            state = super().new_state(states)
            state.__class__ = change(type(state))
            return state

    return Other


def of_the_step(x, step):
    return x + 0.1 * x.mean(axis=0)


def of_long_steps(x, step):
    return x * (1 + 0.01 * (len(x) > 64))


def of_the_batch(x, step):
    return x * (1 + 0.01 * len(step.segments))


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

for change, name, words in (
    (lambda x, step: x * np.nan, "logits_are_sane", "logits are not finite, on backend zebra"),
    (lambda x, step: x * 0, "logits_are_sane", "the first token changes nothing later, on backend"),
    (of_the_step, "prefill_equals_decode", "2 tokens, one by one or at once, on backend zebra"),
    (of_long_steps, "chunked_prefill_is_prefill", "chunks of 64 or at once, on backend zebra"),
    (of_the_batch, "batch_equals_each_alone", "70 and 5 tokens in one step or each alone, on"),
    (lambda x, step: x * 1, "steps_can_be_recorded",
     "arithmetic outside ops in Other (apr-mine, test_kit_family.py:"),
):  # fmt: skip
    WRONG.add(Qwen2, name, words, mixer=mixer(change), others=[ZEBRA])
WITH_ORACLE.add(
    Qwen2,
    "parity_with_transformers",
    "on backend zebra and of transformers, 9 tokens: they",
    mixer=mixer(of_the_batch),
    others=[ZEBRA],
)


@state
def losing(base):
    class Losing(base):
        def snapshot(self, slot, length):
            since, keys, values = super().snapshot(slot, length)
            return since, keys, values * np.float32(0.5)

    return Losing


@state
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


@state
def staying(base):
    return type("Staying", (base,), {"close": lambda self, slot: None})


WRONG.add(Qwen2, "snapshots_resume", "snapshot after 1 tokens", mixer=losing)
WRONG.add(Qwen2, "snapshots_resume", "snapshot after 1 tokens", mixer=only_growing)
WRONG.add(Qwen2, "slots_open_and_close", "bytes are held", mixer=staying)


def test_a_backend_that_disagrees_with_the_references_is_found():
    kit = kit_of()
    kit().model._decoder.weights.final_norm[:] *= np.float32(1.01)
    assert_caught(kit, "test_runs_on_references_alone", "differ by")


FIXED, ORACLE = "constants_come_from_the_config", "parity_with_other_constants"


class FixedEpsilon(Qwen2):
    def plan(self, config):
        return replace(super().plan(config), norm_eps=1e-6)


def test_an_epsilon_that_is_in_the_code_is_found_by_one_check_alone():
    kit = kit_of(FixedEpsilon)
    assert_caught(kit, f"test_{FIXED}", "another rms_norm_eps in config.json changes nothing")
    others = [c for c in own_checks(kit) if c not in (f"test_{FIXED}", f"test_{ORACLE}")]
    assert not [c for c in others if run_check(kit, c).outcome == "failed"]


class FixedBase(FullAttention):
    def __init__(self, *, rope_theta, **options):
        super().__init__(rope_theta=1e6, **options)


WRONG.add(Qwen2, FIXED, "another rope_theta in config.json changes nothing", mixer=FixedBase)


def test_a_config_without_such_constants_is_skipped_with_a_reason():
    constants = {"rms_norm_eps": 1e-6, "rope_theta": 1e6}

    class Guessing(Qwen2):
        def config(self, hf, generation=None):
            return super().config(constants | dict(hf), generation)

    kit = kit_of(Guessing)
    kit.tiny_config = {k: v for k, v in Qwen2().tiny_config().items() if k not in constants}
    for check in (FIXED, ORACLE):
        result = run_check(kit, f"test_{check}")
        assert result.outcome == "skipped" and "has none of rms_norm_eps, rope" in result.reason


@WITH_ORACLE.caught(
    ORACLE, "on backend reference and of transformers, with another rms_norm_eps: they differ by"
)
class Clipping(Qwen2):
    """Reads a constant wrongly; the other checks do not see it."""

    def plan(self, config):
        return replace(super().plan(config), norm_eps=min(config.rms_norm_eps, 1e-3))


def test_what_only_transformers_finds_passes_the_other_checks():
    kit = kit_of(Clipping)
    for check in (FIXED, "parity_with_transformers"):
        assert run_check(kit, f"test_{check}").outcome in ("passed", "skipped")


class Backwards(FullAttention):
    def __init__(self, **options):
        super().__init__(**options)
        self.constants = {"inv_freq": self.constants["inv_freq"] * np.float32(0.9)}


WITH_ORACLE.add(Qwen2, "parity_with_transformers", "they differ by", mixer=Backwards)


@WRONG.each
def test_a_wrong_family_is_caught(wrong, check, said, how):
    assert_caught(kit_of(wrong, **how), check, said)


@WITH_ORACLE.each
def test_a_wrong_family_is_caught_by_transformers(wrong, check, said, how):
    pytest.importorskip("transformers")
    assert_caught(kit_of(wrong, **how), check, said)


def test_every_check_is_shown_to_catch_something():
    elsewhere = {"test_runs_on_references_alone"}
    shown = WRONG.checks() | WITH_ORACLE.checks() | elsewhere
    assert shown == set(own_checks(FamilyConformance))


def test_it_runs_on_the_best_backend_that_can_be_made_and_failures_name_it():
    for others, name in (
        ([WORSE], "ape"), ([WORSE, ZEBRA], "zebra"), ([WORSE, ZEBRA, BROKEN], "zebra"),
    ):  # fmt: skip
        kit = kit_of(mixer=mixer(of_the_step), others=others)
        assert kit().model.backend.name == name
        assert_caught(kit, "test_prefill_equals_decode", f"on backend {name}: outputs differ by")


def test_a_backend_that_was_named_is_the_one():
    kit = kit_of(others=[WORSE, ZEBRA])
    kit.backend = "ape"
    assert kit().model.backend.name == "ape"


def test_without_the_oracle_parity_is_skipped_and_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    result = run_check(kit_of(), "test_parity_with_transformers")
    assert result.outcome == "skipped" and "torch is not installed" in result.reason
