"""benchmarks/vs_commit.py: the table, the verdict, and a commit that is measured against itself."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("apr_backend_cpu", reason="its levels are in the table")

from apr_core.cli.import_ import run_import
from benchmarks import vs_commit
from benchmarks.speed.figures import Figures, Model, key
from benchmarks.vs_commit import PHASES, checkout, complaints, files, measure, table
from tests import tiny_checkpoints

pytestmark = pytest.mark.needs_plugins
MODEL, OTHER = Model("0.8b", "q4_k_m"), "abc1234"
PREFILL, DECODE = PHASES


def measured(prefill, decode):
    """Figures of three rounds, the last on a machine that was busy; the other commit's are 100."""
    figures = Figures("a machine", 2)
    for speed in (1.0, 1.02, 0.5):
        for phase, ratio in ((PREFILL, prefill), (DECODE, decode)):
            figures.add(key(MODEL, "apr", OTHER, phase), 100 * speed, 0.0)
            figures.add(key(MODEL, "apr", "here", phase), 100 * speed * ratio, 0.0)
    return figures


def test_the_table_has_medians_of_both_sides_and_the_median_of_the_rounds_ratios():
    page = table(measured(1.1, 0.98), [MODEL], OTHER, 3)
    assert page.startswith("a machine; threads: 2, clock: wall, rounds: 3\n")
    assert "| 0.8b q4_k_m | prefill 256 | 100.0 | 110.0 | 1.100 |" in page
    assert "| 0.8b q4_k_m | decode 1 | 100.0 | 98.0 | 0.980 |" in page


@pytest.mark.parametrize(
    ("prefill", "decode", "tolerance", "phases"),
    [
        (1.0, 0.98, 0.03, []),
        (1.0, 0.96, 0.03, ["decode 1: 0.960"]),
        (0.9, 0.96, 0.03, ["prefill 256: 0.900", "decode 1: 0.960"]),
        (0.9, 0.96, 0.2, []),
    ],
)
def test_only_what_is_slower_by_more_than_the_tolerance_is_complained_of(
    prefill, decode, tolerance, phases
):
    lines = complaints(measured(prefill, decode), [MODEL], OTHER, tolerance)
    assert lines == [f"0.8b q4_k_m, {phase} of the speed of {OTHER}" for phase in phases]


def test_what_could_not_be_measured_is_a_dash_and_a_complaint():
    figures = measured(1.0, 1.0)
    del figures.speeds[key(MODEL, "apr", "here", DECODE)]
    figures.failures[key(MODEL, "apr", "here", DECODE)] = "ended with 1"
    figures.notes[str(MODEL)] = ["logits differ"]
    page = table(figures, [MODEL], OTHER, 3)
    assert "| decode 1 | 100.0 | - | - |" in page and "0.8b q4_k_m: logits differ" in page
    assert complaints(figures, [MODEL], OTHER, 0.03) == [
        "0.8b q4_k_m apr here decode 1: ended with 1"
    ]


def test_a_tree_measured_against_itself_gives_the_same_logits_and_all_figures(tmp_path):
    run_import(str(tiny_checkpoints.write(tmp_path / "hf")), tmp_path / "tiny.apr", "q8_0")
    paths = files([str(tmp_path / "tiny.apr")], tmp_path)
    options = argparse.Namespace(threads=1, clock="cpu", rounds=2)
    pythons = {OTHER: Path(sys.executable), "here": Path(sys.executable)}
    figures = measure(pythons, paths, options)
    assert not figures.failures and not figures.notes
    assert {len(speeds) for speeds in figures.speeds.values()} == {2}
    assert complaints(figures, list(paths), OTHER, tolerance=1.0) == []


def test_a_commit_is_checked_out_set_up_and_removed(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    git("init", "-q")
    setup = "setup:\n\t@mkdir -p .venv/bin && touch .venv/bin/python && echo made\n"
    (tmp_path / "Makefile").write_text(setup)
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    monkeypatch.setattr(vs_commit, "ROOT", tmp_path)
    with checkout("HEAD", None) as path:
        assert vs_commit.python_of(path).exists() and path != tmp_path
    assert not path.exists()
    with checkout("HEAD", tmp_path / "kept") as path:
        (path / ".venv" / "bin" / "python").write_text("reused")
    with checkout("HEAD", tmp_path / "kept") as path:
        assert vs_commit.python_of(path).read_text() == "reused"
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "second", "--allow-empty")
    with pytest.raises(SystemExit, match="not at HEAD"), checkout("HEAD", tmp_path / "kept"):
        pass
