"""Conformance kits: one class per kind of plugin, for pytest and for `apr plugins check`.

    from apr_core.testing import QuantizerConformance

    class TestMine4(QuantizerConformance):
        quantizer = "mine4"

Shipped and third-party plugins pass the very same checks. New checks arrive with the core.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apr_core.testing.attention import AttentionConformance
    from apr_core.testing.backend import BackendConformance
    from apr_core.testing.cases import OpCase
    from apr_core.testing.checks import CheckResult, Kit, run_checks, skip
    from apr_core.testing.command import CommandConformance
    from apr_core.testing.exporter import ExporterConformance
    from apr_core.testing.family import FamilyConformance
    from apr_core.testing.kernel import KernelConformance
    from apr_core.testing.plugin import PluginConformance
    from apr_core.testing.quantizer import QuantizerConformance
    from apr_core.testing.recipe import RecipeConformance
    from apr_core.testing.source import SourceConformance

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
        raise AttributeError(f"module 'apr_core.testing' has no attribute {name!r}")
    return getattr(import_module(f"apr_core.testing.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
