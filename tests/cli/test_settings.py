"""The configuration file, however it was written and whatever lies in its place."""

from __future__ import annotations

import codecs
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from apr_core.cli import plugins
from apr_core.cli.plugins import change_disabled
from apr_core.errors import ConfigError
from apr_core.settings import read_settings

TEXT = '[plugins]\ndisable = ["one"]\nprefer = ["dist:name"]\n'
FORMS = {
    "plain": TEXT.encode(),
    "windows line ends": TEXT.replace("\n", "\r\n").encode(),
    "byte order mark": codecs.BOM_UTF8 + TEXT.encode(),
    "both": codecs.BOM_UTF8 + TEXT.replace("\n", "\r\n").encode(),
}


def apr(config, *args):
    """`apr` with that configuration file, which has to answer before long."""
    env = os.environ | {"APR_CONFIG": str(config), "APR_DEBUG": "0"}
    return subprocess.run(
        [sys.executable, "-m", "apr_core.cli", *args],
        env=env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_file_is_read_and_changed_as_any_editor_wrote_it(tmp_path, form):
    path = tmp_path / "c.toml"
    path.write_bytes(FORMS[form])
    assert read_settings(path).disable == ("one",)
    change_disabled(add=["two"], path=path)
    assert read_settings(path).disable == ("one", "two")
    after = path.read_bytes()
    assert after.startswith(codecs.BOM_UTF8) == FORMS[form].startswith(codecs.BOM_UTF8)
    assert after.count(b"\r\n") == FORMS[form].count(b"\r\n")


def test_another_encoding_is_refused_with_the_file(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(TEXT, "utf-16")
    with pytest.raises(ConfigError, match=r"c\.toml: 'utf-8' codec"):
        read_settings(path)


@pytest.mark.parametrize("command", ["list", "disable", "enable"])
def test_a_pipe_in_its_place_is_refused_at_once(tmp_path, command):
    pipe = tmp_path / "c.toml"
    os.mkfifo(pipe)
    done = apr(pipe, "plugins", command, *(["x"] if command != "list" else []))
    assert done.returncode == 2 and done.stderr.startswith(f"error: {pipe} is not a file")
    assert pipe.is_fifo() and [p.name for p in tmp_path.iterdir()] == ["c.toml"]


def test_a_pipe_in_its_place_is_a_problem_of_the_doctor(tmp_path):
    pytest.importorskip("apr_devkit")
    pipe = tmp_path / "c.toml"
    os.mkfifo(pipe)
    done = apr(pipe, "doctor")
    assert done.returncode == 1 and f"problem: {pipe} is not a file" in done.stdout


def test_a_folder_in_its_place_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a file"):
        read_settings(tmp_path)


def test_a_link_that_leads_nowhere_is_written_through(tmp_path):
    link, target = tmp_path / "c.toml", tmp_path / "elsewhere" / "real.toml"
    link.symlink_to(target)
    assert read_settings(link).disable == ()
    change_disabled(add=["one"], path=link)
    assert link.is_symlink() and tomllib.loads(target.read_text())["plugins"]["disable"] == ["one"]


def test_links_in_a_circle_are_refused(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.symlink_to(two)
    two.symlink_to(one)
    for attempt in (read_settings, lambda p: change_disabled(add=["x"], path=p)):
        with pytest.raises(ConfigError, match="symbolic links"):
            attempt(one)
    assert one.is_symlink() and two.is_symlink()


def test_the_null_device_is_no_settings_and_is_not_replaced(monkeypatch):
    null, written = Path(os.devnull), []
    monkeypatch.setattr(plugins, "write_whole", lambda *what: written.append(what))
    assert read_settings(null).disable == ()
    with pytest.raises(ConfigError, match="keeps nothing"):
        change_disabled(add=["one"], path=null)
    assert not written


@pytest.mark.parametrize("entry", ["name", ":name", "dist:", "", "dist: name"])
def test_a_preference_that_does_not_say_whose_it_is_is_refused(tmp_path, entry):
    path = tmp_path / "c.toml"
    path.write_text(f'[plugins]\nprefer = ["dist:good", "{entry}"]\n')
    with pytest.raises(ConfigError, match="does not say whose it is") as caught:
        read_settings(path)
    assert repr(entry) in caught.value.message and "distribution:name" in caught.value.hint
