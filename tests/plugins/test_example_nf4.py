"""A format of a third party from installing its package to living without it, in a fresh venv."""

from __future__ import annotations

import json

import pytest

from downstream.fresh import FreshVenv
from tests.serve.serving import started, wait_until_ready

pytestmark = [pytest.mark.needs_plugins, pytest.mark.takes_minutes]

NEEDED = ("apr-core", "apr-qwen3-5", "apr-backend-cpu", "apr-demo", "apr-eval", "apr-serve")


@pytest.fixture(scope="module")
def venv(tmp_path_factory, wheels):
    environment = FreshVenv(tmp_path_factory.mktemp("nf4"), wheels=wheels)
    environment.install(*NEEDED)
    return environment


@pytest.fixture(scope="module")
def file(venv, tmp_path_factory):
    """The demo model in nf4, made by the package, which is uninstalled again afterwards."""
    target = tmp_path_factory.mktemp("file") / "sums.apr"
    venv.install("apr-quant-nf4")
    done = venv.run("apr", "import", "demo://sums", "--quantize", "nf4", "-o", target)
    assert done.returncode == 0, done.stderr
    check_with_the_package(venv, target)
    done = venv.run("python", "-m", "pip", "uninstall", "-q", "-y", "apr-quant-nf4")
    assert done.returncode == 0, done.stderr
    return target


def check_with_the_package(venv, file):
    report = json.loads(ok(venv, "validate", file, "--json"))
    assert all(check["status"] == "passed" for check in report["checks"]), report
    assert ok(venv, "run", file, "12+34=").strip() == "46"
    assert "linear[nf4] x26          kernel" in venv.run("apr", "run", file, "1+1=", "-v").stderr
    assert "decode, batch 1" in ok(venv, "bench", file, "--warmup", "0", "--measure", "1")
    server = wait_until_ready(started(venv.command("apr", "serve", file), venv.environment()))
    try:
        asked = {"messages": [{"role": "user", "content": "12+34="}], "temperature": 0}
        answer = server.post("/v1/chat/completions", asked).json()
        assert answer["choices"][0]["message"]["content"] == "46"
        [model] = server.get("/v1/models").json()["data"]
        assert any("linear[nf4] x26" in line and "kernel" in line for line in model["bound"])
    finally:
        assert server.terminate() == 0


def ok(venv, *command):
    done = venv.run("apr", *command)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def test_a_file_says_what_it_holds_when_nobody_reads_its_format(venv, file):
    assert "nf4" in ok(venv, "inspect", file)
    rows = json.loads(ok(venv, "tensors", file, "--json"))["tensors"]
    assert sum(row["format"] == "nf4" for row in rows) == 26


def test_running_it_names_the_package(venv, file):
    for command in ("run", "bench", "serve"):
        done = venv.run("apr", command, file, *(["hi"] if command == "run" else []))
        assert done.returncode == 3
        assert "no installed plugin reads format 'nf4'" in done.stderr
        assert "pip install apr-quant-nf4" in done.stderr


def test_validation_says_which_checks_could_not_run(venv, file):
    report = json.loads(ok(venv, "validate", file, "--json"))
    status = {check["name"]: check["status"] for check in report["checks"]}
    assert status["contract"] == status["footer-checksum"] == "passed"
    assert status["values-finite"] == status["values-plausible"] == "not_run"
    assert "pip install apr-quant-nf4" in json.dumps(report)


def test_its_recipe_is_an_unknown_name_now(venv, file, tmp_path):
    done = venv.run("apr", "import", "demo://sums", "--quantize", "nf4", "-o", tmp_path / "x.apr")
    assert done.returncode == 3
    assert "nf4" in done.stderr
    assert not (tmp_path / "x.apr").exists()
