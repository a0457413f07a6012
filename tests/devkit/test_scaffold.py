"""`apr plugins new`: what it writes installs, passes its tests and its checks, for every kind."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from apr_core.cli import run
from apr_core.errors import InputOutputError, UsageError
from apr_devkit.scaffold import KINDS, files_of, names_for, write_plugin
from downstream.fresh import FreshVenv

pytestmark = [pytest.mark.needs_plugins, pytest.mark.takes_minutes]

NAMES = {kind: f"toy-{kind}" for kind in KINDS} | {"exporter": "Toy.9", "attention": "2nd_toy"}


def new(capsys, *args):
    code = run(["plugins", "new", *map(str, args)])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture(scope="module")
def fresh(tmp_path_factory, wheels):
    venv = FreshVenv(tmp_path_factory.mktemp("fresh"), wheels=wheels)
    venv.install_shipped()
    return venv


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_installs_passes_its_tests_and_its_checks(fresh, tmp_path, kind):
    name = NAMES[kind]
    wrote = fresh.apr("plugins", "new", kind, name, "--json", cwd=tmp_path)
    assert wrote.returncode == 0, wrote.stderr
    plugin = json.loads(wrote.stdout)
    directory = tmp_path / plugin["directory"]
    fresh.install_editable(directory)
    try:
        tested = fresh.run("python", "-m", "pytest", "-p", "no:cacheprovider", cwd=directory)
        assert tested.returncode == 0, tested.stdout
        assert " passed" in tested.stdout and " failed" not in tested.stdout
        checked = fresh.apr("plugins", "check", name, "--json")
        report = json.loads(checked.stdout)
        assert checked.returncode == 0, [r for r in report["results"] if r["outcome"] == "failed"]
        assert report["failed"] == 0 and report["passed"] > 2 * report["skipped"]
        subjects = {r["subject"] for r in report["results"]}
        assert {f"plugin {plugin['distribution']}", f"{kind} {name}"} <= subjects
        frozen = fresh.apr("plugins", "freeze").stdout
        assert f"# {plugin['distribution']}==0.1.0" in frozen
        USES[kind](fresh, tmp_path)
    finally:
        fresh.uninstall(plugin["distribution"])


def imported(fresh, tmp_path, recipe="q8_0"):
    out = tmp_path / f"sums-{recipe}.apr"
    done = fresh.apr("import", "demo://sums", "--quantize", recipe, "-o", out)
    assert done.returncode == 0, done.stderr
    return out


def answer(fresh, file, *options):
    done = fresh.apr("run", file, "17+25=", "--max-tokens", "8", "--temperature", "0", *options)
    assert done.returncode == 0, done.stderr
    return done


def use_quantizer(fresh, tmp_path):
    file = imported(fresh, tmp_path, NAMES["quantizer"])
    assert fresh.apr("validate", file).returncode == 0
    report = answer(fresh, file, "-v", "--strict").stderr
    assert f"linear[{NAMES['quantizer']}]" in report, "a declared layout runs packed, on a kernel"


def use_backend(fresh, tmp_path):
    assert "42" in answer(fresh, imported(fresh, tmp_path), "--backend", NAMES["backend"]).stdout


def use_kernel(fresh, tmp_path):
    done = answer(fresh, file := imported(fresh, tmp_path), "-v")
    assert "42" in done.stdout
    assert "apr_kernel_toy_kernel.kernels:rms_norm (apr-kernel-toy-kernel)" in done.stderr
    reason = "steps are not recorded: rms_norm runs on a foreign kernel (apr-kernel-toy-kernel, "
    assert reason in done.stderr
    refused = fresh.apr("run", file, "17+25=", "--strict")
    assert refused.returncode == 14 and reason in refused.stderr


def use_source(fresh, tmp_path):
    name = NAMES["source"]
    missing = fresh.apr("import", f"{name}://nobody", "-o", tmp_path / "x.apr")
    assert missing.returncode == 3 and "nobody" in missing.stderr


def use_exporter(fresh, tmp_path):
    import numpy as np

    out = tmp_path / "model.npz"
    name = NAMES["exporter"]
    done = fresh.apr("export", imported(fresh, tmp_path), "--format", name, "-o", out)
    assert done.returncode == 0, done.stderr
    with np.load(out) as archive:
        assert archive["model.language_model.norm.weight"].ndim == 1


def use_command(fresh, tmp_path):
    done = fresh.apr(NAMES["command"], imported(fresh, tmp_path), "--json")
    assert json.loads(done.stdout)["q8_0"] > 0
    assert NAMES["command"] in fresh.apr("--help").stdout


def use_nothing(fresh, tmp_path):
    """A family and the parts of a layer are used by their kits: there is no checkpoint of them."""


USES = {
    "quantizer": use_quantizer, "family": use_nothing, "attention": use_nothing,
    "mlp": use_nothing,
    "backend": use_backend, "kernel": use_kernel, "source": use_source,
    "exporter": use_exporter, "command": use_command,
}  # fmt: skip


@pytest.mark.parametrize("name", ["x", "toy", "a2345-b2345-c2345-d2345-e23456"])
def test_what_is_written_is_clean(tmp_path, name):
    for kind in KINDS:
        names = names_for(kind, name, "some-device" if kind == "kernel" else "")
        write_plugin(names, tmp_path / kind)
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", tmp_path],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            assert "@{" not in path.read_text("utf-8"), path


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_is_complete(kind):
    names = names_for(kind, "toy", "cpu")
    files = files_of(names)
    package = names.package
    assert {
        ".github/workflows/ci.yml",
        ".gitignore",
        "LICENSE",
        "README.md",
        "pyproject.toml",
        f"src/{package}/__init__.py",
        f"src/{package}/hooks.py",
        "tests/test_conformance.py",
    } <= set(files)
    project = tomllib.loads(files["pyproject.toml"].decode())["project"]
    assert project["name"] == names.distribution == package.replace("_", "-")
    assert list(project["entry-points"]["apr"].values()) == [f"{package}.hooks"]
    assert project["dependencies"][0].startswith("apr-core>=")
    readme = files["README.md"].decode()
    for text in ("pip install -e", "pytest", "apr plugins check toy", "twine upload"):
        assert text in readme
    assert "${{ matrix.python }}" in files[".github/workflows/ci.yml"].decode()


def test_names_are_derived():
    names = names_for("quantizer", "My-fmt.2")
    assert names.name == "My-fmt.2" and names.distribution == "apr-quant-my-fmt-2"
    assert names.package == "apr_quant_my_fmt_2" and names.class_name == "MyFmt2"
    assert names.identifier == "my_fmt_2"
    digits = names_for("attention", "2nd")
    assert digits.identifier == "attention_2nd" and digits.class_name == "Attention2nd"
    assert names_for("backend", "apr-backend-npu") == names_for("backend", "npu")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("quantizer", "my format"), ("quantizer", "-x"), ("quantizer", "x/../y"), ("family", ""),
        ("family", "ä"), ("quantizer", "class"), ("exporter", "lambda"), ("family", "x" * 31),
        ("command", "Upper"), ("command", "under_score"), ("command", "run"), ("source", "hf"),
        ("source", "UPPER"), ("quantizer", "f16"), ("exporter", "safetensors"),
        ("command", "plugins"), ("command", "1abc"), ("source", "1abc"), ("quantizer", "none"),
        ("family", "plan"), ("attention", "array"), ("attention", "any"), ("family", "value-error"),
    ],
)  # fmt: skip
def test_names_that_cannot_be_are_refused(capsys, tmp_path, monkeypatch, kind, name):
    monkeypatch.chdir(tmp_path)
    code, _, err = new(capsys, kind, "--", name)
    assert code == 2 and "hint:" in err
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_taken_is_said(capsys, tmp_path, monkeypatch):
    from apr_core.declarations import Quantizer
    from apr_core.registry import Registry

    taken = Quantizer("nf4", "m:Q", block=1, bytes_per_block=1)
    registry = Registry.from_declarations({"somebody-else": [taken]})
    monkeypatch.setattr("apr_devkit.cli.new.get_registry", lambda: registry)
    code, _, err = new(capsys, "quantizer", "nf4", "--dir", tmp_path / "a")
    assert code == 0 and "already provided by somebody-else" in err


def test_a_kernel_is_for_a_backend_that_is_installed(capsys, tmp_path, monkeypatch):
    from apr_core.declarations import Backend
    from apr_core.registry import Registry

    registry = Registry.from_declarations({"somebody": [Backend("npu", "m:B")]})
    monkeypatch.setattr("apr_devkit.cli.new.get_registry", lambda: registry)
    code, _, err = new(capsys, "kernel", "k", "--for", "nobody", "--dir", tmp_path / "a")
    assert code == 3 and "no installed plugin provides backend 'nobody'" in err
    assert "Installed: npu" in err and not list(tmp_path.iterdir())
    for name in ("npu", "Somebody:npu"):
        directory = tmp_path / name[:3]
        code, _, _ = new(capsys, "kernel", "k", "--for", name, "--dir", directory)
        assert code == 0
        assert 'backend="npu"' in (directory / "src/apr_kernel_k/hooks.py").read_text()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["list", "list2", "1abc", "plugins", "test"])
def test_what_is_written_under_an_odd_name_is_clean_or_nothing(tmp_path, capsys, kind, name):
    code, _, err = new(capsys, kind, name, "--dir", tmp_path / "x")
    if code:
        assert code == 2 and "hint:" in err and not list(tmp_path.iterdir())
        return
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_a_backend_is_named_for_kernels_only(capsys, tmp_path):
    code, _, err = new(capsys, "family", "x", "--for", "cpu", "--dir", tmp_path / "x")
    assert code == 2 and "--for goes with kernel" in err and not (tmp_path / "x").exists()


def test_nothing_is_overwritten(capsys, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        code, _, err = new(capsys, "command", "greet", "--dir", tmp_path / name)
        assert code == 2 and "is not an empty directory" in err
    code, _, err = new(capsys, "command", "greet", "--dir", tmp_path / "file" / "below")
    assert code == 7 and "Not a directory" in err
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full"]


def test_an_empty_directory_is_filled_where_it_is(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = new(capsys, "command", "greet", "--dir", ".")
    assert code == 0 and Path("pyproject.toml").exists() and "cd " not in out
    assert "pip install -e '.[dev]'\n  pytest\n  apr plugins check greet" in out


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("step", ["a file", "a rename"])
def test_a_disk_that_fills_up_leaves_nothing(tmp_path, monkeypatch, there, step):
    names = names_for("source", "toy")
    last = 5 if step == "a file" else len(files_of(names)) + (3 if there else 1)
    target = tmp_path / "new"
    if there:
        target.mkdir()
    written = []
    write, rename = Path.write_bytes, Path.rename

    def fail_late(real):
        def failing(self, *args):
            written.append(self)
            if len(written) == last:
                raise OSError(28, "No space left on device")
            return real(self, *args)

        return failing

    monkeypatch.setattr(Path, "write_bytes", fail_late(write))
    monkeypatch.setattr(Path, "rename", fail_late(rename))
    with pytest.raises(InputOutputError, match="No space left"):
        write_plugin(names, target)
    assert list(tmp_path.rglob("*")) == ([target] if there else [])


def test_an_unknown_placeholder_is_a_mistake_in_a_template():
    from apr_devkit.scaffold import filled

    with pytest.raises(KeyError):
        filled("@{nobody}", {"name": "x"})
    assert filled("@{name} ${{ x }} {y} @name", {"name": "x"}) == "x ${{ x }} {y} @name"


def test_a_kind_that_is_not_there_is_a_usage_error(capsys):
    code, _, err = new(capsys, "quantiser", "x")
    assert code == 2 and "quantizer" in err
    with pytest.raises(UsageError):
        names_for("source", "hf")
