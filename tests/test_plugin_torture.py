"""Thirty-five plugins that misbehave, at once: each is a row that says why, and no command needs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

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
    assert rows["apr-qwen3-5"]["status"] == "ok"


def test_no_hooks_module_is_imported_twice(tortured):
    tortured.rows()
    tortured.imports()
    assert tortured.rows()["x-hangs"]["status"] == "broken"
    assert tortured.run("--help").returncode == 0
    assert tortured.imports() == []


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


def test_a_taken_name_is_an_error_where_it_is_used(tortured, tmp_path):
    source = tiny_checkpoints.write(tmp_path / "checkpoint", family="qwen3_5")
    done = tortured.run("import", source, "--quantize", "q4k", "-o", tmp_path / "model.apr")
    assert done.returncode == 3
    assert "apr-quant-q4k:q4_k" in done.stderr and "x-claims-format:q4_k" in done.stderr
    (tortured.root / "c.toml").write_text('[plugins]\nprefer = ["apr-quant-q4k:q4_k"]\n')
    done = tortured.run("import", source, "--quantize", "q4k", "-o", tmp_path / "model.apr")
    (tortured.root / "c.toml").unlink()
    assert done.returncode == 0, done.stderr


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
