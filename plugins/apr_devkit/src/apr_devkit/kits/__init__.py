"""Conformance kits: one class per kind of plugin, for pytest and for `apr plugins check`.

    from apr_devkit.kits import QuantizerConformance

    class TestMine4(QuantizerConformance):
        quantizer = "mine4"

Shipped and third-party plugins pass the very same checks. New checks arrive with the core.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

_WHERE = {
    "AttentionConformance": "attention", "BackendConformance": "backend", "CheckResult": "checks",
    "CommandConformance": "command", "ExporterConformance": "exporter",
    "FamilyConformance": "family", "KernelConformance": "kernel", "Kit": "checks",
    "OpCase": "cases", "PluginConformance": "plugin", "QuantizerConformance": "quantizer",
    "RecipeConformance": "recipe", "SourceConformance": "source", "run_checks": "checks",
    "skip": "checks",
}  # fmt: skip

__all__ = [
    "AttentionConformance", "BackendConformance", "CheckResult", "CommandConformance",
    "ExporterConformance", "FamilyConformance", "KernelConformance", "Kit", "OpCase",
    "PluginConformance", "QuantizerConformance", "RecipeConformance", "SourceConformance",
    "run_checks", "skip",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name on first use: a kit needs only what its kind needs."""
    if name not in _WHERE:
        raise AttributeError(f"module 'apr_devkit.kits' has no attribute {name!r}")
    return getattr(import_module(f"apr_devkit.kits.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
