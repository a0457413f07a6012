"""Qwen3.5 with experts passes the kits that every family and feed-forward passes."""

from __future__ import annotations

from apr_devkit.kits import FamilyConformance, MlpConformance


class TestQwen35Moe(FamilyConformance):
    family = "qwen3_5_moe"


class TestExperts(MlpConformance):
    mlp = "shared_and_routed_experts"
