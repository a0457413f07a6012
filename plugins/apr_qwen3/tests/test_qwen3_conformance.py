"""Qwen3 passes the kit that every family passes."""

from __future__ import annotations

from apr_devkit.kits import FamilyConformance


class TestQwen3(FamilyConformance):
    family = "qwen3"
