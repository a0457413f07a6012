"""Conformance kits: one class per kind of plugin, for pytest and for `apr plugins check`.

    from apr_devkit.kits import QuantizerConformance

    class TestMine4(QuantizerConformance):
        quantizer = "mine4"

Shipped and third-party plugins pass the same checks. New checks arrive with the core.
"""

from __future__ import annotations

from apr_devkit.kits.backend import BackendConformance
from apr_devkit.kits.cases import OpCase
from apr_devkit.kits.checks import CheckResult, Kit, PluginConformance, run_checks, skip
from apr_devkit.kits.family import FamilyConformance
from apr_devkit.kits.io import CommandConformance, ExporterConformance, SourceConformance
from apr_devkit.kits.kernel import KernelConformance
from apr_devkit.kits.layer import AttentionConformance, MlpConformance
from apr_devkit.kits.quantizer import QuantizerConformance, RecipeConformance

__all__ = [
    "AttentionConformance", "BackendConformance", "CheckResult", "CommandConformance",
    "ExporterConformance", "FamilyConformance", "KernelConformance", "Kit", "MlpConformance",
    "OpCase", "PluginConformance", "QuantizerConformance", "RecipeConformance", "SourceConformance",
    "run_checks", "skip",
]  # fmt: skip
