"""Over thirty plugins that misbehave at once: each is a row, and no command needs any of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise

import pytest

from apr_core import plugin_memory, plugin_scan, settings
from apr_core.errors import ConfigError
from apr_core.plugin_memory import Scanned
from apr_core.plugin_rows import Found
from tests import tiny_checkpoints
from tests.torture import TORTURE, install, install_all, quantizer

HALF_INSTALLED = {
    "x-no-metadata": "half installed (x_no_metadata-1.0.dist-info)",
    "x-no-module": "No module named 'x_no_module_hooks'",
}


class Place:
    """A folder of plugins, and `apr` run with it on the path."""

    def __init__(self, root):
        self.root = root

    def run(self, *args, **env):
        own = {
            "PYTHONPATH": str(self.root), "APR_CONFIG": str(self.root / "c.toml"),
            "APR_CACHE": str(self.root / "cache"),
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, "-m", "apr_core.cli", *map(str, args)],
            env=os.environ | own | env, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def rows(self, *args, **env):
        done = self.run("plugins", "list", "--json", *args, **env)
        assert done.returncode == 0, done.stderr
        return {row["distribution"]: row for row in json.loads(done.stdout)}

    def imports(self):
        """Distributions whose hooks were imported since the last call."""
        log = self.root / "imports.log"
        names = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return names


@pytest.fixture(scope="module")
def tortured(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("torture"))
    install_all(place.root)
    return place


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_each_is_a_row_that_says_why(tortured):
    rows = tortured.rows()
    for distribution, (_, reason) in TORTURE.items():
        row = rows[distribution]
        expected = {"": "ok", "targets API 7": "incompatible"}.get(reason, "broken")
        assert row["status"] == expected, row
        assert reason in row["reason"], row
    for distribution, reason in HALF_INSTALLED.items():
        assert rows[distribution]["status"] == "broken"
        assert reason in rows[distribution]["reason"]


@pytest.mark.needs_plugins
def test_what_is_well_is_well_beside_them(tortured):
    assert tortured.rows()["apr-qwen3-5"]["status"] == "ok"


def test_no_hooks_module_is_imported_twice(tortured):
    tortured.rows()
    tortured.imports()
    assert tortured.rows()["x-hangs"]["status"] == "broken"
    assert tortured.run("--help").returncode == 0
    assert tortured.imports() == []


@pytest.mark.needs_plugins
def test_commands_work_beside_them(tortured, tmp_path):
    source = tiny_checkpoints.write(tmp_path / "checkpoint", family="qwen3_5")
    out = tmp_path / "model.apr"
    for command in (
        ["--help"], ["plugins", "list"], ["plugins", "show", "x-raises"],
        ["import", source, "--quantize", "q8_0", "-o", out], ["validate", out], ["tensors", out],
        ["run", out, "hi", "--raw", "--max-tokens", "2"],
    ):  # fmt: skip
        done = tortured.run(*command)
        assert done.returncode == 0, (command, done.stderr)
        assert "Traceback" not in done.stderr, command
    assert "not yours" not in tortured.run("--help").stdout


@pytest.mark.needs_plugins
def test_a_taken_name_is_an_error_where_it_is_used(tortured, tmp_path):
    source = tiny_checkpoints.write(tmp_path / "checkpoint", family="qwen3_5")
    done = tortured.run("import", source, "--quantize", "q4k", "-o", tmp_path / "model.apr")
    assert done.returncode == 3
    assert "apr-quant-q4k:q4_k" in done.stderr and "x-claims-format:q4_k" in done.stderr
    (tortured.root / "c.toml").write_text('[plugins]\nprefer = ["apr-quant-q4k:q4_k"]\n')
    done = tortured.run("import", source, "--quantize", "q4k", "-o", tmp_path / "model.apr")
    (tortured.root / "c.toml").unlink()
    assert done.returncode == 0, done.stderr


@pytest.mark.needs_plugins
def test_a_target_that_is_gone_is_an_error_where_it_is_used(tortured, tmp_path):
    source = tiny_checkpoints.write(tmp_path / "checkpoint", family="qwen3_5")
    out = tmp_path / "model.apr"
    assert tortured.run("import", source, "--quantize", "f16", "-o", out).returncode == 0
    done = tortured.run("export", out, "--format", "gone", "-o", tmp_path / "out")
    assert done.returncode == 3 and "no module named 'not'" in done.stderr


def test_metadata_that_cannot_be_read_is_a_row_too(place):
    """Alone: libraries that look for entry points of their own cannot read it either."""
    info = install(place.root, "x-garbled", "")
    (info / "entry_points.txt").write_text("[apr]\nno equals sign\n")
    row = place.rows()["x-garbled"]
    assert row["status"] == "broken"
    assert "half installed (x_garbled-1.0.dist-info)" in row["reason"]


def test_what_changes_is_looked_at_again(place):
    install(place.root, "x-mine", "raise RuntimeError('not yet')")
    install(place.root, "x-other", quantizer("other"))
    assert place.rows()["x-mine"]["status"] == "broken"
    place.imports()
    (place.root / "x_mine_hooks.py").write_text(quantizer("mine"))
    rows = place.rows()
    assert rows["x-mine"]["provides"] == {"quantizer": ["mine"]}
    assert place.imports() == [], "the other one did not change"
    install(place.root, "x-third", quantizer("third"))
    assert place.rows()["x-third"]["status"] == "ok"


def test_refresh_looks_at_all_of_them_again(place):
    install(place.root, "x-mine", quantizer("mine", "import os\nos.environ['WANTED']\n"))
    assert "KeyError" in place.rows()["x-mine"]["reason"]
    assert "KeyError" in place.rows(WANTED="1")["x-mine"]["reason"], "remembered"
    assert place.rows("--refresh", WANTED="1")["x-mine"]["status"] == "ok"


def test_a_disabled_plugin_is_not_imported(place):
    install(place.root, "x-mine", quantizer("mine"))
    assert place.rows(APR_PLUGINS_BLOCK="x-mine")["x-mine"]["status"] == "disabled"
    assert place.imports() == []
    assert place.rows()["x-mine"]["status"] == "ok"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"environment": 1}'])
def test_a_memory_that_is_damaged_is_written_again(place, content):
    install(place.root, "x-mine", quantizer("mine"))
    place.rows()
    (memory,) = (place.root / "cache" / "plugins").glob("*.json")
    good = memory.read_text()
    memory.write_text(content)
    assert place.rows()["x-mine"]["status"] == "ok"
    assert json.loads(memory.read_text())["environment"] == json.loads(good)["environment"]


def test_without_a_place_to_remember_plugins_work_all_the_same(place):
    install(place.root, "x-mine", quantizer("mine"))
    (place.root / "file").write_text("")
    assert place.rows(APR_CACHE=str(place.root / "file"))["x-mine"]["status"] == "ok"


def test_an_author_sees_the_traceback(place):
    install(place.root, "x-mine", "def broken():\n    1 / 0\nbroken()")
    done = place.run("plugins", "list", APR_DEBUG="1")
    assert done.returncode == 0
    assert "in broken" in done.stderr and "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize("layout", ["package", "namespace", "modules", "data"])
def test_what_repairs_a_plugin_is_seen(place, layout):
    """The error may come from a file that was never a module of the process that looked."""
    hooks, broken, good = {
        "package": ("from x_mine.part import HOOKS", "def (", "HOOKS = 1\n"),
        "namespace": ("from x_mine.part import HOOKS", "1 / 0", "HOOKS = 1\n"),
        "modules": ("import x_mine_part", "def (", ""),
        "data": (
            "import json, pathlib\njson.loads(pathlib.Path(__file__).with_name('d').read_text())",
            "{", "{}",
        ),
    }[layout]  # fmt: skip
    info = install(place.root, "x-mine", "")
    package = place.root / "x_mine"
    package.mkdir()
    if layout != "namespace":
        (package / "__init__.py").write_text("")
    entry = package / "hooks.py"
    entry.write_text(quantizer("mine", hooks + "\n"))
    (info / "entry_points.txt").write_text("[apr]\nx-mine = x_mine.hooks\n")
    part = {"modules": place.root / "x_mine_part.py", "data": package / "d"}.get(
        layout, package / "part.py"
    )
    part.write_text(broken)
    assert place.rows()["x-mine"]["status"] == "broken"
    part.write_text(good)
    assert place.rows()["x-mine"]["status"] == "ok"


def test_one_that_hung_gets_another_chance_later_and_later(tmp_path, monkeypatch):
    """A machine that was busy, or a disk that slept, condemns no plugin for ever."""
    now, looks = [1e9], []
    found = Found("x-mine", "1", "mine", "x_mine")

    def look(founds):
        looks.append(now[0])
        return {found.name: Scanned(found.row("broken", "took long"), stops=1)}

    monkeypatch.setattr(plugin_scan, "scan", look)
    monkeypatch.setattr(plugin_memory.time, "time", lambda: now[0])
    env = {"APR_CACHE": str(tmp_path)}
    for _ in range(2000):
        plugin_memory.rows(plugin_memory.recall(env), [found], [found], env)
        now[0] += 30
    assert [later - before for before, later in pairwise(looks)][:3] == [60, 120, 240]
    now[0] += 5e6
    plugin_memory.rows(plugin_memory.recall(env), [found], [found], env)
    assert looks[-1] == now[0]


def test_a_slow_import_says_how_to_look_again(place):
    install(place.root, "x-mine", "import time\ntime.sleep(1e6)")
    assert "--refresh" in place.rows()["x-mine"]["reason"]


@pytest.mark.parametrize("key", ["status", "reason", "declarations", "files", "stops", "until"])
@pytest.mark.parametrize("value", [None, 7, "x", [1], [["a", "b", "c"]], {"a": 1}])
def test_a_memory_of_another_shape_is_written_again(place, monkeypatch, key, value):
    """In this process: what is asked is whether recalling it raises."""
    found = Found("x-mine", "1", "mine", "x_mine")
    env = {"APR_CACHE": str(place.root)}
    looks = []

    def look(founds):
        looks.append(founds)
        return {found.name: Scanned(found.row("ok"))}

    monkeypatch.setattr(plugin_scan, "scan", look)
    plugin_memory.rows(plugin_memory.recall(env), [found], [found], env)
    (memory,) = (place.root / "plugins").glob("*.json")
    content = json.loads(memory.read_text())
    same = content["rows"][0][key] == value or (key, value) == ("reason", "x")
    content["rows"][0][key] = value
    memory.write_text(json.dumps(content))
    rows = plugin_memory.rows(plugin_memory.recall(env), [found], [found], env)
    assert rows[found.name].status == "ok"
    assert len(looks) == 1 + (not same)


def test_without_a_home_folder_one_error_says_what_to_set(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(settings.Path, "home", no_home)
    with pytest.raises(ConfigError, match="no home folder") as refused:
        settings.config_path({})
    assert "APR_CONFIG" in refused.value.hint
    assert settings.config_path({"APR_CONFIG": "/a/b"}) == settings.Path("/a/b")
