"""Gemma 3 passes the kits that every family and feed-forward passes."""

from __future__ import annotations

from apr_devkit.kits import FamilyConformance, MlpConformance


class TestGemma3(FamilyConformance):
    family = "gemma3"


class TestGeGLU(MlpConformance):
    mlp = "geglu"
