"""Lists ask probes whether a plugin's backends can run here; commands that run models do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from apr_core.declarations import Backend, Family
from apr_core.errors import BackendUnavailable, PluginBroken
from apr_core.model.loading import make_backend
from apr_core.plugin import BackendPlugin
from apr_core.registry import Registry
from tests.torture import declaring, install

HERE = __name__
ROOT = Path(__file__).parents[2]


def runs():
    return 5, "two of them"


def refuses():
    return 0, "no such device\nhere"


def raises():
    raise OSError("no driver")


def exits():
    raise SystemExit(3)


def answers_nothing():
    return None


def answers_a_word():
    return "much", "a reason"


def npu(probe="", name="npu", **fields):
    return Backend(name, f"{HERE}:Npu", probe=f"{HERE}:{probe}" if probe else "", **fields)


class Npu(BackendPlugin):
    """A backend that is made whatever the probe says."""

    def __init__(self, threads=None):
        self.threads = threads


def row(*declarations):
    [plugin] = Registry.from_declarations({"x-npu": declarations}).rows_here()
    return plugin.status, plugin.reason


@pytest.mark.parametrize("probe", ["", "runs"])
def test_a_plugin_whose_backend_can_run_here_is_ok(probe):
    assert row(npu(probe)) == ("ok", "")


def test_one_whose_backend_cannot_is_unavailable_for_the_reason_its_probe_gives():
    assert row(npu("refuses"), Family("f", "m:F")) == ("unavailable", "no such device here")


def test_one_of_several_backends_that_can_run_is_enough():
    assert row(npu("refuses"), npu("runs", "other")) == ("ok", "")


def test_of_several_backends_that_cannot_each_gives_its_reason():
    status, reason = row(npu("refuses"), npu("raises", "other"))
    assert status == "unavailable"
    assert reason.startswith("npu: no such device here; other: the probe of backend 'other'")


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ("raises", "OSError: no driver"), ("exits", "SystemExit: 3"),
        ("answers_nothing", "TypeError"), ("answers_a_word", "ValueError"),
        ("not_there", "not_there"),
    ],
)  # fmt: skip
def test_a_probe_that_fails_makes_its_plugin_broken_and_no_other(probe, words):
    registry = Registry.from_declarations({"x-npu": [npu(probe)], "x-other": [npu("runs", "o")]})
    broken, other = registry.rows_here()
    assert broken.status == "broken" and words in broken.reason and other.status == "ok"
    with pytest.raises(PluginBroken, match=words):
        make_backend(registry, "npu", None)
    assert registry.best_backend() == "o"


def test_what_is_missing_is_said_before_any_probe_is_asked():
    absent = npu("raises", requires=("module_of_nobody",))
    registry = Registry.from_declarations({"x-npu": [absent]})
    assert registry.probe(registry.get("backend", "npu")) == (0, "not installed: module_of_nobody")
    with pytest.raises(BackendUnavailable, match="needs module_of_nobody") as refused:
        make_backend(registry, "npu", None)
    assert refused.value.exit_code == 14 and "pip install module_of_nobody" in refused.value.hint


def test_a_backend_that_cannot_run_is_refused_with_its_reason():
    registry = Registry.from_declarations({"x-npu": [npu("refuses")]})
    with pytest.raises(BackendUnavailable, match="no such device here") as refused:
        make_backend(registry, "npu", None)
    assert refused.value.exit_code == 14


PROBE = """
import os
from pathlib import Path


def probe():
    with Path(__file__).with_name("asked.log").open("a") as log:
        log.write("asked\\n")
    print("{ hello")
    os.write(1, b"{ from a driver")
    return 0, "no such device here"
"""


class Machine:
    """`apr` beside a plugin for a device that is not there, and that prints when it is asked."""

    def __init__(self, root):
        self.root = root
        record = 'Backend("npu", "x_npu_probe:B", probe="x_npu_probe:probe", summary="an NPU")'
        install(root, "x-npu", declaring("Backend", "apr_backends", record))
        (root / "x_npu_probe.py").write_text(PROBE)

    def run(self, *args):
        own = {
            "PYTHONPATH": f"{self.root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "APR_CONFIG": str(self.root / "c.toml"),
            "APR_CACHE": str(self.root / "cache"),
        }
        return subprocess.run(
            [sys.executable, "-m", "apr_core.cli", *map(str, args)],
            env=os.environ | own, capture_output=True, text=True,
        )  # fmt: skip

    def asked(self):
        """How often since the last call."""
        log = self.root / "asked.log"
        times = log.read_text().count("asked") if log.exists() else 0
        log.unlink(missing_ok=True)
        return times


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.mark.parametrize("command", [["list"], ["show", "x-npu"]])
def test_lists_show_it_and_what_a_probe_prints_is_not_on_stdout(machine, command):
    done = machine.run("plugins", *command, "--json")
    rows = {each["distribution"]: each for each in json.loads(done.stdout)}
    assert rows["x-npu"]["status"] == "unavailable"
    assert rows["x-npu"]["reason"] == "no such device here"
    assert machine.asked() == 1
    assert "{ hello" in done.stderr and "{ from a driver" in done.stderr


def test_a_person_reads_the_reason_below_the_table_and_in_the_doctors_report(machine):
    pytest.importorskip("apr_devkit")
    listed = machine.run("plugins", "list")
    assert "! x-npu: no such device here" in listed.stdout.splitlines()
    examined = machine.run("doctor").stdout
    assert "x-npu" in examined and "unavailable: no such device here" in examined


def test_checks_of_it_are_skipped_for_that_reason_and_none_fails(machine):
    pytest.importorskip("apr_devkit")
    (machine.root / "x_npu_probe.py").write_text(PROBE + "\n\nclass B:\n    pass\n")
    done = machine.run("plugins", "check", "x-npu", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0 and not report["failed"] and report["passed"]
    of_the_device = [r for r in report["results"] if r["subject"] == "backend npu"]
    assert {r["outcome"] for r in of_the_device} == {"skipped"}
    assert all("no such device here" in r["reason"] for r in of_the_device)


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["validate", "nowhere.apr"]])
def test_no_other_command_asks(machine, command):
    machine.run(*command)
    assert machine.asked() == 0


@pytest.mark.needs_plugins
def test_naming_a_backend_asks_no_other(machine, tmp_path):
    done = machine.run("import", "demo://sums", "--quantize", "q8_0", "-o", tmp_path / "sums.apr")
    assert done.returncode == 0, done.stderr
    ran = machine.run("run", tmp_path / "sums.apr", "1+1=", "--backend", "cpu", "--max-tokens", "1")
    assert ran.returncode == 0, ran.stderr
    assert machine.asked() == 0


def test_a_probe_is_asked_though_stdout_is_closed():
    """As services have it."""
    code = (
        "import sys\n"
        "from tests.plugins.test_probing import Registry, npu\n"
        "registry = Registry.from_declarations({'x-npu': [npu('runs')]})\n"
        "print(registry.best_backend(), file=sys.stderr)\n"
    )
    command = f'exec "{sys.executable}" -c "$CODE" >&-'
    done = subprocess.run(
        ["sh", "-c", command], env=os.environ | {"CODE": code}, cwd=ROOT, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "npu\n")
