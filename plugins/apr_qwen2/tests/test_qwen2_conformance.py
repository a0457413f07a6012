"""Qwen2 passes the kits that every family and attention variant passes."""

from __future__ import annotations

from apr_devkit.kits import AttentionConformance, FamilyConformance


class TestQwen2(FamilyConformance):
    family = "qwen2"


class TestFullAttention(AttentionConformance):
    attention = "full_attention"
