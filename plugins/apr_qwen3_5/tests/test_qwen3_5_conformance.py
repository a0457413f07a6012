"""Qwen3.5 passes the kits that every family and attention variant passes."""

from __future__ import annotations

from apr_devkit.kits import AttentionConformance, FamilyConformance


class TestQwen35(FamilyConformance):
    family = "qwen3_5"


class TestGatedAttention(AttentionConformance):
    attention = "gated_attention"


class TestGatedDeltaNet(AttentionConformance):
    attention = "gated_delta_net"
