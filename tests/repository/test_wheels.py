"""The wheels as a user meets them: core alone, then package by package, in a fresh venv."""

from __future__ import annotations

import json
import zipfile

import pytest

from downstream.fresh import ROOT, FreshVenv
from tests import tiny_checkpoints

pytestmark = [pytest.mark.needs_plugins, pytest.mark.takes_minutes]

RUN = """
import sys
from apr_core.cli import run
code = run(sys.argv[1:])
from apr_backend_cpu.native import library
compilers = sorted({"numba", "llvmlite"} & set(sys.modules))
print(library().origin, library().level.name, compilers, file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory, wheels):
    return FreshVenv(tmp_path_factory.mktemp("fresh"), wheels=wheels)


def test_core_alone_then_what_it_asks_for(fresh, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    tiny_checkpoints.write(checkpoint, family="qwen3_5")
    out = tmp_path / "model.apr"
    command = ("import", checkpoint, "--quantize", "q4k", "-o", out)

    fresh.install("apr-core")
    listed = fresh.apr("plugins", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    assert json.loads(listed.stdout) == []
    for needed in ("apr-qwen3-5", "apr-quant-q4k"):
        refused = fresh.apr(*command)
        assert refused.returncode == 3
        assert f"pip install {needed}" in refused.stderr, refused.stderr
        assert not out.exists()
        fresh.install(needed)
    imported = fresh.apr(*command)
    assert imported.returncode == 0, imported.stderr
    assert fresh.apr("validate", out).returncode == 0

    without = fresh.apr("run", out, "hi", "--raw", "--max-tokens", "2")
    assert without.returncode == 3 and "pip install apr-backend-cpu" in without.stderr
    fresh.install("apr-backend-cpu")
    ran = fresh.apr("run", out, "hi", "--raw", "--max-tokens", "2", "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["completion_tokens"] >= 1


def test_the_server_wheel_carries_the_pages(fresh):
    names = zipfile.ZipFile(fresh.wheel("apr-serve")).namelist()
    page = ROOT / "plugins" / "apr_serve" / "src" / "apr_serve" / "page" / "static"
    files = {f"apr_serve/page/static/{file.name}" for file in page.iterdir()}
    assert files and files <= set(names)


def test_the_demo_wheel_carries_its_model(fresh, tmp_path):
    for name in ("apr-core", "apr-qwen3-5", "apr-quant-q4k", "apr-demo", "apr-qwen2"):
        fresh.install(name)
    out = tmp_path / "sums.apr"
    done = fresh.apr("import", "demo://sums", "--quantize", "q8_0", "-o", out)
    assert done.returncode == 0, done.stderr
    rows = json.loads(fresh.apr("plugins", "list", "--json").stdout)
    assert {row["status"] for row in rows} == {"ok"}


def test_a_first_run_compiles_nothing(fresh, tmp_path):
    """No compiler, no home, no cache: the wheel's library is opened, and Numba is not imported."""
    from apr_backend_cpu.build.link import LinkError, linker
    from apr_backend_cpu.levels import GENERIC, possible

    try:
        linker()
    except LinkError as error:
        pytest.skip(f"the wheel has no machine code: {error}")
    for name in ("apr-core", "apr-qwen3-5", "apr-quant-q4k", "apr-demo", "apr-backend-cpu"):
        fresh.install(name)
    file = tmp_path / "sums.apr"
    done = fresh.apr("import", "demo://sums", "--quantize", "q8_0", "-o", file)
    assert done.returncode == 0, done.stderr

    levels = [level.name for level in possible() if level is not GENERIC]  # the best one first
    for number, level in enumerate(["", *levels]):
        empty = tmp_path / str(number)
        bare = {"PATH": str(fresh.venv / "bin"), "HOME": str(empty), "APR_CACHE": str(empty / "c"),
                "NUMBA_CACHE_DIR": str(empty / "n"), "APR_CPU_LEVEL": level}  # fmt: skip
        ran = fresh.run("python", "-c", RUN, "run", file, "What is 17+25?", env=bare)
        assert ran.returncode == 0 and ran.stdout.strip() == "42", ran.stderr
        origin, opened, compilers = ran.stderr.splitlines()[-1].split(maxsplit=2)
        assert opened == (level or levels[0])
        assert origin.startswith(f"{opened}-") and origin.endswith(".so")
        assert compilers == "[]"
