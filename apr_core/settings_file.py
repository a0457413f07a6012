"""Changes lists in the user's configuration file and leaves everything else as it was written.

Comments, order and spacing are somebody's own: the text is edited in place, read again to see that
it says what it should, and only then put where the file was.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import re
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
        wanted = tomllib.loads(text)
        values = [v for v in wanted.get(section, {}).get(key, ()) if v not in remove]
        values += [name for name in add if name not in values]
        wanted.setdefault(section, {})[key] = values
        changed = _edited(text, section, key, values)
        if _parsed(changed) != wanted:
            raise ConfigError(
                f"{path} is written in a way that cannot be changed safely; it is untouched",
                f"Change it by hand:\n  [{section}]\n  {key} = {values}",
            )
        _write(Path(os.path.realpath(path)), changed)
    except OSError as error:
        raise InputOutputError(
            f"{path} cannot be written: {error.strerror or error}",
            f"Make it writable, or put {key} under [{section}] into a file of your own and name "
            "that in APR_CONFIG.",
        ) from error
    return path


def _edited(text: str, section: str, key: str, values: list[str]) -> str:
    """The TOML text with the list replaced, or added; the rest stays as it is written."""
    end = "\r\n" if "\r\n" in text else "\n"
    line = f"{key} = {json.dumps(values, ensure_ascii=False)}"
    head = re.search(rf"^\[{section}\][^\r\n]*$", text.replace("\r", " "), re.MULTILINE)
    if head is None:
        gap = "" if not text or text.endswith("\n") else end
        return f"{text}{gap}[{section}]{end}{line}{end}"
    after = re.compile(r"^\[", re.MULTILINE).search(text, head.end())
    stop = after.start() if after else len(text)
    body = text[head.end() : stop]
    body, count = re.subn(rf"(?m)^{key}\s*=\s*\[[^\]]*\]", lambda _: line, body, count=1)
    return text[: head.end()] + ("" if count else f"{end}{line}") + body + text[stop:]


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None


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
