"""Conformance kits: one class per kind of plugin, for pytest and for `apr plugins check`.

    from apr_devkit.kits import QuantizerConformance

    class TestMine4(QuantizerConformance):
        quantizer = "mine4"

Shipped and third-party plugins pass the very same checks. New checks arrive with the core.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from apr_core import lazily

if TYPE_CHECKING:
    from apr_devkit.kits.attention import AttentionConformance
    from apr_devkit.kits.backend import BackendConformance
    from apr_devkit.kits.cases import OpCase
    from apr_devkit.kits.checks import CheckResult, Kit, run_checks, skip
    from apr_devkit.kits.command import CommandConformance
    from apr_devkit.kits.exporter import ExporterConformance
    from apr_devkit.kits.family import FamilyConformance
    from apr_devkit.kits.kernel import KernelConformance
    from apr_devkit.kits.plugin import PluginConformance
    from apr_devkit.kits.quantizer import QuantizerConformance
    from apr_devkit.kits.recipe import RecipeConformance
    from apr_devkit.kits.source import SourceConformance
else:  # a kit needs only what its kind needs
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "apr_devkit.kits.attention": "AttentionConformance",
            "apr_devkit.kits.backend": "BackendConformance",
            "apr_devkit.kits.cases": "OpCase",
            "apr_devkit.kits.checks": "CheckResult Kit run_checks skip",
            "apr_devkit.kits.command": "CommandConformance",
            "apr_devkit.kits.exporter": "ExporterConformance",
            "apr_devkit.kits.family": "FamilyConformance",
            "apr_devkit.kits.kernel": "KernelConformance",
            "apr_devkit.kits.plugin": "PluginConformance",
            "apr_devkit.kits.quantizer": "QuantizerConformance",
            "apr_devkit.kits.recipe": "RecipeConformance",
            "apr_devkit.kits.source": "SourceConformance",
        },
    )

__all__ = [
    "AttentionConformance", "BackendConformance", "CheckResult", "CommandConformance",
    "ExporterConformance", "FamilyConformance", "KernelConformance", "Kit", "OpCase",
    "PluginConformance", "QuantizerConformance", "RecipeConformance", "SourceConformance",
    "run_checks", "skip",
]  # fmt: skip
