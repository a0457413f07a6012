"""`apr plugins check`, `enable`, `disable` and `freeze`, as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from apr_core.cli.plugins import change_disabled
from apr_core.errors import ConfigError, InputOutputError
from apr_devkit.cli.freeze import direct_reference

COMMAND = """
from apr_core.plugin import Command, hookimpl
{before}
@hookimpl
def apr_commands():
    return [Command("{name}", "{module}_command:command", summary="Greet.")]
"""
CLICK = """
import click

@click.command()
def command():
    "Greet."
"""


class Place:
    """Distributions on a path, a configuration file, and `apr` run with both."""

    def __init__(self, root):
        self.root, self.config = root / "packages", root / "config.toml"
        self.root.mkdir()

    def add(self, dist, name="greet", before="", **files):
        """A distribution with one command; `files` are (relative name with __ for /) -> text."""
        module = dist.replace("-", "_")
        (self.root / f"{module}.py").write_text(
            COMMAND.format(before=before, name=name, module=module)
        )
        (self.root / f"{module}_command.py").write_text(CLICK)
        info = self.root / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[apr]\n{name}_entry = {module}\n")
        for file, text in files.items():
            (info / file.replace("__", ".")).write_text(text)

    def run(self, *args, **env):
        own = {
            "PYTHONPATH": str(self.root), "APR_CONFIG": str(self.config),
            "APR_CACHE": str(self.root / "cache"), "APR_DEBUG": "0",
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, "-m", "apr_core.cli", "plugins", *map(str, args)],
            env=os.environ | own | env, capture_output=True, text=True,
        )  # fmt: skip

    def json(self, *args, code=0, **env):
        done = self.run(*args, "--json", **env)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    def status(self, dist, **env):
        return next(r["status"] for r in self.json("list", **env) if r["distribution"] == dist)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


@pytest.mark.parametrize("name", ["X_Greeter", "greet_entry", "x-greeter:greet_entry", "greet"])
def test_a_good_plugin_passes_by_any_of_its_names(place, name):
    place.add("x-greeter")
    done = place.run("check", name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "plugin x-greeter\n  ok       The hooks module loads" in done.stdout
    assert "command greet\n  ok       The target is a click command" in done.stdout
    lines = done.stdout.splitlines()
    assert lines[-1] == f"{sum(line.startswith('  ok') for line in lines)} checks"


def test_a_failed_check_says_why_and_ends_with_5(place):
    place.add("x-heavy", before="import numpy")
    done = place.run("check", "x-heavy")
    assert done.returncode == 5
    assert "  FAILED   Hooks import only the standard library" in done.stdout
    assert "x_heavy imports numpy" in done.stdout
    assert ", 1 failed" in done.stdout.splitlines()[-1]
    assert "error: x-heavy failed 1 of" in done.stderr and "Traceback" not in done.stderr


def test_json_is_one_document_with_every_check_whatever_the_plugin_prints(place):
    place.add("x-heavy", before="import numpy\nprint('hello')")
    report = place.json("check", "x-heavy", code=5)
    assert report["checks"] == len(report["results"]) == report["passed"] + report["failed"]
    failed = {r["check"] for r in report["results"] if r["outcome"] == "failed"}
    assert failed == {"test_hooks_are_light_and_pure"}
    assert report["plugins"] == ["x-heavy:greet_entry"]


def test_a_skipped_check_has_a_reason_and_did_not_pass(place):
    place.add("x-source")
    hooks = (place.root / "x_source.py").read_text()
    hooks = hooks.replace("apr_commands", "apr_sources").replace("Command", "Source")
    (place.root / "x_source.py").write_text(hooks)
    (place.root / "x_source_command.py").write_text(
        "from apr_core.plugin import NotFound\n\n"
        "def command(url, *, progress=None, force=False):\n    raise NotFound(url)\n"
    )
    report = place.json("check", "x-source")
    skipped = [r for r in report["results"] if r["outcome"] == "skipped"]
    assert report["skipped"] == len(skipped) > 0 and all(r["reason"] for r in skipped)
    assert report["passed"] + report["skipped"] == report["checks"]
    summary = place.run("check", "x-source").stdout.splitlines()[-1]
    assert summary.startswith(f"{report['checks']} checks, {len(skipped)} skipped: ")
    assert summary.count("no URL to fetch") == 1


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import module_of_nobody", "module_of_nobody"),
    ],
)
def test_a_broken_plugin_is_a_failed_check_and_its_code_is_not_run_again(place, before, reason):
    place.add("x-broken", before=before)
    report = place.json("check", "x-broken", code=5)
    first, *others = report["results"]
    assert first["outcome"] == "failed" and reason in first["reason"]
    assert {r["outcome"] for r in others} == {"skipped"}
    assert all("x-broken:greet_entry is broken" in r["reason"] for r in others)


def test_an_incompatible_plugin_is_a_failed_check_with_both_numbers(place):
    place.add("x-future")
    hooks = (place.root / "x_future.py").read_text()
    (place.root / "x_future.py").write_text(hooks.replace('summary="Greet."', "summary='', api=9"))
    first = place.json("check", "x-future", code=5)["results"][0]
    assert "API 9" in first["reason"] and "API 1" in first["reason"]


def test_a_name_that_is_claimed_twice_fails_for_both(place):
    place.add("x-one")
    place.add("x-two")
    for name in ("x-one", "x-two"):
        results = place.json("check", name, code=5)["results"]
        failed = [r for r in results if r["outcome"] == "failed"]
        assert any("x-one:greet" in r["reason"] for r in failed)
        assert {r["subject"] for r in results} >= {f"plugin {name}", f"command {name}:greet"}


def test_an_unknown_name_is_not_found_with_names_that_are_close(place):
    place.add("x-greeter")
    for command in (("check", "x-greter"), ("show", "x-greter"), ("disable", "x-greter")):
        done = place.run(*command)
        assert done.returncode == 3 and "'x-greter'" in done.stderr
        assert "Did you mean x-greeter" in done.stderr, done.stderr


def test_disabled_until_enabled(place):
    place.add("x-greeter")
    done = place.run("disable", "X_Greeter")
    assert done.returncode == 0
    assert done.stdout == f"disabled: x-greeter:greet_entry (in {place.config})\n"
    assert tomllib.loads(place.config.read_text()) == {"plugins": {"disable": ["x-greeter"]}}
    assert place.status("x-greeter") == "disabled"
    again = place.run("disable", "x-greeter")
    assert again.returncode == 0 and "already disabled" in again.stdout
    assert place.json("enable", "greet_entry")["changed"] == ["x-greeter:greet_entry"]
    assert place.status("x-greeter") == "ok"
    again = place.run("enable", "x-greeter")
    assert again.returncode == 0 and "already enabled" in again.stdout


def test_a_broken_plugin_can_be_disabled(place):
    place.add("x-broken", before="raise RuntimeError('boom')")
    assert place.status("x-broken") == "broken"
    assert place.run("disable", "greet_entry").returncode == 0
    assert place.status("x-broken") == "disabled"


def test_what_a_plugin_provides_is_not_its_name(place):
    place.add("x-greeter")
    done = place.run("disable", "greet")
    assert done.returncode == 3
    assert "apr plugins disable x-greeter" in done.stderr and not place.config.exists()


def test_a_plugin_that_is_gone_can_still_be_taken_off_the_list(place):
    place.config.write_text('[plugins]\ndisable = ["gone", "x"]\n')
    assert place.json("enable", "gone")["changed"] == ["gone"]
    assert tomllib.loads(place.config.read_text())["plugins"]["disable"] == ["x"]


def test_an_environment_variable_that_says_otherwise_is_mentioned(place):
    place.add("x-greeter")
    place.config.write_text('[plugins]\ndisable = ["x-greeter"]\n')
    done = place.run("enable", "x-greeter", APR_PLUGINS_BLOCK="x-greeter")
    assert done.returncode == 0
    assert "stays disabled here: APR_PLUGINS_BLOCK names it" in done.stderr
    report = place.json("disable", "x-greeter", APR_PLUGINS="other")
    assert "APR_PLUGINS=other does not name it" in report["notes"][0]


def test_a_configuration_file_that_is_wrong_is_left_as_it_is(place):
    place.add("x-greeter")
    place.config.write_text("[plugins\n")
    done = place.run("disable", "x-greeter")
    assert done.returncode == 2 and str(place.config) in done.stderr
    assert place.config.read_text() == "[plugins\n"


COMMENTED = """\
# mine
[cache]   # a big disk
dir = '/big'

[plugins]
disable = [
    "one",  # too slow
    "two",
]
prefer = ["a:b"]  # ours
"""


def test_everything_else_in_the_file_stays_as_it_was_written(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(COMMENTED)
    change_disabled(add=["three"], path=path)
    added = path.read_text()
    assert tomllib.loads(added)["plugins"]["disable"] == ["one", "two", "three"]
    change_disabled(remove=["two", "three"], path=path)
    lines = path.read_text().splitlines()
    assert set(lines) <= set(COMMENTED.splitlines()) and '    "one",  # too slow' in lines
    assert [line for line in COMMENTED.splitlines() if line not in lines] == ['    "two",']


@pytest.mark.parametrize(
    "before",
    [
        "", "plugins.disable = ['x']\n", "[plugins]\n",
        "[plugins]\r\nprefer = []\r\n", "# only a comment", "[ plugins ]\n'disable' = []",
    ],
)  # fmt: skip
def test_every_way_to_write_the_list_can_be_changed(tmp_path, before):
    path = tmp_path / "deep" / "c.toml"
    path.parent.mkdir()
    path.write_bytes(before.encode())
    change_disabled(add=["new"], path=path)
    content, old = tomllib.loads(path.read_bytes().decode()), tomllib.loads(before)
    assert content["plugins"].pop("disable") == [*old.get("plugins", {}).pop("disable", []), "new"]
    assert content.get("plugins", {}) == old.get("plugins", {})


@pytest.mark.parametrize(
    "before", ["plugins = {disable = ['x']}\n", "[plugins]\ndisable = ['a]', 'x']\n"]
)
def test_a_text_that_cannot_be_changed_safely_is_left_alone(tmp_path, before):
    path = tmp_path / "c.toml"
    path.write_text(before)
    with pytest.raises(ConfigError, match="untouched") as refused:
        change_disabled(add=["three"], path=path)
    assert "disable = [" in refused.value.hint and "'three'" in refused.value.hint
    assert path.read_text() == before


def test_a_link_stays_a_link_and_permissions_stay(tmp_path):
    real, link = tmp_path / "real.toml", tmp_path / "c.toml"
    real.write_text("")
    real.chmod(0o600)
    link.symlink_to(real)
    change_disabled(add=["a"], path=link)
    assert link.is_symlink() and real.stat().st_mode & 0o777 == 0o600
    assert 'disable = ["a"]' in real.read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.toml", "real.toml"]


def test_a_file_that_cannot_be_written_is_an_error_with_7(tmp_path, monkeypatch):
    path = tmp_path / "c.toml"
    path.write_text(COMMENTED)

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputOutputError, match="No space left") as caught:
        change_disabled(add=["three"], path=path)
    assert caught.value.exit_code == 7 and "APR_CONFIG" in caught.value.hint
    assert path.read_text() == COMMENTED
    assert [p.name for p in tmp_path.iterdir()] == ["c.toml"]


def test_freeze_prints_what_pip_can_install_again(place):
    place.add("x-released")
    editable = {"url": "file:///home/me/my%20plugin", "dir_info": {"editable": True}}
    place.add("x-editable", "b", direct_url__json=json.dumps(editable))
    wheel = {"url": "file:///w/x.whl", "archive_info": {"hashes": {"sha256": "ab"}}}
    place.add("x-wheel", "c", direct_url__json=json.dumps(wheel))
    place.add("x-wrong", "d", direct_url__json="{")
    lines = place.run("freeze").stdout.splitlines()
    assert "x-released==1.0" in lines
    assert "-e '/home/me/my plugin'  # x-editable==1.0" in lines
    assert "x-wheel @ file:///w/x.whl#sha256=ab" in lines
    assert any(line.startswith("# x-wrong: half installed") for line in lines)
    rows = place.json("freeze")
    assert [row["requirement"] for row in rows] == lines
    assert [row["name"] for row in rows] == sorted(row["name"] for row in rows)
    assert "apr-core" in {row["name"] for row in rows}
    assert {row["name"]: row["editable"] for row in rows}["x-editable"]


def test_a_repository_is_named_with_its_commit():
    origin = {
        "url": "https://example.org/p.git",
        "subdirectory": "plugins/x",
        "vcs_info": {"vcs": "git", "commit_id": "c0ffee"},
    }
    expected = "git+https://example.org/p.git@c0ffee#subdirectory=plugins/x"
    assert direct_reference(origin) == expected


def test_what_is_frozen_disabled_or_not_is_what_is_installed(place):
    place.add("x-greeter")
    before = place.run("freeze").stdout
    place.run("disable", "x-greeter")
    assert place.run("freeze").stdout == before
