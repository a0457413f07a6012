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
        new = [name for name in dict.fromkeys(add) if name not in values]
        values += new
        wanted.setdefault(section, {})[key] = values
        changed = _edited(text, section, key, new, remove)
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


def _edited(
    text: str, section: str, key: str, add: Collection[str], remove: Collection[str]
) -> str:  # fmt: skip
    """The TOML text with the list changed; the rest, comments too, stays as it is written."""
    begin, name = r"(?m)^[ \t]*", rf"[\"']?{key}[\"']?"
    head = re.search(rf"{begin}\[[ \t]*{section}[ \t]*\][^\r\n]*", text)
    after = re.compile(rf"{begin}\[").search(text, head.end()) if head else None
    stop = after.start() if after else len(text)
    item = re.search(rf"{begin}{section}[ \t]*\.[ \t]*{name}[ \t]*=[ \t]*\[", text)
    if head:
        item = re.compile(rf"{begin}{name}[ \t]*=[ \t]*\[").search(text, head.end(), stop) or item
    end = "\r\n" if "\r\n" in text else "\n"
    if item is None:
        line = f"{key} = {json.dumps([*add], ensure_ascii=False)}"
        if head:
            return f"{text[: head.end()]}{end}{line}{text[head.end() :]}"
        gap = "" if not text or text.endswith("\n") else end
        return f"{text}{gap}[{section}]{end}{line}{end}"
    close = text.find("]", item.end())
    values = text[item.end() : close]
    for entry in remove:
        quoted = rf"[\"']{re.escape(entry)}[\"'][ \t]*,?[ \t]*"
        values = re.sub(rf"{begin}{quoted}\r?\n|{quoted}", "", values)
    for entry in add:
        bare = re.sub(r"#[^\n]*", "", values).rstrip()
        comma = "" if not bare or bare.endswith(",") else ", "
        values += comma + json.dumps(entry, ensure_ascii=False)
    return text[: item.end()] + values + text[close:]


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
