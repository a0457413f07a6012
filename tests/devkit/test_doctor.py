"""`apr doctor`: every part tells the truth, and none of them takes another one down."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace

import pytest

from apr_core import registry
from apr_core.cli import run
from apr_core.declarations import Backend, Family, Quantizer
from apr_core.discovery import PluginRow
from apr_core.errors import ConfigError
from apr_core.plugin import BackendPlugin
from apr_core.registry import Registry
from apr_devkit.doctor import Finding, configuration, examine, machine, plugins, storage

PARTS = [
    "system", "processor", "memory", "devices", "plugins", "libraries", "storage", "configuration",
]  # fmt: skip
FAMILY = Family("fam", "m:F", summary="a family")


class Good(BackendPlugin):
    """A backend that works."""

    def __init__(self, threads=None):
        self.threads = threads

    def describe(self):
        return "a fine device"

    def caches(self):
        return [("compiled", Good.folder)]


class Raises(BackendPlugin):
    """A backend whose driver is broken."""

    def __init__(self, threads=None):
        raise OSError("no driver")


def probe_zero():
    return 0, "no such device here"


def probe_two():
    return 2, "version 7"


HERE = __name__


def backend(name, target="Good", **fields):
    return Backend(name, f"{HERE}:{target}", summary="a backend", **fields)


def use(monkeypatch, *declarations, rows=()):
    """Let all parts see these declarations, and these further rows."""
    known = Registry.from_declarations({"dist": declarations})
    full_registry = Registry([*known.plugins, *rows])
    for part in (plugins, storage):
        monkeypatch.setattr(part, "tolerant_registry", lambda: full_registry)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    Good.folder = str(tmp_path / "kernels")
    monkeypatch.setenv("APR_CONFIG", str(tmp_path / "c.toml"))
    monkeypatch.setenv("APR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("APR_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(storage, "hub_caches", lambda: [tmp_path / "hub"])
    return tmp_path


def doctor(capsys, *args):
    code = run(["doctor", *args])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_all_is_well(monkeypatch, capsys):
    use(monkeypatch, backend("good", probe=f"{HERE}:probe_two"), FAMILY)
    code, out, err = doctor(capsys)
    assert code == 0 and not err
    assert [line for line in out.splitlines() if line in PARTS] == PARTS
    assert "good  a fine device (version 7)" in out
    assert out.endswith("No problems.\n")


def test_json_has_every_part(monkeypatch, capsys):
    use(monkeypatch, backend("good"), FAMILY)
    code, out, _ = doctor(capsys, "--json")
    report = json.loads(out)
    assert code == 0 and [*report] == [*PARTS, "warnings", "problems"]
    assert report["system"]["api"] == 1
    assert report["memory"]["total"] >= report["memory"]["available"] > 0
    libraries = {each["name"]: each["version"] for each in report["libraries"]}
    assert libraries["numpy"] == version("numpy") and "tokenizers" in libraries


def test_a_device_says_why_it_cannot_run(monkeypatch):
    use(
        monkeypatch,
        backend("absent", requires=("module_of_nobody",)),
        backend("zero", probe=f"{HERE}:probe_zero"),
        backend("raises", "Raises"),
        backend("gone", "NoSuchClass"),
        backend("good"),
    )
    finding = plugins.devices()
    status = {d["name"]: (d["status"], d["reason"]) for d in finding.facts}
    assert status["absent"] == ("unavailable", "not installed: module_of_nobody")
    assert status["zero"] == ("unavailable", "no such device here")
    assert status["raises"] == ("broken", "OSError: no driver")
    assert status["gone"][0] == "broken" and "NoSuchClass" in status["gone"][1]
    assert status["good"] == ("ok", "")
    assert len(finding.warnings) == 2 and not finding.problems


def test_without_a_usable_backend_or_a_family_commands_will_fail(monkeypatch, capsys):
    use(monkeypatch, backend("zero", probe=f"{HERE}:probe_zero"))
    code, out, err = doctor(capsys)
    assert code == 1 and "2 problems" in err
    assert "problem: no backend can run here" in out
    assert "problem: no plugin provides a family" in out


def test_a_broken_plugin_and_a_name_claimed_twice_are_warnings(monkeypatch):
    rows = [
        PluginRow("bad", "1", "bad", "bad", "broken", "boom"),
        PluginRow("off", "1", "off", "off", "disabled", "by its user"),
        PluginRow("other", "1", "o", "o", "ok", "", (
            Quantizer("twice", "m:Q", block=1, bytes_per_block=1),
        )),
    ]  # fmt: skip
    twice = Quantizer("twice", "m:Q", block=1, bytes_per_block=1)
    use(monkeypatch, FAMILY, twice, rows=rows)
    finding = plugins.plugins()
    assert not finding.problems and len(finding.warnings) == 2
    assert finding.warnings[0] == "plugin bad:bad is broken: boom"
    assert "dist:twice, other:twice" in finding.warnings[1]
    assert ("off", "1  disabled: by its user") in finding.rows


def test_entries_of_the_file_that_match_nothing_are_warnings(monkeypatch, home):
    founds = [
        PluginRow("dist", "1", "d", "d"),
        PluginRow("off", "1", "o", "o"),
        PluginRow("half", "?", "half", "", "broken", "half installed"),
    ]
    monkeypatch.setattr(plugins, "installed", lambda: founds)
    off = PluginRow("off", "1", "o", "o", "disabled", "by its user")
    use(monkeypatch, FAMILY, rows=[off])
    (home / "c.toml").write_text(
        '[plugins]\ndisable = ["O", "off", "Half", "off:o", "gone"]\n'
        'prefer = ["Dist:fam", "dist:nothing", "off:x", "gone:x"]\n'
    )
    assert plugins.plugins().warnings == [
        "plugins.disable: 'gone' is not installed; `apr plugins enable gone` takes it off the list",
        "plugins.prefer: 'dist:nothing' prefers nothing: dist does not provide 'nothing'",
        "plugins.prefer: 'off:x' prefers nothing: off is disabled",
        "plugins.prefer: 'gone:x' prefers nothing: gone is not installed",
    ]
    monkeypatch.setenv("APR_NO_PLUGINS", "1")
    assert plugins.plugins().warnings == []


def test_a_library_that_is_missing_is_named_with_who_needs_it(monkeypatch):
    def without_numpy(name):
        if name == "numpy":
            raise PackageNotFoundError(name)
        return "1.0"

    finding = plugins.libraries(without_numpy)
    assert len(finding.problems) == 1
    assert finding.problems[0].startswith("numpy is not installed; apr-core")
    numpy = next(each for each in finding.facts if each["name"] == "numpy")
    assert numpy["version"] is None and "apr-core" in numpy["required_by"]


def test_requirements_of_extras_are_not_requirements(monkeypatch):
    lines = ["Ruff_Thing>=1", "apr-core>=0.1", 'pytest>=8; extra == "dev"', "plain"]
    monkeypatch.setattr(plugins, "distribution", lambda name: SimpleNamespace(requires=lines))
    assert plugins.requirements("x") == ["ruff-thing", "plain"]


def test_a_part_that_fails_says_so_itself(capsys, monkeypatch):
    def fails():
        raise RuntimeError("boom")

    def leaves():
        raise SystemExit(3)

    def prints():
        print("noise")
        return Finding([("a", "b")], {"a": "b"})

    findings = {p.name: p.finding for p in examine({"x": fails, "y": leaves, "z": prints})}
    assert findings["x"].warnings == ["x cannot be examined: RuntimeError: boom"]
    assert findings["x"].facts == {"error": "cannot be examined: RuntimeError: boom"}
    assert "SystemExit" in findings["y"].warnings[0]
    assert findings["z"].facts == {"a": "b"} and capsys.readouterr().out == ""


def test_caches_are_measured_and_their_disks(monkeypatch, home):
    use(monkeypatch, backend("good"), backend("raises", "Raises"))
    monkeypatch.setattr(Raises, "caches", lambda self: [], raising=False)
    for name, size in (("cache/a/x", 1000), ("kernels/k", 24), ("store/m.apr", 9)):
        (home / name).parent.mkdir(parents=True)
        (home / name).write_bytes(bytes(size))
    (home / "cache" / "link").symlink_to(home / "kernels" / "k")
    finding = storage.storage()
    sizes = {each["label"]: each["bytes"] for each in finding.facts["caches"]}
    assert sizes == {"pulled models": 0, "model store": 9, "apr": 1000, "good: compiled": 24}
    assert finding.facts["free"][0]["bytes"] > 0
    assert finding.warnings == ["backend raises cannot say what it keeps: no driver"]


def test_a_full_disk_is_a_warning_and_a_closed_one_a_problem(monkeypatch):
    use(monkeypatch)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr(storage.os, "access", lambda path, mode: False)
    finding = storage.storage()
    assert "only 1000 B are free" in finding.warnings[0]
    assert "cannot be written" in finding.problems[0]


def test_a_cache_that_is_no_folder_is_a_problem(monkeypatch, home):
    use(monkeypatch)
    (home / "file").write_text("mine")
    monkeypatch.setenv("APR_CACHE", str(home / "file"))
    problems = storage.storage().problems
    assert problems == [f"{home / 'file'} cannot be written: nothing can be pulled or kept there"]


def settings(env):
    finding = configuration.configuration(env)
    return finding, {s["name"]: (s["value"], s["origin"]) for s in finding.facts["settings"]}


def test_every_setting_says_where_it_comes_from(home):
    path = home / "file.toml"
    path.write_text('[plugins]\ndisable = ["a"]\n[cache]\ndir = "/big"\n')
    env = {
        "APR_CONFIG": str(path), "HF_TOKEN": "hf_secret", "APR_PLUGINS_BLOCK": "x",
        "APR_SPEED_OF_SOME_PLUGIN": "9",
    }  # fmt: skip
    finding, origins = settings(env)
    assert origins["configuration file"] == (str(path), "APR_CONFIG")
    assert origins["plugins.disable"] == (["a"], str(path))
    assert "plugins.prefer" not in origins, "nobody set it"
    assert origins["cache.dir"] == ("/big", str(path))
    assert origins["APR_PLUGINS_BLOCK"] == ("x", "environment")
    assert origins["APR_PLUGINS"][1] == "default"
    assert finding.facts["other_variables"] == ["APR_SPEED_OF_SOME_PLUGIN"]
    assert "hf_secret" not in str(finding)
    _, origins = settings(env | {"APR_CACHE": "/fast"})
    assert origins["cache.dir"] == ("/fast", "APR_CACHE")
    _, origins = settings({"XDG_CONFIG_HOME": str(home), "XDG_CACHE_HOME": "/xdg"})
    assert origins["configuration file"][1] == "XDG_CONFIG_HOME, not there"
    assert origins["cache.dir"] == ("/xdg/apr", "XDG_CACHE_HOME")


def test_every_wrong_key_is_reported_at_once(home):
    path = home / "file.toml"
    path.write_text('[plugins]\ndisabel = ["a"]\nprefer = 3\n[cash]\n[cache]\ndir = "/big"\n')
    finding, origins = settings({"APR_CONFIG": str(path)})
    assert len(finding.problems) == 3
    assert "'disabel' in [plugins]. Did you mean disable?" in finding.problems[0]
    assert "plugins.prefer must be a list" in finding.problems[1]
    assert "[cash]" in finding.problems[2]
    assert origins["cache.dir"][1] == "default", "a file that is refused sets nothing"


def test_a_wrong_configuration_file_hides_nothing_else(home, capsys, monkeypatch):
    (home / "c.toml").write_text("[nonsense\n")

    def refuses():
        raise ConfigError("wrong")

    monkeypatch.setattr(registry, "get_registry", refuses)
    code, out, _ = doctor(capsys, "--json")
    report = json.loads(out)
    assert code == 1 and any(str(home / "c.toml") in text for text in report["problems"])
    assert report["processor"]["logical"] >= 1 and "error" not in str(report["plugins"])


def test_the_processor_is_described_from_what_the_system_tells(tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    info.write_text("model name : Fast One\nflags : fpu avx2 fma\n\nmodel name : Fast One\n")
    monkeypatch.setattr(machine, "CPUINFO", info)
    facts = machine.processor().facts
    assert facts["model"] == "Fast One" and facts["features"] == ["fma", "avx2"]
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "absent")
    assert machine.processor().facts["features"] is None
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "absent")
    assert machine.memory().facts["total"] > 0
