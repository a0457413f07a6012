"""`apr inspect`, `apr tensors` and `apr validate` as a user runs them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from apr_core import registry as registry_module
from apr_core.cli import run
from apr_core.cli.console import printable, shortened
from apr_core.cli.inspect import summarised
from apr_core.format import FormatSpec
from tests.apr_files import write
from tests.format.test_format_shards import write_set
from tests.importing.test_validation import make_registry, make_source, save, tokenizer_metadata

UNKNOWN = FormatSpec("nf9", None, 8, 5, "apr-nf9")


@pytest.fixture(autouse=True)
def toy_plugins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("APR_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(registry_module, "get_registry", make_registry)
    # a module that other tests have imported holds the real one
    monkeypatch.setattr("apr_core.exporting.get_registry", make_registry)


def apr(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = run([str(a) for a in args])
    out = capsys.readouterr()
    return code, out.out, out.err


def apr_json(capsys: pytest.CaptureFixture[str], *args: object) -> dict:
    _, out, _ = apr(capsys, *args, "--json")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(out, parse_constant=refuse)


def test_inspect_needs_no_plugin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        tmp_path / "m.apr",
        {"architecture": "x", "name": "mine", "chat_template": "t" * 9000} | tokenizer_metadata(),
        {
            "a": np.ones((2, 3)),
            "l.0.w": (UNKNOWN, (2, 9), bytes(20)),
            "l.1.w": (UNKNOWN, (2, 9), bytes(20)),
        },
    )
    code, out, _ = apr(capsys, "inspect", path)
    assert code == 0
    for text in ("APR v2.0", "row_major", "mine", "nf9", "192", "apr-nf9", "l.*.w", "quantized",
                 "<text of 9000 characters>"):  # fmt: skip
        assert text in out
    assert "t" * 500 not in out
    summary = apr_json(capsys, "inspect", path)
    assert summary["header"]["tensor_count"] == 3 and summary["parameters"] == 42
    assert summary["formats"][0] == {
        "format": "nf9",
        "id": 192,
        "distribution": "apr-nf9",
        "block": 8,
        "bytes_per_block": 5,
        "tensors": 2,
        "parameters": 36,
        "bytes": 40,
    }
    assert summary["roles"][0] == {
        "role": "l.*.w",
        "tensors": 2,
        "parameters": 36,
        "bytes": 40,
        "formats": ["nf9"],
    }
    assert summary["tokenizer"]["vocabulary"] == 24 and summary["tokenizer"]["merges"] == 1
    assert summary["metadata"]["chat_template"] == "<text of 9000 characters>"
    full = apr_json(capsys, "inspect", path, "--full")
    assert full["metadata"]["chat_template"] == "t" * 9000
    assert len(full["metadata"]["tokenizer.vocabulary"]) == 24


def test_summaries() -> None:
    assert summarised({"a": 1}) == {"a": 1}
    assert summarised({"a": list(range(500)), "b": 2}) == {
        "a": "<list of 500 entries, 2390 characters>",
        "b": 2,
    }
    deep: dict = {}
    for _ in range(400):
        deep = {"x": deep}
    assert "entries" in json.dumps(summarised(deep))


def test_inspect_of_almost_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "m.apr", {}, {})
    code, out, _ = apr(capsys, "inspect", path)
    assert code == 0 and "none in the file" in out
    assert apr_json(capsys, "inspect", path)["tokenizer"] is None


def test_sharded_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write_set(tmp_path / "m.apr")
    summary = apr_json(capsys, "inspect", paths[2])
    assert summary["files"] == [str(p) for p in paths]
    assert summary["header"]["tensor_count"] == 11
    assert apr_json(capsys, "tensors", paths[1])["count"] == 11
    paths[0].unlink()
    code, _, err = apr(capsys, "inspect", paths[1])
    assert code == 3 and paths[0].name in err


def test_names_cannot_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "a\x1b[2J\x07\r\u202e"
    path = write(tmp_path / "m.apr", {evil: evil, "name": evil}, {evil: np.ones(2)})
    for args in (["inspect", path], ["tensors", path, "--stats"], ["validate", path]):
        _, out, err = apr(capsys, *args)
        assert not set("\x1b\x07\r\u202e") & set(out + err)
    assert printable("ü 你 \x1b") == "ü 你 \\x1b"
    assert shortened("x" * 99, 10) == "x" * 9 + "…"


def test_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "m.apr")
    code, out, _ = apr(capsys, "tensors", path)
    assert code == 0 and "layers.0.up" in out and "32 x 32" in out and "7 tensors" in out
    listing = apr_json(capsys, "tensors", path, "--filter", ".up", "--limit", 2)
    assert listing["count"] == 3
    assert listing["tensors"] == [
        {"name": f"layers.{n}.up", "format": "toy8", "shape": [32, 32], "bytes": 1280}
        for n in range(2)
    ]
    _, out, _ = apr(capsys, "tensors", path, "--limit", 0)
    assert "7 not shown" in out
    assert apr(capsys, "tensors", path, "--limit", -1)[0] == 2


def test_tensor_statistics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.array([1, 2, 0, np.nan, -np.inf, 3], np.float32)
    tensors = {
        "a": values, "b": (UNKNOWN, (2, 8), bytes(10)), "c": np.ones((0, 4)),
        "d": np.full(2, np.nan),
    }  # fmt: skip
    path = write(tmp_path / "m.apr", {}, tensors)
    rows = {t["name"]: t for t in apr_json(capsys, "tensors", path, "--stats")["tensors"]}
    assert rows["a"]["stats"] == {
        "mean": 1.5,
        "std": pytest.approx(1.25**0.5),
        "min": 0.0,
        "max": 3.0,
        "nan": 1,
        "inf": 1,
        "zeros_share": pytest.approx(1 / 6),
    }
    assert rows["b"]["stats"] is None and "pip install apr-nf9" in rows["b"]["note"]
    assert rows["c"]["stats"]["mean"] is None and rows["d"]["stats"]["nan"] == 2
    code, out, _ = apr(capsys, "tensors", path, "--stats")
    assert code == 0 and "! no statistics for 1 of them" in out and "apr-nf9" in out


def test_validate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "m.apr")
    code, out, err = apr(capsys, "validate", path)
    assert code == 0 and err == ""
    assert "valid (12 of 12 checks ran)" in out
    report = apr_json(capsys, "validate", path)
    assert report["valid"] and report["score"] is None and report["file"] == str(path)
    assert {c["status"] for c in report["checks"]} == {"passed"}


def test_validate_fails_with_5(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "m.apr")
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 4
    path.write_bytes(raw)
    code, out, err = apr(capsys, "validate", path)
    assert code == 5
    assert "FAILED   footer-checksum" in out and "NOT VALID" in out
    assert "1 of 12 checks failed" in err and "hint:" in err
    report = apr_json(capsys, "validate", path)
    assert not report["valid"]


def test_validate_of_what_does_not_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "m.apr")
    path.write_bytes(path.read_bytes()[:-500])
    code, out, _ = apr(capsys, "validate", path)
    assert code == 5 and "FAILED   structure" in out and "cut off" in out
    report = apr_json(capsys, "validate", path, "--quality")
    assert report["checks"][0]["status"] == "failed" and report["score"] == 0
    assert apr(capsys, "validate", tmp_path / "none.apr")[0] == 3


def test_validate_quality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_source(tmp_path / "checkpoint")
    path = save(tmp_path / "m.apr", **{"apr.source_path": str(source)})
    code, out, _ = apr(capsys, "validate", path, "--quality")
    assert code == 0 and "13 of 13 checks ran" in out and "score 9" in out
    assert "SNR dB" in out and "(4 are exact)" in out
    report = apr_json(capsys, "validate", path, "--quality", "--source", source)
    assert len(report["tensors"]) == 7 and 90 < report["score"] < 100
    assert apr(capsys, "validate", path, "--source", source)[0] == 2
    assert apr(capsys, "validate", path, "--quality", "--source", tmp_path / "none")[0] == 3


def test_what_did_not_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = apr(capsys, "validate", save(tmp_path / "m.apr"), "--quality")
    assert code == 0
    assert "not run  quantization-error" in out
    assert "score 100.0 of 100 (12 of 13 checks ran; 1 did not and prove nothing)" in out


@pytest.mark.parametrize("name", ["inspect", "tensors", "validate"])
def test_help_and_bad_files(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert apr(capsys, name, "--help")[0] == 0
    bad = tmp_path / "bad.apr"
    bad.write_bytes(b"GGUF" + bytes(200))
    code, _, err = apr(capsys, name, bad)
    assert code == (5 if name == "validate" else 4)
    assert "error:" in err
    assert apr(capsys, name, tmp_path / "none.apr")[0] == 3
    if name != "validate":
        assert apr(capsys, name, tmp_path)[0] == 3  # no checkpoint either


def test_modules_import_no_arrays() -> None:
    import subprocess

    code = (
        "import sys, apr_core.cli.inspect, apr_core.cli.tensors, apr_core.cli.validate;"
        "sys.exit('numpy' in sys.modules or 'rich' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "store" / f"toy.source.{16 * '0'}.apr"
    path.parent.mkdir()
    return save(path)


@pytest.mark.parametrize("command", ["inspect", "tensors", "validate", "export"])
def test_a_name_in_the_store_is_as_good_as_a_path(tmp_path, capsys, stored, command):
    options = ["--format", "safetensors", "--dtype", "f32", "-o", tmp_path / "x"]
    options = options if command == "export" else []
    code, _, err = apr(capsys, command, "toy", *options)
    assert code == 0, err
    code, _, err = apr(capsys, command, "tory", *options, "--force" if options else "--json")
    assert code == 3 and "tory: no such file" in err and "Did you mean toy?" in err


def test_list_and_rm(capsys, stored):
    used = stored.stat().st_mtime
    bad = stored.with_name(f"evil\x1b.source.{16 * '1'}.apr")
    bad.write_bytes(b"APR")
    code, out, err = apr(capsys, "list")
    assert (code, err) == (0, "") and "\x1b" not in out
    assert out.startswith("name") and "damaged" in out and "2 models, " in out
    listing = apr_json(capsys, "list")
    assert [m["name"] for m in listing["models"]] == ["evil\x1b", "toy"]
    assert (
        listing["bytes"] == stored.stat().st_size + 3
        and "too small" in listing["models"][0]["damaged"]
    )
    assert apr(capsys, "inspect", "toy")[0] == 0 and stored.stat().st_mtime >= used
    code, _, err = apr(capsys, "rm", "toy", "Toy")
    assert code == 3 and "Did you mean toy?" in err and stored.exists()
    code, out, _ = apr(capsys, "rm", "toy", "evil\x1b")
    assert code == 0 and out.count("freed") == 2 and not any(stored.parent.iterdir())
    assert apr(capsys, "list")[1].startswith("0 models, 0 B in ")
    assert apr(capsys, "rm")[0] == 2
