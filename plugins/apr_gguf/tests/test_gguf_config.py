"""Between config.json and keys: what is written says the same when it is read."""

from __future__ import annotations

import numpy as np
import pytest

from apr_core.errors import AprError, FormatError
from apr_core.registry import get_registry
from apr_gguf.architectures import ARCHITECTURES
from apr_gguf.config import config_from, keys_of, notes_on
from apr_gguf.reader import Keys
from apr_gguf.rope import OWN, factors_of, llama3_of

pytestmark = pytest.mark.needs_plugins

MODEL = {
    "hidden_size": 256, "num_hidden_layers": 6, "intermediate_size": 512, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 320, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "layer_types": ["full_attention"] * 6,
}  # fmt: skip
LLAMA = ARCHITECTURES["llama"]


def read_again(arch, config):
    keys = {f"{arch.name}.{key}": value for key, value in keys_of(arch, config).items()}
    keys |= {"general.architecture": arch.name, "tokenizer.ggml.tokens": ["a"]}
    return config_from(Keys("m.gguf", keys), arch, True, config["vocab_size"])


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512,
         "attention_factor": 1.5, "beta_fast": 16.0, "beta_slow": 2.0},
    ],
)  # fmt: skip
def test_scaled_positions_are_keys(scaling):
    again = read_again(LLAMA, MODEL | {"rope_scaling": scaling})
    assert again["rope_scaling"] == scaling and again["rope_theta"] == 500000.0


def llama3(factor, low, high, length):
    return {"rope_type": "llama3", "factor": factor, "low_freq_factor": low,
            "high_freq_factor": high, "original_max_position_embeddings": length}  # fmt: skip


KEYS = Keys("m.gguf", {"general.architecture": "llama"})


@pytest.mark.parametrize("given", [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192),
                                   (8.0, 1.0, 3.0, 700), (4.0, 2.0, 6.0, 1024)])  # fmt: skip
def test_factors_of_frequencies_say_what_made_them(given):
    factors = factors_of(MODEL | {"rope_scaling": llama3(*given)})
    found = llama3_of(KEYS, MODEL, factors)
    factor, low, high, length = given  # only ratios matter: 2, 6, 1024 is 1, 3, 512
    expected = llama3(factor, 1.0, high / low, int(length / low))
    assert {k: v for k, v in found["rope_scaling"].items() if k != OWN} == expected
    np.testing.assert_array_equal(factors_of(MODEL | found), factors)


def test_factors_that_differ_in_their_last_bits_are_kept():
    factors = factors_of(MODEL | {"rope_scaling": llama3(8.0, 1.0, 4.0, 8192)})
    other = np.where((factors > 1) & (factors < 8), np.nextafter(factors, np.float32(9)), factors)
    np.testing.assert_array_equal(factors_of(MODEL | llama3_of(KEYS, MODEL, other)), other)


def test_factors_of_another_rule_are_refused():
    for factors in (
        np.linspace(1, 9, 32),
        np.linspace(1, 9, 31),
        np.full(32, 0.5),
        np.full(32, np.nan),
    ):
        with pytest.raises(
            FormatError, match=r"the tensor 'rope_freqs.weight' scales positions by"
        ):
            llama3_of(KEYS, MODEL, factors.astype(np.float32))


def test_other_methods_are_refused_both_ways():
    with pytest.raises(AprError, match="rope scaling 'longrope' has no form in GGUF"):
        keys_of(LLAMA, MODEL | {"rope_scaling": {"rope_type": "longrope"}})
    with pytest.raises(AprError, match="YaRN's mscale has no key"):
        keys_of(LLAMA, MODEL | {"rope_scaling": {"rope_type": "yarn", "mscale": 1.0}})
    keys = {f"llama.{k}": v for k, v in keys_of(LLAMA, MODEL).items()}
    keys |= {"general.architecture": "llama", "tokenizer.ggml.tokens": ["a"]}
    for key, value, words in (
        ("rope.scaling.type", "longrope", "rope scaling 'longrope' is not supported"),
        ("rope.dimension_count", 32, "only a part of each head is rotated"),
        ("attention.value_length", 32, "heads of keys and of values differ in size"),
        ("nextn_predict_layers", 2, "2 layers that predict more tokens"),
    ):
        with pytest.raises(FormatError, match=words):
            config_from(Keys("m.gguf", keys | {f"llama.{key}": value}), LLAMA, True, 320)


def test_a_window_makes_a_mistral():
    mistral = MODEL | {"model_type": "mistral", "sliding_window": 128}
    again = read_again(LLAMA, mistral)
    assert (again["model_type"], again["sliding_window"]) == ("mistral", 128)
    assert again["architectures"] == ["MistralForCausalLM"]
    assert "to the last 128: longer texts differ" in notes_on(LLAMA, mistral)[0]
    assert read_again(LLAMA, mistral | {"sliding_window": None})["model_type"] == "llama"
    del mistral["sliding_window"]  # MistralConfig's own default
    assert read_again(LLAMA, mistral)["sliding_window"] == 4096
    assert read_again(LLAMA, MODEL | {"sliding_window": 128})["model_type"] == "llama"


def test_gemma_3():
    arch = ARCHITECTURES["gemma3"]
    slides, full = "sliding_attention", "full_attention"
    gemma = MODEL | {"sliding_window": 32, "query_pre_attn_scalar": 64, "layer_types":
                     [slides] * 5 + [full], "rope_local_base_freq": 20000.0}  # fmt: skip
    assert "attention.sliding_window_pattern" not in keys_of(arch, gemma)
    for types in ([slides] * 5 + [full], [slides, full] * 3, [full] * 6):
        again = read_again(arch, gemma | {"layer_types": types})
        assert again["layer_types"] == types and again["rope_local_base_freq"] == 20000.0
        assert again["query_pre_attn_scalar"] == 64 and not notes_on(arch, gemma)
    odd = gemma | {"query_pre_attn_scalar": 24, "final_logit_softcapping": 30.0}
    assert read_again(arch, odd)["query_pre_attn_scalar"] == 24
    assert read_again(arch, odd)["final_logit_softcapping"] == 30.0
    assert "scales queries by another number" in notes_on(arch, odd)[0]


def test_layers_of_qwen3_5_in_an_order_of_their_own():
    arch = ARCHITECTURES["qwen35"]
    tiny = get_registry().make("family", "qwen3_5").tiny_config()
    linear, full = "linear_attention", "full_attention"
    for types in ([linear] * 3 + [full], [full, linear, linear, full], [linear] * 4):
        again = read_again(arch, tiny | {"layer_types": types, "rope_theta": 1e7})
        assert again["layer_types"] == types
        assert again["rope_parameters"] == tiny["rope_parameters"]
