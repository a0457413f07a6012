"""The wheels as a user meets them: core alone, then package by package, in a fresh venv."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny_checkpoints

ROOT = Path(__file__).parent.parent
PACKAGES = [".", *sorted(f"plugins/{p.parent.name}" for p in ROOT.glob("plugins/*/pyproject.toml"))]


class Fresh:
    """A venv with third-party packages (those of this interpreter) and our wheels only."""

    def __init__(self, root):
        self.wheels, self.venv = root / "wheels", root / "venv"
        for package in PACKAGES:
            subprocess.run(
                [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation",
                 "-w", self.wheels, ROOT / package],
                check=True, capture_output=True,
            )  # fmt: skip
        subprocess.run([sys.executable, "-m", "venv", self.venv], check=True)
        self.python = self.venv / "bin" / "python"
        self._share_third_parties()

    def _share_third_parties(self):
        """Link what this interpreter has installed, but nothing of apr, editable or not."""
        theirs = Path(next(p for p in sys.path if p.endswith("site-packages")))
        ours = next((self.venv / "lib").glob("python*/site-packages"))
        for entry in theirs.iterdir():
            ignored = entry.name.startswith(("apr", "_apr", "__editable__", "pip", "_pip"))
            if not ignored and entry.suffix != ".pth" and not (ours / entry.name).exists():
                (ours / entry.name).symlink_to(entry)

    def install(self, name):
        wheel = next(self.wheels.glob(f"{name.replace('-', '_')}-*.whl"))
        subprocess.run(
            [self.python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel],
            check=True, capture_output=True,
        )  # fmt: skip

    def apr(self, *args):
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        return subprocess.run(
            [self.venv / "bin" / "apr", *map(str, args)],
            capture_output=True, text=True, env=env, cwd=self.venv,
        )  # fmt: skip


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    return Fresh(tmp_path_factory.mktemp("fresh"))


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


def test_the_demo_wheel_carries_its_model(fresh, tmp_path):
    for name in ("apr-core", "apr-qwen3-5", "apr-quant-q4k", "apr-demo", "apr-qwen2"):
        fresh.install(name)
    out = tmp_path / "sums.apr"
    done = fresh.apr("import", "demo://sums", "--quantize", "q8_0", "-o", out)
    assert done.returncode == 0, done.stderr
    rows = json.loads(fresh.apr("plugins", "list", "--json").stdout)
    assert {row["status"] for row in rows} == {"ok"}
