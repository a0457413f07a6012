"""`apr plugins tiny`: what it writes is imported and runs; it refuses what it would overwrite."""

from __future__ import annotations

import json

import pytest

from apr_core.cli import run
from apr_core.plugin import FamilyPlugin

pytest.importorskip("apr_qwen2", reason="the family whose checkpoint is written")

pytestmark = pytest.mark.needs_plugins


def tiny(capsys, *args):
    code = run(["plugins", "tiny", *map(str, args)])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_a_tiny_checkpoint_is_imported_and_runs(capsys, tmp_path):
    code, out, _ = tiny(capsys, "qwen2", "-o", tmp_path / "q", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["family"] == "qwen2"
    assert facts["bytes"] == sum(p.stat().st_size for p in (tmp_path / "q").iterdir())
    assert run(["import", str(tmp_path / "q"), "-o", str(tmp_path / "q.apr")]) == 0
    assert run(["run", str(tmp_path / "q.apr"), "hi", "--raw", "--max-tokens", "2"]) == 0


def test_weights_are_as_precise_as_asked(capsys, tmp_path):
    sizes = {}
    for dtype in ("bf16", "f32"):
        assert tiny(capsys, "qwen2", "-o", tmp_path / dtype, "--dtype", dtype)[0] == 0
        sizes[dtype] = (tmp_path / dtype / "model.safetensors").stat().st_size
    assert 1.9 < sizes["f32"] / sizes["bf16"] < 2.1


def test_a_directory_that_holds_something_is_replaced_only_by_force(capsys, tmp_path):
    (tmp_path / "config.json").write_text("mine")
    code, _, err = tiny(capsys, "qwen2", "-o", tmp_path)
    assert code == 2 and "already exists" in err and "--force" in err
    assert (tmp_path / "config.json").read_text() == "mine"
    assert tiny(capsys, "qwen2", "-o", tmp_path, "--force")[0] == 0
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "qwen2"


def test_a_family_without_a_tiny_config_is_refused_by_name(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("apr_qwen2.family.Qwen2.tiny_config", FamilyPlugin.tiny_config)
    code, _, err = tiny(capsys, "qwen2", "-o", tmp_path / "x")
    assert code == 2 and "'qwen2' has no tiny_config()" in err and not (tmp_path / "x").exists()


def test_an_unknown_family_is_named(capsys, tmp_path):
    code, _, err = tiny(capsys, "nobody", "-o", tmp_path / "x")
    assert code == 3 and "'nobody'" in err and not (tmp_path / "x").exists()
