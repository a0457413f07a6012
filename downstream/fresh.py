"""A fresh venv, and wheels of this repository's distributions to install into it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from apr_core.settings import cache_dir

ROOT = Path(__file__).resolve().parent.parent
# what is not a third party: everything of this repository, and what pip itself is
OURS = ("apr", "_apr", "__editable__", "pip", "_pip")
COMPILED = "cpu"  # folder of a cache


def distributions() -> dict[str, Path]:
    """{distribution name: folder} of all that this repository ships, examples included."""
    folders = [ROOT, *ROOT.glob("plugins/*"), *ROOT.glob("examples/plugins/*")]
    projects = [folder for folder in folders if (folder / "pyproject.toml").exists()]
    return {_name(folder): folder for folder in sorted(projects)}


def _name(folder: Path) -> str:
    import tomllib

    content = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))
    name: str = content["project"]["name"]
    return name


class FreshVenv:
    """A venv called `name` under `root`. `link`: third-party packages are those of this
    interpreter, linked; otherwise it is empty and pip fetches what is installed. Venvs with one
    folder of `wheels` build each wheel once, in several processes too.
    """

    def __init__(
        self, root: Path, link: bool = True, name: str = "venv", wheels: Path | None = None
    ) -> None:
        self.root, self.venv, self.link = root, root / name, link
        self.wheels = wheels or root / "wheels"
        self.python = self.venv / "bin" / "python"
        self._link_compiled_code()
        subprocess.run([sys.executable, "-m", "venv", self.venv], check=True)
        if link:
            self._link_third_parties()

    def _link_compiled_code(self) -> None:
        """Share what backends compiled: it is named by its sources, and takes long to make."""
        theirs, own = cache_dir() / COMPILED, self.root / "cache" / COMPILED
        for folder in (theirs, own.parent):
            folder.mkdir(parents=True, exist_ok=True)
        if not own.exists():
            own.symlink_to(theirs)

    def _link_third_parties(self) -> None:
        theirs = Path(next(p for p in sys.path if p.endswith("site-packages")))
        own = next((self.venv / "lib").glob("python*/site-packages"))
        for entry in theirs.iterdir():
            is_ours = entry.name.startswith(OURS) or entry.suffix == ".pth"
            if not is_ours and not (own / entry.name).exists():
                (own / entry.name).symlink_to(entry)

    def wheel(self, name: str) -> Path:
        """The wheel of one of this repository's distributions, built at its first use."""
        pattern = f"{name.replace('-', '_')}-*.whl"
        self.wheels.mkdir(parents=True, exist_ok=True)
        with (self.wheels / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not list(self.wheels.glob(pattern)):
                self._pip(
                    sys.executable, "wheel", "--no-deps", "-w", self.wheels, distributions()[name]
                )
        return next(self.wheels.glob(pattern))

    def install(self, *names: str) -> None:
        """Install distributions of this repository from their wheels."""
        wheels = [self.wheel(name) for name in names]
        self._pip(
            self.python, "install", *(["--no-deps", "--no-index"] if self.link else []), *wheels
        )

    def install_shipped(self) -> None:
        """Install all that is shipped: everything but the examples."""
        self.install(*(name for name, at in distributions().items() if "examples" not in at.parts))

    def install_editable(self, folder: Path) -> None:
        """Install a package from its sources, as its author does."""
        editable = ["--no-deps", "--no-build-isolation"] if self.link else []
        self._pip(self.python, "install", *editable, "-e", folder)

    def uninstall(self, *names: str) -> None:
        """Take distributions out again; those that are not there are no error."""
        self._pip(self.python, "uninstall", "-y", *names)

    def install_third_parties(self, requirements: Iterable[str]) -> None:
        """Install what pip finds; linked venvs have what this interpreter has."""
        wanted = list(requirements)
        if wanted and not self.link:
            self._pip(self.python, "install", *wanted)

    def _pip(self, python: Path | str, verb: str, *arguments: object) -> None:
        isolation = ["--no-build-isolation"] if self.link and verb == "wheel" else []
        lazily = ["--no-compile"] if verb == "install" else []  # most modules are never imported
        done = subprocess.run(
            [str(python), "-m", "pip", verb, "-q", *isolation, *lazily, *map(str, arguments)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"pip {verb} {arguments}:\n{done.stderr}")

    def run(
        self, *command: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the venv, with a cache and a configuration of its own."""
        return subprocess.run(
            self.command(*command),
            capture_output=True,
            text=True,
            cwd=cwd or self.venv,
            env=self.environment(env),
        )

    def command(self, program: object, *arguments: object) -> list[str]:
        """The words that start a program of the venv."""
        return [str(self.venv / "bin" / str(program)), *map(str, arguments)]

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """What programs of the venv find in their environment: nothing of this process's own."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("APR_", "PYTHON"))}
        own = {
            "APR_CACHE": str(self.root / "cache"),
            "APR_CONFIG": str(self.root / "config.toml"),
            # as above: what the codecs compiled
            "NUMBA_CACHE_DIR": str(cache_dir() / "numba"),
        }
        return inherited | own | dict(more or {})

    def apr(self, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run the venv's own command."""
        return self.run("apr", *arguments, cwd=cwd)
