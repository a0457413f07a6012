"""Qwen2 and Qwen2.5: configurations of two generations of writers, and what is refused."""

from __future__ import annotations

import math

import pytest

from apr_core.errors import ContractError
from apr_qwen2.family import Qwen2

# Qwen2.5-0.5B: 494,032,768 parameters; Qwen2.5-7B: 7,615,616,512
SMALL = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896,
    "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768,
    "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    "hidden_act": "silu", "use_sliding_window": False, "sliding_window": 32768,
    "bos_token_id": 151643, "eos_token_id": 151645,
}  # fmt: skip
LARGE = SMALL | {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
    "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("hf", "size", "parameters", "tensors"),
    [(SMALL, "0.5b", 494_032_768, 290), (LARGE, "7b", 7_615_616_512, 339)],
)
def test_contract_has_the_published_number_of_parameters(hf, size, parameters, tensors):
    family = Qwen2()
    config, contract = family.config(hf), family.contract()
    rules = contract.rules(config, "flat")
    assert len(rules) == tensors
    assert sum(math.prod(r.shape) for r in rules) == parameters
    assert contract.variant_of(config) == size
    variant, dims = contract.variants[size], config.dims()
    assert all(dims[k] == v for k, v in variant.items() if k in dims)
    assert contract.carried(config) == []


def test_every_variant_is_a_possible_model():
    for name, v in Qwen2().contract().variants.items():
        assert v["num_heads"] % v["num_kv_heads"] == 0, name
        assert v["num_heads"] * v["head_dim"] == v["hidden_dim"], name
        assert v["intermediate_dim"] > v["hidden_dim"], name


def test_plan_is_full_attention_with_biases_and_plain_norms():
    family = Qwen2()
    plan = family.plan(family.config(SMALL))
    assert len(plan.blocks) == 24 and plan.norm_offset == 0.0
    assert plan.blocks[0].mixer == "full_attention"
    assert plan.blocks[0].options == {
        "num_heads": 14,
        "num_kv_heads": 2,
        "head_dim": 64,
        "rope_theta": 1e6,
        "rotary_dim": 64,
        "rope_scaling": {},
        "bias": True,
    }


def test_rope_theta_where_newer_writers_put_it():
    newer = {k: v for k, v in SMALL.items() if k != "rope_theta"}
    newer["rope_parameters"] = {"rope_type": "default", "rope_theta": 1000000.0}
    assert Qwen2().config(newer).rope_theta == 1e6
    del newer["rope_parameters"]
    with pytest.raises(ContractError, match="rope_theta"):
        Qwen2().config(newer)


@pytest.mark.parametrize(
    "key",
    ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
     "max_position_embeddings", "rms_norm_eps"],
)  # fmt: skip
def test_required_numbers_are_named(key):
    with pytest.raises(ContractError, match=key):
        Qwen2().config({k: v for k, v in SMALL.items() if k != key})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"rope_scaling": {"type": "longrope", "factor": 4.0}}, "longrope"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ],
)
def test_refused_by_name(changes, words):
    with pytest.raises(ContractError, match=words):
        Qwen2().config(SMALL | changes)


def test_head_dim_is_read_if_it_is_there():
    assert Qwen2().config(SMALL | {"head_dim": 128}).head_dim == 128
    assert Qwen2().config(SMALL).head_dim == 64


def test_greedy_generation_defaults():
    config = Qwen2().config(SMALL, {"do_sample": False, "temperature": 0.7, "eos_token_id": 7})
    assert config.sampling == {"temperature": 0.0}
    assert set(config.stop_ids) == {7, 151645}


def test_a_model_without_architectures_is_named_as_transformers_names_it():
    hf = {key: value for key, value in SMALL.items() if key != "architectures"}
    assert Qwen2().config(hf).architecture == "Qwen2ForCausalLM"
    assert Qwen2().config(hf | {"architectures": ["Mine"]}).architecture == "Mine"
