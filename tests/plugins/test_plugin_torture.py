"""Plugins that misbehave, all at once: each is a row, and no command needs any of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from apr_core import settings
from apr_core.errors import ConfigError
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

    def start(self, *args, **env):
        own = {
            "PYTHONPATH": str(self.root),
            "APR_CONFIG": str(self.root / "c.toml"),
            "APR_CACHE": str(self.root / "cache"),
        }
        return subprocess.Popen(
            [sys.executable, "-m", "apr_core.cli", *map(str, args)], env=os.environ | own | env,
            text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *args, **env):
        process = self.start(*args, **env)
        out, err = process.communicate()
        return subprocess.CompletedProcess(args, process.returncode, out, err)

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


def test_no_hooks_module_that_is_well_is_imported_twice(tortured):
    tortured.rows()
    tortured.imports()
    well = {name for name, (_, reason) in TORTURE.items() if not reason}
    assert tortured.run("--help").returncode == 0
    assert not well & set(tortured.imports())


@pytest.mark.parametrize("source", ["import time\ntime.sleep(1e6)", "raise KeyboardInterrupt"])
def test_one_that_hangs_is_interrupted_and_named(place, source):
    install(place.root, "x-hangs", source)
    process = place.start("plugins", "list")
    while not place.imports():
        time.sleep(0.05)
    if "sleep" in source:
        process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "x-hangs:x-hangs" in err and "APR_PLUGINS_BLOCK=x-hangs" in err
    assert place.rows(APR_PLUGINS_BLOCK="x-hangs")["x-hangs"]["status"] == "disabled"


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
    text = quantizer("mine", "import os\n").replace("'mine'", "os.environ['X_NAME']")
    install(place.root, "x-mine", text.replace('"mine"', "os.environ['X_NAME']"))
    provided = [
        place.rows(*refresh, X_NAME=name)["x-mine"]["provides"]["quantizer"]
        for name, refresh in (("one", ()), ("two", ()), ("two", ("--refresh",)))
    ]
    assert provided == [["one"], ["one"], ["two"]]


def test_a_disabled_plugin_is_not_imported(place):
    install(place.root, "x-mine", quantizer("mine"))
    assert place.rows(APR_PLUGINS_BLOCK="x-mine")["x-mine"]["status"] == "disabled"
    assert place.imports() == []
    assert place.rows()["x-mine"]["status"] == "ok"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"x-mine:x-mine": 1}'])
def test_a_memory_that_is_damaged_is_written_again(place, content):
    install(place.root, "x-mine", quantizer("mine"))
    place.rows()
    (memory,) = (place.root / "cache" / "plugins").glob("*.json")
    good = json.loads(memory.read_text())
    memory.write_text(content)
    assert place.rows()["x-mine"]["status"] == "ok"
    assert json.loads(memory.read_text()) == good


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
            "{",
            "{}",
        ),
    }[layout]
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


def test_without_a_home_folder_one_error_says_what_to_set(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(settings.Path, "home", no_home)
    with pytest.raises(ConfigError, match="no home folder") as refused:
        settings.config_path({})
    assert "APR_CONFIG" in refused.value.hint
    assert settings.config_path({"APR_CONFIG": "/a/b"}) == settings.Path("/a/b")
