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
        found = Registry(discover(Settings(), os.environ))

        class Mine(PluginConformance):
            plugin = "x-mine"
            registry = found

        return {result.check: result for result in run_checks(Mine)}

    yield results
    for name in ("x_mine_hooks", "x_other_hooks", "toy", "toy.codec"):
        sys.modules.pop(name, None)


def failed(results):
    return {name: r.reason for name, r in results.items() if r.outcome == "failed"}


def test_a_good_plugin_passes(check):
    assert failed(check(quantizer("toy"))) == {}


def test_a_hooks_module_that_does_not_load(check):
    assert "boom" in failed(check("raise RuntimeError('boom')"))["test_plugin_is_usable"]


def test_a_hooks_module_that_declares_nothing(check):
    assert "declares nothing" in failed(check("x = 1"))["test_plugin_is_usable"]


def test_a_hooks_module_that_imports_arrays(check):
    found = failed(check(quantizer("toy", "import numpy\n")))
    assert "imports numpy" in found["test_hooks_module_is_light"]
    assert list(found) == ["test_hooks_module_is_light"]


def test_a_hooks_module_that_prints(check):
    found = failed(check(quantizer("toy", "print('hello')\n")))
    assert list(found) == ["test_hooks_are_silent"] and "'hello" in found["test_hooks_are_silent"]


def test_hooks_that_change_their_mind(check):
    source = quantizer("toy", "import itertools\ncount = itertools.count(1)\n")
    source = source.replace("bytes_per_block=18", "bytes_per_block=next(count)")
    assert list(failed(check(source))) == ["test_hooks_are_pure"]


def test_a_target_that_is_not_there(check):
    source = quantizer("toy").replace("toy.codec:Toy", "toy.codec:Tay")
    found = failed(check(source))
    assert list(found) == ["test_targets_exist"] and "Tay" in found["test_targets_exist"]


def test_a_declaration_without_a_summary(check):
    source = quantizer("toy").replace('summary="a toy", ', "")
    found = failed(check(source))
    assert list(found) == ["test_declarations_say_what_they_are"]
    assert "'toy' has no summary" in found["test_declarations_say_what_they_are"]


def test_a_name_that_somebody_else_has(check):
    found = failed(check(quantizer("toy"), other=quantizer("toy")))
    assert list(found) == ["test_declarations_say_what_they_are"]
    assert "x-mine:toy" in found["test_declarations_say_what_they_are"]
    assert "x-other:toy" in found["test_declarations_say_what_they_are"]


def test_a_distribution_that_is_not_installed():
    kit = type("None", (PluginConformance,), {"plugin": "x-none"})
    reasons = {result.reason for result in run_checks(kit)}
    assert any("no distribution called 'x-none'" in reason for reason in reasons)


def test_a_plugin_of_an_older_or_newer_api_is_refused_with_both_numbers(check):
    source = quantizer("toy").replace("block=32", "api=0, block=32")
    reason = failed(check(source))["test_plugin_is_usable"]
    assert "targets API 0" in reason and "has API 1: upgrade the plugin" in reason
