"""Qwen2 passes the kits that every family and attention variant passes."""

from __future__ import annotations

from apr_core.plugin import MixerExample
from apr_devkit.kits import AttentionConformance, FamilyConformance


class TestQwen2(FamilyConformance):
    family = "qwen2"


class TestFullAttention(AttentionConformance):
    attention = "full_attention"


OPTIONS = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "rope_theta": 1e4, "rotary_dim": 16}


class TestWindowAndNorms(AttentionConformance):
    attention = "full_attention"
    example = MixerExample(
        OPTIONS | {"bias": False, "window": 24, "qk_norm": (1e-6, 1.0), "scale": 0.2},
        48,
        {"q_proj": (64, 48), "k_proj": (32, 48), "v_proj": (32, 48), "o_proj": (48, 64),
         "q_norm": (16,), "k_norm": (16,)},
    )  # fmt: skip
