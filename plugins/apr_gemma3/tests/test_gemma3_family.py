"""Gemma 3: published configurations, nested or flat, and what is refused by name."""

from __future__ import annotations

import math

import pytest

from apr_core.errors import ContractError
from apr_gemma3.family import Gemma3

NESTED = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}
OF_4B = {
    "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
    "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}  # fmt: skip
OF_1B = {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_size": 1152,
    "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4,
    "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768, "sliding_window": 512, "sliding_window_pattern": 6,
    "rope_theta": 1000000, "rope_local_base_freq": 10000, "query_pre_attn_scalar": 256,
    "rope_scaling": None, "final_logit_softcapping": None, "attn_logit_softcapping": None,
    "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "eos_token_id": [1, 106],
}  # fmt: skip


def test_a_published_configuration_says_little():
    config = Gemma3().config({**NESTED, "text_config": OF_4B})
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (8, 4, 256)
    assert config.vocab_size == 262_208 and config.tied_embeddings
    assert config.layer_types[:6] == ("sliding_attention",) * 5 + ("full_attention",)
    plan = Gemma3().plan(config)
    local, everywhere = plan.blocks[0].options, plan.blocks[5].options
    assert (local["rope_theta"], local["rope_scaling"], local["window"]) == (10_000, {}, 1024)
    assert (everywhere["rope_theta"], everywhere["window"]) == (1_000_000, 0)
    assert everywhere["rope_scaling"]["factor"] == 8.0
    assert plan.embedding_scale == pytest.approx(2560**0.5)


def test_contract_has_the_published_number_of_parameters():
    family = Gemma3()
    config, contract = family.config(OF_1B), family.contract()
    rules = contract.rules(config, "flat")
    assert sum(math.prod(rule.shape) for rule in rules) == 999_885_952
    assert contract.variant_of(config) == "1b"
    assert config.stop_ids == (1, 106)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_activation": "relu"}, "hidden_activation"),
        ({"attention_bias": True}, "attention_bias"),
        ({"attn_logit_softcapping": 50.0}, "Gemma 2"),
        ({"final_logit_softcapping": "x"}, "final_logit_softcapping"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, "dynamic"),
        ({"rope_scaling": "long"}, "object of objects"),
        ({"layer_types": ["full_attention"]}, "34 layers"),
        ({"rope_parameters": {"full_attention": 7}}, "object of objects"),
    ],
)
def test_what_is_not_run_is_refused(change, message):
    with pytest.raises(ContractError, match=message):
        Gemma3().config({**NESTED, "text_config": OF_4B | change})
