"""A folder for what is dear to make again, also where the configured one cannot be used."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from pathlib import Path

from apr_core.settings import cache_dir

_said: set[str] = set()  # what a person was told, once a process


def code_folder(sources: Path, name: str, tool: str, setting: str) -> Path | None:
    """Where code is kept that a compiler made from a package's `sources`; None: nowhere.

    It is named after their content, below the folder that the variable `setting` names, else below
    that of the `tool` in the cache.
    """
    digest = hashlib.sha256()
    for source in sorted(sources.glob("*.py")):
        digest.update(source.read_bytes())
    named = os.environ.get(setting)
    return usable_folder(
        Path(named) if named else cache_dir() / tool,
        f"{name}-{digest.hexdigest()[:12]}",
        "compiled code",
        setting if named else "APR_CACHE",
    )


def usable_folder(root: Path, name: str, what: str, setting: str) -> Path | None:
    """The folder `name` below `root`, made if need be; or one among temporary files; or None.

    Where it is not below `root`, a line on stderr says so once: what is kept elsewhere, and the
    variable (`setting`) that names another root.
    """
    problem = _problem(root / name)
    if not problem:
        return root / name
    instead = _temporary(root.name)
    if instead and _problem(instead / name):
        instead = None
    kept = f"is kept in {instead}" if instead else "is not kept, but made anew each time"
    _say(
        f"notice: {root} cannot be used ({problem}): {what} {kept}. "
        f"Set {setting} to a folder that you can write to."
    )
    return instead / name if instead else None


def _problem(folder: Path) -> str:
    """Why nothing can be written there; empty if something can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _temporary(name: str) -> Path | None:
    """A folder below one among the temporary files that nobody else can write to.

    Who may write there could put code where it is run from: what others made is not taken.
    """
    try:
        own = Path(tempfile.gettempdir()) / f"apr-{_user()}"
        own.mkdir(mode=0o700, exist_ok=True)
        status = own.lstat()
    except OSError:
        return None
    shared = status.st_mode & 0o077 and os.name == "posix"
    if not stat.S_ISDIR(status.st_mode) or shared or status.st_uid != _user():
        return None
    return own / name


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0  # where st_uid is 0 as well


def _say(text: str) -> None:
    if text not in _said:
        _said.add(text)
        print(text, file=sys.stderr)
