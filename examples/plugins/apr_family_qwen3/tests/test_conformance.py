"""The kits of apr_devkit.kits; FamilyConformance compares with transformers where it is there."""

from apr_devkit.kits import AttentionConformance, FamilyConformance


class TestQwen3(FamilyConformance):
    family = "qwen3"


class TestUntiedQwen3(FamilyConformance):
    family = "qwen3"

    @property
    def tiny_config(self):
        return self.plugin_object.tiny_config() | {"tie_word_embeddings": False}


class TestQKNormAttention(AttentionConformance):
    attention = "qk_norm_attention"
