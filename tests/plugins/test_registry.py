"""Plugins: isolation, collisions, API numbers, escape hatches. Fake distributions on a path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from apr_core.declarations import Backend, Family, Layout, Numbers, Quantizer
from apr_core.discovery import PluginRow
from apr_core.errors import BackendUnavailable, PluginBroken, PluginConflict, PluginNotFound
from apr_core.format.dtypes import FormatSpec
from apr_core.format.reader import TensorEntry
from apr_core.format.values import quantizer_for
from apr_core.registry import Registry

GOOD = """
from apr_core.hookspecs import hookimpl
from apr_core.declarations import {kind}

@hookimpl
def {hook}():
    return [{record}]
"""


def quantizer_module(name="toy", **fields):
    record = (
        f'Quantizer("{name}", "toy.codec:Toy", block=32, bytes_per_block=18{fields_text(fields)})'
    )
    return GOOD.format(kind="Quantizer", hook="apr_quantizers", record=record)


def fields_text(fields):
    return "".join(f", {k}={v!r}" for k, v in fields.items())


class Fakes:
    """Writes distributions into a folder and runs `apr` with it on the path."""

    def __init__(self, root):
        self.root = root

    def add(self, dist, source, entry=None, module=None):
        module = module or dist.replace("-", "_") + "_hooks"
        (self.root / f"{module}.py").write_text(source)
        info = self.root / f"{dist.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[apr]\n{entry or dist} = {module}\n")

    def run(self, *args, **env):
        full = os.environ | {"PYTHONPATH": str(self.root), "APR_CONFIG": str(self.root / "c.toml")}
        return subprocess.run(
            [sys.executable, "-m", "apr_core.cli", *args],
            env=full | {"APR_CACHE": str(self.root / "cache")} | env,
            capture_output=True,
            text=True,
        )

    def rows(self, **env):
        done = self.run("plugins", "list", "--json", **env)
        assert done.returncode == 0, done.stderr
        return {row["distribution"]: row for row in json.loads(done.stdout)}


@pytest.fixture
def fakes(tmp_path):
    return Fakes(tmp_path)


def test_a_plugin_that_prints_does_not_break_json(fakes):
    fakes.add("x-prints", "print('hello from a plugin')\n" + quantizer_module())
    assert fakes.rows()["x-prints"]["status"] == "ok"


def test_a_declared_layout_is_shown(fakes):
    layout = Layout(32, codes=2, bits=4, scale=(Numbers(0, "f16", per_block=True),))
    source = "from apr_core.plugin import Layout, Numbers\n" + quantizer_module(layout=layout)
    fakes.add("x-stripes", source)
    done = fakes.run("plugins", "show", "x-stripes", "--json")
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)[0]["declarations"]
    assert record["layout"]["scale"] == [{"offset": 0, "dtype": "f16", "per_block": True}]
    assert "layout: {'group': 32" in fakes.run("plugins", "show", "x-stripes").stdout


def test_api_numbers(fakes):
    fakes.add("x-future", quantizer_module(api=7))
    row = fakes.rows()["x-future"]
    assert row["status"] == "incompatible"
    assert "API 7" in row["reason"] and "API 1" in row["reason"]
    assert "upgrade apr-core" in row["reason"]


def test_unavailable_backend_names_what_is_missing(fakes):
    record = 'Backend("npu", "npu.b:B", requires=("module_that_is_not_there",))'
    fakes.add("x-npu", GOOD.format(kind="Backend", hook="apr_backends", record=record))
    row = fakes.rows()["x-npu"]
    assert row["status"] == "unavailable" and "module_that_is_not_there" in row["reason"]


def test_same_entry_point_name_in_two_distributions(fakes):
    fakes.add("x-one", quantizer_module("one"), entry="same")
    fakes.add("x-two", quantizer_module("two"), entry="same")
    rows = fakes.rows()
    assert rows["x-one"]["status"] == rows["x-two"]["status"] == "ok"


def test_escape_hatches(fakes):
    fakes.add("x-good", quantizer_module())
    fakes.add("x-other", quantizer_module("other"))
    assert json.loads(fakes.run("--no-plugins", "plugins", "list", "--json").stdout) == []
    rows = fakes.rows(APR_PLUGINS="x-good")
    assert rows["x-good"]["status"] == "ok" and rows["x-other"]["status"] == "disabled"
    rows = fakes.rows(APR_PLUGINS_BLOCK="x-good,x-other")
    assert {rows["x-good"]["status"], rows["x-other"]["status"]} == {"disabled"}
    (fakes.root / "c.toml").write_text('[plugins]\ndisable = ["x-good"]\n')
    assert fakes.rows()["x-good"]["status"] == "disabled"


@pytest.mark.parametrize(
    "command", [["plugins", "list"], ["plugins", "freeze"], ["inspect", "x"], ["tensors", "x"]]
)
def test_a_bad_configuration_file(fakes, command):
    if "freeze" in command:
        pytest.importorskip("apr_devkit", reason="it has that command")
    (fakes.root / "c.toml").write_text("[plugin]\n")
    done = fakes.run(*command)
    assert done.returncode == 2
    assert "unknown section [plugin]" in done.stderr and "mean plugins?" in done.stderr


@pytest.mark.parametrize("command", [["--help"], ["plugins", "list"], ["plugins", "show", "cpu"]])
def test_listing_imports_nothing_heavy(command):
    code = (
        "import sys; sys.argv[0] = 'apr'\nfrom apr_core.cli import run\n"
        f"run({command!r})\n"
        "heavy = {'numpy', 'numba', 'torch', 'tokenizers', 'jinja2', 'huggingface_hub', 'yaml'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stdout + done.stderr


def toy(name="toy", target="toy.codec:Toy"):
    return Quantizer(name, target, block=32, bytes_per_block=18)


def test_a_collision_is_an_error_only_when_the_name_is_used():
    both = {"dist-a": [toy(), toy("free")], "dist-b": [toy()]}
    registry = Registry.from_declarations(both)
    assert registry.get("quantizer", "free").distribution == "dist-a"
    with pytest.raises(PluginConflict) as caught:
        registry.get("quantizer", "toy")
    assert "dist-a:toy" in caught.value.message and "dist-b:toy" in caught.value.message
    assert "prefer" in caught.value.hint
    assert registry.get("quantizer", "dist-b:toy").distribution == "dist-b"
    preferring = Registry.from_declarations(both, prefer=["Dist_B:toy"])
    assert preferring.get("quantizer", "toy").distribution == "dist-b"


def test_unknown_names_say_what_to_do():
    registry = Registry.from_declarations({"d": [toy("nice_format")]})
    with pytest.raises(PluginNotFound, match="nice_formt") as caught:
        registry.get("quantizer", "nice_formt")
    assert "Did you mean nice_format?" in caught.value.hint
    with pytest.raises(PluginNotFound, match="NICE_FORMAT") as caught:
        registry.get("quantizer", "NICE_FORMAT")  # as other tools spell formats
    assert "Did you mean nice_format?" in caught.value.hint
    with pytest.raises(PluginNotFound) as caught:
        registry.family_for(["Qwen2ForCausalLM"], "qwen2")
    assert "pip install apr-qwen2" in caught.value.hint


def test_targets_that_cannot_be_loaded():
    for target in ("no_such_module:X", "apr_core.errors:NoSuchThing"):
        registry = Registry.from_declarations({"d": [toy(target=target)]})
        with pytest.raises(PluginBroken):
            registry.make("quantizer", "toy")
    backend = Backend("npu", "npu:B", requires=("module_that_is_not_there",))
    registry = Registry.from_declarations({"d": [backend]})
    with pytest.raises(BackendUnavailable, match="module_that_is_not_there"):
        registry.load(registry.get("backend", "npu"))


def backends(**probes):
    return {name: [Backend(name, "m:B", probe=probe)] for name, probe in probes.items()}


def probing(score):
    return lambda: (score, "measured")


one, ten, hundred, none = probing(1), probing(10), probing(100), probing(0)


def broken_probe():
    raise RuntimeError("no driver")


def test_the_best_backend_is_the_one_whose_probe_says_so():
    here = __name__
    registry = Registry.from_declarations(
        backends(plain="", usual=f"{here}:ten", fast=f"{here}:hundred", never=f"{here}:none")
    )
    assert registry.best_backend() == "fast"
    registry = Registry.from_declarations(backends(plain="", broken=f"{here}:broken_probe"))
    assert registry.best_backend() == "plain"


def test_equally_good_backends_are_a_question():
    both = backends(here="", there="")
    with pytest.raises(PluginConflict, match="here:here and there:there are equally good"):
        Registry.from_declarations(both).best_backend()
    assert Registry.from_declarations(both, prefer=["there:there"]).best_backend() == "there"


def test_without_a_backend_that_can_run_here_one_is_named():
    for declarations in ({}, backends(never=f"{__name__}:none")):
        with pytest.raises(PluginNotFound, match="can run on this machine") as caught:
            Registry.from_declarations(declarations).best_backend()
        assert "pip install apr-backend-" in caught.value.hint


def test_two_families_that_claim_one_architecture():
    rows = [Family(n, "m:F", architectures=("SameForCausalLM",)) for n in ("one", "two")]
    registry = Registry.from_declarations({"d": rows})
    with pytest.raises(PluginConflict, match="one, two"):
        registry.family_for(["SameForCausalLM"], "")


def test_a_file_in_a_format_whose_plugin_is_off_says_so_and_not_to_install_it():
    off = PluginRow("apr-toy", "1", "toy", "toy.hooks", "disabled", "the file disables it")
    find = partial(Registry([off]).get, "quantizer")
    spec = FormatSpec("toy", 200, 32, 18, distribution="apr-toy")
    entry = TensorEntry("w", "toy", 200, (1, 32), 0, 18, spec, Path("a.apr"))
    with pytest.raises(PluginNotFound) as caught:
        quantizer_for(entry, find)
    assert caught.value.hint == (
        "apr-toy:toy is disabled (the file disables it) and may have provided it."
    )
    with pytest.raises(PluginNotFound, match="toy") as caught:
        quantizer_for(entry, partial(Registry([]).get, "quantizer"))
    assert "pip install apr-toy" in caught.value.hint


def test_a_published_plugin_that_is_broken_is_not_to_be_installed_again(monkeypatch):
    monkeypatch.setattr("apr_core.registry.published", lambda kind: {"toy": "apr-toy"})
    broken = PluginRow("apr-toy", "1", "toy", "toy.hooks", "broken", "SyntaxError")
    with pytest.raises(PluginNotFound) as caught:
        Registry([broken]).get("quantizer", "toy")
    assert "pip install" not in caught.value.hint and "SyntaxError" in caught.value.hint
