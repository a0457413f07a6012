"""Changes lists in the user's configuration file and leaves everything else as it was written.

Comments, order and spacing are somebody's own: the text is edited in place, read again to see that
it says what it should, and only then put where the file was.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import shutil
import tempfile
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from apr_core.errors import ConfigError, InputOutputError
from apr_core.settings import config_path, config_text, read_settings


def change_list(
    section: str,
    key: str,
    *,
    add: Collection[str] = (),
    remove: Collection[str] = (),
    path: Path | None = None,
) -> Path:
    """Add strings to the list `[section] key`, and remove strings from it; returns the file's path.

    The file is made if there is none. Raises ConfigError for a file that is not valid as it is, and
    InputOutputError if it cannot be written; then it is untouched.
    """
    path = path or config_path()
    read_settings(path)  # refuses what is wrong before it is written back
    try:
        if path.exists() and not path.is_file():  # /dev/null, which reads as no settings
            raise ConfigError(f"{path} keeps nothing", "Name a file in APR_CONFIG.")
        text = config_text(path)
        changed = edited(text, section, key, add, remove)
        _check(path, text, changed, section, key, add, remove)
        _write(Path(os.path.realpath(path)), changed)
    except OSError as error:
        raise InputOutputError(
            f"{path} cannot be written: {error.strerror or error}",
            f"Make it writable, or put {key} under [{section}] into a file of your own and name "
            "that in APR_CONFIG.",
        ) from error
    return path


def edited(
    text: str, section: str, key: str, add: Collection[str], remove: Collection[str]
) -> str:  # fmt: skip
    """The TOML text with the list changed; sections and keys that are missing are made."""
    import tomlkit

    document: Any = tomlkit.parse(text)
    if section not in document:
        document[section] = tomlkit.table()
    if key not in document[section]:
        document[section][key] = tomlkit.array()
    values = document[section][key]
    for name in remove:
        while name in values:
            values.remove(name)
    for name in add:
        if name not in values:
            values.append(name)
    return tomlkit.dumps(document)


def _check(
    path: Path, before: str, after: str, section: str, key: str,
    add: Collection[str], remove: Collection[str],
) -> None:  # fmt: skip
    """Raise ConfigError unless the new text means the old one with the list changed."""
    wanted = tomllib.loads(before)
    values = [v for v in wanted.get(section, {}).get(key, ()) if v not in remove]
    values += [name for name in add if name not in values]
    wanted.setdefault(section, {})[key] = values
    try:
        found = tomllib.loads(after)
    except tomllib.TOMLDecodeError:
        found = None
    if found != wanted:
        raise ConfigError(
            f"{path} is written in a way that cannot be changed safely; it is untouched",
            f"Change it by hand:\n  [{section}]\n  {key} = {values}",
        )


def _write(path: Path, text: str) -> None:
    """Beside the file, then in its place, with its permissions. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_mark(path) + text.encode("utf-8"))
        if path.exists():
            shutil.copymode(path, beside)
        else:
            Path(beside).chmod(0o644)
        Path(beside).replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(beside).unlink()


def _mark(path: Path) -> bytes:
    """The byte order mark, where the file begins with one."""
    marked = path.exists() and path.read_bytes().startswith(codecs.BOM_UTF8)
    return codecs.BOM_UTF8 if marked else b""
