"""The kits of apr_devkit.kits; FamilyConformance compares with transformers where it is there."""

from __future__ import annotations

import pytest

from apr_core.errors import ContractError
from apr_devkit.kits import AttentionConformance, FamilyConformance, MlpConformance
from apr_family_gemma3.family import Gemma3

NESTED = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}
OF_4B = {
    "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
    "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}  # fmt: skip


class TestGemma3(FamilyConformance):
    family = "gemma3"


class TestUntiedGemma3(FamilyConformance):
    family = "gemma3"

    @property
    def tiny_config(self):
        return self.plugin_object.tiny_config() | {"tie_word_embeddings": False}


class TestCappedGemma3(FamilyConformance):
    family = "gemma3"

    @property
    def tiny_config(self):
        return self.plugin_object.tiny_config() | {"final_logit_softcapping": 2.0}


class TestGlobalAttention(AttentionConformance):
    attention = "gemma3_attention"


class TestLocalAttention(AttentionConformance):
    attention = "gemma3_local_attention"


class TestGeGLU(MlpConformance):
    mlp = "geglu"


def test_a_published_configuration_says_little():
    config = Gemma3().config({**NESTED, "text_config": OF_4B})
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (8, 4, 256)
    assert config.vocab_size == 262_208 and config.tied_embeddings
    assert config.layer_types[:6] == ("sliding_attention",) * 5 + ("full_attention",)
    blocks = Gemma3().plan(config).blocks
    assert (blocks[0].options["rope_theta"], blocks[0].options["rope_factor"]) == (10_000, 1)
    assert (blocks[5].options["rope_theta"], blocks[5].options["rope_factor"]) == (1_000_000, 8)
    assert blocks[0].options["window"] == 1024 and "window" not in blocks[5].options
    assert Gemma3().plan(config).embedding_scale == pytest.approx(2560**0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_activation": "relu"}, "hidden_activation"),
        ({"attn_logit_softcapping": 50.0}, "Gemma 2"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "yarn"),
        ({"layer_types": ["full_attention"]}, "34 layers"),
        ({"rope_parameters": {"full_attention": 7}}, "object of objects"),
    ],
)
def test_what_is_not_run_is_refused(change, message):
    with pytest.raises(ContractError, match=message):
        Gemma3().config({**NESTED, "text_config": OF_4B | change})
