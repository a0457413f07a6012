"""A venv with the third-party packages of this interpreter, and nothing of apr until asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = [".", *sorted(f"plugins/{p.parent.name}" for p in ROOT.glob("plugins/*/pyproject.toml"))]


class Fresh:
    """A venv, and the wheels of everything in this repository to install from."""

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

    def install(self, *names):
        wheels = [next(self.wheels.glob(f"{name.replace('-', '_')}-*.whl")) for name in names]
        self.pip("install", "-q", "--no-deps", "--no-index", *wheels)

    def install_everything(self):
        self.pip("install", "-q", "--no-deps", "--no-index", *sorted(self.wheels.glob("*.whl")))

    def pip(self, *args):
        subprocess.run(
            [self.python, "-m", "pip", *map(str, args)], check=True, capture_output=True
        )  # fmt: skip

    def run(self, *command, cwd=None, **env):
        """A command of the venv, without this process's path and settings."""
        own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("APR")}
        return subprocess.run(
            [self.venv / "bin" / command[0], *map(str, command[1:])],
            capture_output=True, text=True, env=own | env, cwd=cwd or self.venv,
        )  # fmt: skip

    def apr(self, *args, **options):
        return self.run("apr", *args, **options)
