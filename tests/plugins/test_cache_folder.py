"""Caches that cannot be used: another folder or none, and one line that says so."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile

import pytest

from apr_core import settings
from apr_core.settings import usable_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A place of this test's own for temporary files, and nothing said yet."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    settings._say_once.cache_clear()
    return place


@pytest.fixture
def blocked(tmp_path):
    """A cache folder below something that is no folder."""
    (tmp_path / "file").write_text("mine")
    return tmp_path / "file" / "kernels"


def own(temporary):
    return temporary / f"apr-{os.getuid()}"


def test_a_folder_that_can_be_written_is_made_and_taken(tmp_path, capsys):
    wanted = tmp_path / "deep" / "kernels"
    assert usable_folder(wanted, "cpu", "code", "APR_CACHE") == wanted / "cpu"
    assert (
        (wanted / "cpu").is_dir()
        and not list((wanted / "cpu").iterdir())
        and not capsys.readouterr().err
    )


def test_another_is_said_once_with_the_reason_and_what_to_do(temporary, blocked, capsys):
    for _ in range(2):
        folder = usable_folder(blocked, "cpu", "compiled code", "APR_CACHE")
        assert folder == own(temporary) / "kernels" / "cpu" and folder.is_dir()
    notice = capsys.readouterr().err
    assert notice == (
        f"notice: {blocked} cannot be used (Not a directory): compiled code is kept in "
        f"{folder.parent}. Set APR_CACHE to a folder that you can write to.\n"
    )
    assert stat.S_IMODE(own(temporary).stat().st_mode) == 0o700


@pytest.mark.parametrize("trick", ["others write", "link", "file"])
def test_a_folder_that_others_may_have_made_is_not_trusted(
    temporary, blocked, tmp_path, capsys, trick
):
    place = own(temporary)
    if trick == "others write":
        place.mkdir()
        place.chmod(0o777)
    elif trick == "link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "theirs")
    else:
        place.write_text("")
    assert usable_folder(blocked, "cpu", "code", "APR_CACHE") is None
    assert "code is not kept, but made anew each time" in capsys.readouterr().err


def test_a_folder_of_somebody_else_is_not_trusted(temporary, blocked, monkeypatch):
    monkeypatch.setattr(settings, "_user", lambda: os.getuid() + 1)
    assert usable_folder(blocked, "cpu", "code", "APR_CACHE") is None


COMPILES = """
import numpy as np
from apr_core.registry import get_registry
codec = get_registry().make("quantizer", "q8_0")
print(codec.decode(np.zeros((1, 34), np.uint8), 32).sum())
"""


@pytest.mark.parametrize("elsewhere", [True, False])
def test_codecs_are_compiled_without_a_usable_cache(temporary, blocked, elsewhere):
    pytest.importorskip("apr_quant_q4k", reason="codecs that compile")
    kernels = own(temporary) / "numba"
    if not elsewhere:
        own(temporary).write_text("")
    env = os.environ | {"APR_CACHE": str(blocked), "TMPDIR": str(temporary)}
    env.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-c", COMPILES], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0.0\n"
    kept = f"is kept in {kernels}" if elsewhere else "is not kept"
    notices = [line for line in done.stderr.splitlines() if "compiled code" in line]
    assert len(notices) == 1 and kept in notices[0] and "Set APR_CACHE" in notices[0]
    assert bool(list(kernels.rglob("q8_0.decode_blocks*.nbc"))) == elsewhere
