"""Qwen3.5: every published size, both configurations, and what is refused."""

from __future__ import annotations

import copy
import math

import pytest

from apr_core.errors import ContractError
from apr_qwen3_5.family import Qwen35

# size -> (config fields, parameters of the text model without A_log, dt_bias and the linear norm,
# of MTP, tensors of the text model); counts as published for the checkpoints
SIZES = {
    "0.8b": ((1024, 24, 3584, 8, 2, 16, True), 752_390_144, 20_452_864, 320),
    "2b": ((2048, 24, 6144, 8, 2, 16, True), 1_881_822_208, 60_828_160, 320),
    "4b": ((2560, 32, 9216, 16, 4, 32, True), 4_205_746_688, 120_599_552, 426),
    "9b": ((4096, 32, 12288, 16, 4, 32, False), 8_953_798_656, 243_290_624, 427),
    "27b": ((5120, 64, 17408, 24, 4, 48, False), 26_895_987_712, 424_699_392, 851),
}


def text_config(size):
    hidden, layers, ffn, heads, kv, value_heads, tied = SIZES[size][0]
    return {
        "model_type": "qwen3_5_text", "hidden_size": hidden, "num_hidden_layers": layers,
        "intermediate_size": ffn, "num_attention_heads": heads, "num_key_value_heads": kv,
        "head_dim": 256, "vocab_size": 248320, "max_position_embeddings": 262144,
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "attention_bias": False,
        "attn_output_gate": True, "full_attention_interval": 4,
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * (layers // 4),
        "linear_conv_kernel_dim": 4, "linear_num_key_heads": 16, "linear_key_head_dim": 128,
        "linear_num_value_heads": value_heads, "linear_value_head_dim": 128,
        "eos_token_id": 248044, "mtp_num_hidden_layers": 1, "tie_word_embeddings": tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000000,
                            "partial_rotary_factor": 0.25, "mrope_section": [11, 11, 10],
                            "mrope_interleaved": True},
    }  # fmt: skip


def nested(size="9b", **changes):
    text = text_config(size)
    tied = text.pop("tie_word_embeddings")  # 9B has it at the top level only
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5",
        "text_config": text | changes, "tie_word_embeddings": tied, "vision_config": {"depth": 12},
    }  # fmt: skip


def flat(size="9b", **changes):
    return {"architectures": ["Qwen3_5ForCausalLM"]} | text_config(size) | changes


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [nested, flat])
def test_contract_has_the_published_number_of_parameters(size, make):
    family = Qwen35()
    config, contract = family.config(make(size)), family.contract()
    _, text, mtp, tensors = SIZES[size]
    for layout in ("published", "flat", "nested"):
        rules = contract.rules(config, layout)
        assert len({r.name for r in rules}) == len(rules) == tensors
        assert text == sum(
            math.prod(r.shape) for r in rules if r.role not in ("A_log", "dt_bias", "linear_norm")
        )
    carried = contract.carried(config)
    assert len(carried) == 15 and sum(math.prod(r.shape) for r in carried) == mtp


@pytest.mark.parametrize("size", SIZES)
def test_both_layouts_mean_the_same_and_agree_with_the_variant(size):
    family = Qwen35()
    config, other = family.config(nested(size)), family.config(flat(size))
    assert config.dims() == other.dims() and config.layer_types == other.layer_types
    assert config.tied_embeddings == other.tied_embeddings == SIZES[size][0][-1]
    contract = family.contract()
    assert contract.variant_of(config) == size
    variant = contract.variants[size]
    dims = config.dims()
    known = {k: v for k, v in variant.items() if k in dims}
    assert len(known) >= 12 and known == {k: dims[k] for k in known}
    assert (variant["rope_theta"], config.rope_theta) == (10_000_000, 1e7)
    assert variant["tied_embeddings"] is config.tied_embeddings
    assert config.extra["rotary_dim"] == 256 * variant["partial_rotary_factor"] == 64


def test_plan_has_full_attention_every_fourth_layer():
    family = Qwen35()
    plan = family.plan(family.config(nested("27b")))
    full = [n for n, block in enumerate(plan.blocks) if block.mixer == "gated_attention"]
    assert full == list(range(3, 64, 4)) and plan.norm_offset == 1.0
    assert plan.blocks[3].options == {
        "num_heads": 24,
        "num_kv_heads": 4,
        "head_dim": 256,
        "rope_theta": 1e7,
        "rotary_dim": 64,
        "rope_scaling": {},
        "norm_eps": 1e-6,
        "norm_offset": 1.0,
    }
    assert plan.blocks[0].options == {
        "num_k_heads": 16,
        "num_v_heads": 48,
        "k_head_dim": 128,
        "v_head_dim": 128,
        "conv_kernel": 4,
        "norm_eps": 1e-6,
    }


@pytest.mark.parametrize("make", [nested, flat])
def test_layer_types_from_the_interval_and_by_older_names(make):
    family = Qwen35()
    expected = family.config(make()).layer_types
    old = ["linear", "linear", "linear", "attention"] * 8
    assert family.config(make(layer_types=old)).layer_types == expected
    assert family.config(make(layer_types=None)).layer_types == expected
    every_other = family.config(make(layer_types=None, full_attention_interval=2)).layer_types
    assert every_other[:2] == ("linear_attention", "full_attention")
    with pytest.raises(ContractError, match="full_attention_interval"):
        family.config(make(layer_types=None, full_attention_interval=None))


def test_older_spelling_of_rope_values():
    changed = flat(rope_parameters=None, rope_theta=1e7, partial_rotary_factor=0.25)
    config = Qwen35().config(changed)
    assert config.rope_theta == 1e7 and config.extra["rotary_dim"] == 64


REQUIRED = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "vocab_size", "max_position_embeddings", "rms_norm_eps",
    "linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim",
    "linear_value_head_dim", "linear_conv_kernel_dim",
)  # fmt: skip


@pytest.mark.parametrize("key", REQUIRED)
@pytest.mark.parametrize("value", [None, "8", 0, -1, True, [4], math.inf, math.nan])
def test_required_numbers_are_named(key, value):
    with pytest.raises(ContractError, match=key):
        Qwen35().config(nested(**{key: value}))


@pytest.mark.parametrize("key", ["rope_theta", "partial_rotary_factor"])
def test_rope_has_no_silent_default(key):
    hf = copy.deepcopy(nested())
    del hf["text_config"]["rope_parameters"][key]
    with pytest.raises(ContractError, match=key):
        Qwen35().config(hf)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"attn_output_gate": False}, "attn_output_gate"),
        ({"num_experts": 128}, "num_experts"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"type": "linear"}}, "rope scaling's factor"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4}}, "dynamic"),
        ({"rope_parameters": "yes"}, "rope_parameters"),
        ({"linear_num_value_heads": 24}, "no multiple"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"layer_types": ["linear_attention"]}, "layer_types"),
        ({"layer_types": ["mamba"] * 32}, "mamba"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ],
)
def test_refused_by_name(changes, words):
    with pytest.raises(ContractError, match=words):
        Qwen35().config(flat(**changes))


def test_quantized_checkpoints_are_refused_at_the_top_level_too():
    with pytest.raises(ContractError, match="quantization_config"):
        Qwen35().config(nested() | {"quantization_config": {"quant_method": "fp8"}})


def test_text_config_must_be_an_object():
    with pytest.raises(ContractError, match="text_config"):
        Qwen35().config(nested() | {"text_config": [1]})


def test_stop_ids_are_a_union_and_sampling_is_the_models_own():
    generation = {
        "do_sample": True, "temperature": 1.0, "top_k": 20, "top_p": 0.95,
        "eos_token_id": [248046, 248044],
    }  # fmt: skip
    config = Qwen35().config(nested(), generation)
    assert set(config.stop_ids) == {248044, 248046} and len(config.stop_ids) == 2
    assert config.sampling == {"temperature": 1.0, "top_k": 20, "top_p": 0.95}
    bare = Qwen35().config(nested())
    assert bare.stop_ids == (248044,) and bare.sampling == {}


def test_metadata_for_other_readers():
    family = Qwen35()
    metadata = family.metadata(family.config(nested()))
    assert metadata["rope_type"] == 2
    assert metadata["linear_attn_hparams"] == {
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "full_attention_interval": 4,
        "partial_rotary_factor": 0.25,
        "mrope_section": [11, 11, 10],
    }


def test_a_model_without_architectures_is_named_as_transformers_names_it():
    hf = {key: value for key, value in Qwen35().tiny_config().items() if key != "architectures"}
    assert Qwen35().config(hf).architecture == "Qwen3_5ForCausalLM"
