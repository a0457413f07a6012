"""How the kernels' libraries are built: by whom, under which names, and what if nothing links."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import apr_backend_cpu
from apr_backend_cpu.build import link
from apr_backend_cpu.build.__main__ import main, remove_old
from apr_backend_cpu.build.platforms import PLATFORMS
from apr_backend_cpu.levels import LEVELS
from apr_backend_cpu.shipped import library_path, source_hash

PACKAGE = Path(apr_backend_cpu.__file__).parent
PROJECT = PACKAGE.parent.parent


@pytest.fixture
def no_linker(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(link.importlib.util, "find_spec", lambda name: None)


def test_packages_are_built_where_the_core_is_not_installed():
    code = (
        "import sys, apr_backend_cpu.build.__main__, apr_backend_cpu.build.emit;"
        "sys.exit(any(name.partition('.')[0] == 'apr_core' for name in sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_a_library_is_named_by_all_that_machine_code_is_made_from(tmp_path):
    copy = tmp_path / "apr_backend_cpu"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("libraries", "__pycache__"))
    code = "from apr_backend_cpu.shipped import source_hash; print(source_hash())"

    def named() -> str:
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        return subprocess.check_output(
            [sys.executable, "-c", code], env=environment, text=True
        ).strip()

    assert named() == source_hash()
    for kind, changed in (
        ("backend.py", False), ("build/__main__.py", False), ("levels.py", True),
        ("layout_constants.py", True), ("kernels/linear/formats.py", True),
    ):  # fmt: skip
        before = named()
        with (copy / kind).open("a") as file:
            file.write("# changed\n")
        assert (named() != before) == changed, kind


def test_without_a_linker_this_system_is_told_what_follows(no_linker, tmp_path, capsys):
    for arguments in ([], ["--platform", "here"]):
        assert main([*arguments, "--out", str(tmp_path)]) == 0
        assert "note:" in (output := capsys.readouterr().out) and "compiled at first use" in output
    assert not list(tmp_path.glob("*.so"))


def test_what_was_asked_for_by_name_has_to_be_built(no_linker, tmp_path, capsys):
    name = next(iter(LEVELS))
    assert main([name, "--out", str(tmp_path)]) == 1
    assert "C compiler" in capsys.readouterr().err
    assert main(["--platform", "linux-aarch64", "--out", str(tmp_path)]) == 1
    assert "ziglang" in capsys.readouterr().err


def test_an_unknown_level_or_platform_is_an_error(capsys):
    for arguments in (["x86-64-v9"], ["--platform", "plan9-mips"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert "x86-64-v4" in (message := capsys.readouterr().err) or "linux-x86_64" in message


def test_what_is_there_is_not_built_again_and_what_is_old_goes(no_linker, tmp_path):
    v2, v3 = LEVELS["x86-64-v2"], LEVELS["x86-64-v3"]
    now, old, other = library_path(v2, tmp_path), f"{v2.name}-{'0' * 16}.so", f"{v3.name}-1.so"
    for name in (now.name, old, other):
        (tmp_path / name).touch()
    assert main([v2.name, "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.glob("*.so")} == {now.name, other}


def test_a_level_whose_name_begins_like_another_s_is_not_old(tmp_path):
    wide = library_path(LEVELS["x86-64-v4-vnni"], tmp_path)
    wide.touch()
    remove_old([LEVELS["x86-64-v4"]], tmp_path)
    assert wide.exists()


def test_every_level_belongs_to_a_platform():
    assert {v.name for p in PLATFORMS.values() for v in p.levels()} == set(LEVELS)


@pytest.mark.skipif(importlib.util.find_spec("ziglang") is not None, reason="zig would link")
@pytest.mark.skipif(not (PROJECT / "hatch_build.py").exists(), reason="needs a checkout")
def test_a_wheel_without_libraries_is_for_every_platform(tmp_path):
    """Sources without a linker: no failure, and no platform in the wheel's name."""
    copy = tmp_path / "sources"
    shutil.copytree(PROJECT, copy, ignore=shutil.ignore_patterns("libraries", "__pycache__"))
    environment = {k: v for k, v in os.environ.items() if k != "CC"} | {"PATH": ""}
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", tmp_path, copy],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "compiled at first use" in done.stdout
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
