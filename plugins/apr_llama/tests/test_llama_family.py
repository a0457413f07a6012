"""What Llama's config.json may say, and what is refused by name."""

from __future__ import annotations

import math

import numpy as np
import pytest

from apr_core.errors import ContractError
from apr_core.plugin import rope_frequencies
from apr_llama.family import Llama

HF = Llama().tiny_config()
LLAMA3 = HF["rope_scaling"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported"),
        ({"attention_bias": True}, "attention_bias = True is not supported"),
        ({"mlp_bias": True}, "mlp_bias = True is not supported"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope scaling's factor is None"),
        ({"rope_scaling": {**LLAMA3, "factor": -1.0}}, "rope scaling's factor is -1.0"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": "x"}}, "low_freq_factor is 'x'"),
        ({"rope_scaling": "long"}, "rope_scaling must be an object"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, words):
    with pytest.raises(ContractError, match=words):
        Llama().config(HF | change)


def test_older_configurations_have_the_defaults_of_the_architecture():
    hf = {k: v for k, v in HF.items() if k not in ("rope_theta", "rope_scaling", "rms_norm_eps")}
    config = Llama().config(hf)
    assert (config.rope_theta, config.rms_norm_eps) == (10_000.0, 1e-6)
    assert config.rope_scaling == {}


V01 = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 32768,
    "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "sliding_window": 4096, "hidden_act": "silu",
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def test_mistrals_window_and_heads():
    family = Llama()
    config, contract = family.config(V01), family.contract()
    assert sum(math.prod(r.shape) for r in contract.rules(config, "flat")) == 7_241_732_096
    assert contract.variant_of(config) == "mistral-7b"
    assert family.plan(config).blocks[0].options["window"] == 4096
    without = family.config(V01 | {"sliding_window": None})
    assert family.plan(without).blocks[0].options["window"] == 0
    nemo = family.config(V01 | {"hidden_size": 5120, "head_dim": 128, "sliding_window": None})
    assert nemo.head_dim == 128
    llama = family.config(HF | {"sliding_window": 4096})  # which LlamaConfig does not have
    assert family.plan(llama).blocks[0].options["window"] == 0
    with pytest.raises(ContractError, match="sliding_window"):
        family.config(V01 | {"sliding_window": -1})


def test_scaled_frequencies_are_between_the_plain_ones_and_those_over_the_factor():
    plain, one = rope_frequencies(1e4, 64)
    for scaling in (
        {"method": "linear", "factor": 8.0},
        {"method": "yarn", "factor": 8.0, "original_max_position_embeddings": 4096},
        LLAMA3 | {"method": "wavelength"},
    ):
        scaled, magnitude = rope_frequencies(1e4, 64, scaling)
        assert scaled.dtype == np.float32
        assert (scaled <= plain).all() and (scaled >= plain / np.float32(8) * 0.999).all()
        yarn = scaling["method"] == "yarn"
        assert magnitude == (0.1 * math.log(8.0) + 1 if yarn else one)
