"""What every plugin's kit catches: distributions that are wrong in one way each."""

from __future__ import annotations

import importlib
import os
import sys

import pytest

from apr_core.discovery import discover
from apr_core.registry import Registry
from apr_core.settings import Settings
from apr_devkit.kits import PluginConformance, run_checks
from tests.torture import install, quantizer

CODEC = "class Toy:\n    pass\n"


@pytest.fixture
def check(tmp_path, monkeypatch):
    """check(hooks source) -> {check: result} of a distribution `x-mine` with that hooks module."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("APR_CACHE", str(tmp_path / "cache"))
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "__init__.py").write_text("")
    (tmp_path / "toy" / "codec.py").write_text(CODEC)

    def results(source, other=""):
        install(tmp_path, "x-mine", source)
        if other:
            install(tmp_path, "x-other", other)
        importlib.invalidate_caches()
        installed = Registry(discover(Settings(), os.environ))

        class Mine(PluginConformance):
            plugin = "x-mine"
            registry = installed

        return {result.check: result for result in run_checks(Mine)}

    yield results
    for name in ("x_mine_hooks", "x_other_hooks", "toy", "toy.codec"):
        sys.modules.pop(name, None)


def failed(results):
    return {name: r.reason for name, r in results.items() if r.outcome == "failed"}


def test_a_good_plugin_passes(check):
    assert failed(check(quantizer("toy"))) == {}


TOY = quantizer("toy")
COUNT = "import itertools\ncount = itertools.count(1)\n"
WRONG = {  # what is wrong -> source of the hooks, the one check that fails, what it says
    "does not load": ("raise RuntimeError('boom')", "test_plugin_is_usable", "boom"),
    "declares nothing": ("x = 1", "test_plugin_is_usable", "declares nothing"),
    "of another API": (TOY.replace("block=32", "api=0, block=32"), "test_plugin_is_usable",
                       "targets API 0, this apr-core has API 1: upgrade the plugin"),
    "imports arrays": (quantizer("toy", "import numpy\n"), "test_hooks_are_light_and_pure",
                       "imports numpy"),
    "prints": (quantizer("toy", "print('hello')\n"), "test_hooks_are_light_and_pure", "'hello"),
    "changes its mind": (
        quantizer("toy", COUNT).replace("bytes_per_block=18", "bytes_per_block=next(count)"),
        "test_hooks_are_light_and_pure", "first"),
    "lacks a target": (TOY.replace("toy.codec:Toy", "toy.codec:Tay"), "test_targets_exist", "Tay"),
    "lacks a summary": (TOY.replace('summary="a toy", ', ""),
                        "test_declarations_say_what_they_are", "'toy' has no summary"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_plugin_fails_one_check(check, what):
    source, name, said = WRONG[what]
    results = failed(check(source))
    assert said in results.pop(name)
    assert not results or name == "test_plugin_is_usable", results


def test_a_name_that_somebody_else_has(check):
    results = failed(check(quantizer("toy"), other=quantizer("toy")))
    assert list(results) == ["test_declarations_say_what_they_are"]
    assert "x-mine:toy" in results["test_declarations_say_what_they_are"]
    assert "x-other:toy" in results["test_declarations_say_what_they_are"]


def test_a_distribution_that_is_not_installed():
    kit = type("None", (PluginConformance,), {"plugin": "x-none"})
    reasons = {result.reason for result in run_checks(kit)}
    assert any("no distribution called 'x-none'" in reason for reason in reasons)
