"""Qwen3: published sizes, longer contexts, and what is refused by name."""

from __future__ import annotations

import math

import pytest

from apr_core.errors import ContractError
from apr_qwen3.family import Qwen3

# Qwen3-0.6B: 596,049,920 parameters
SMALL = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024,
    "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    "max_position_embeddings": 40960, "rope_theta": 1000000, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True, "hidden_act": "silu", "attention_bias": False,
    "use_sliding_window": False, "sliding_window": None, "rope_scaling": None,
    "bos_token_id": 151643, "eos_token_id": 151645,
}  # fmt: skip


def test_contract_has_the_published_number_of_parameters():
    family = Qwen3()
    config, contract = family.config(SMALL), family.contract()
    rules = contract.rules(config, "flat")
    assert sum(math.prod(rule.shape) for rule in rules) == 596_049_920
    assert contract.variant_of(config) == "0.6b"


def test_yarn_makes_the_context_longer():
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    config = Qwen3().config(SMALL | {"rope_scaling": yarn})
    assert config.max_position_embeddings == 131_072
    assert Qwen3().plan(config).blocks[0].options["rope_scaling"]["method"] == "yarn"
    assert Qwen3().config(SMALL).max_position_embeddings == 40960


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2, "beta_fast": "x"}}, "beta_fast"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "yarn"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, words):
    with pytest.raises(ContractError, match=words):
        Qwen3().config(SMALL | change)
