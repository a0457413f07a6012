"""The user's configuration file and its settings, and the folders for caches and models.

Knows no plugin: commands of plugins may have sections of their own, which they declare
(`Command.settings`).
"""

from __future__ import annotations

import os
import re
import stat
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from apr_core.errors import ConfigError
from apr_core.messages import did_you_mean

KNOWN: dict[str, dict[str, type]] = {
    "plugins": {"disable": list, "prefer": list},
    "cache": {"dir": str},
}
Sections = Mapping[str, Mapping[str, type]]  # of the file: what each key holds
WHAT: dict[type, str] = {
    list: "a list of strings", str: "a string", int: "a whole number", float: "a number",
    bool: "true or false",
}  # fmt: skip
TYPES: dict[str, type] = {kind.__name__: kind for kind in WHAT}  # as declarations name them
QUALIFIED = re.compile(r"[^\s:]+:\S+")  # distribution:name


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the file: plugins to leave out, plugins that win a name, the cache folder."""

    disable: tuple[str, ...] = ()
    prefer: tuple[str, ...] = ()
    cache: Path | None = None


def config_path(env: Mapping[str, str] = os.environ) -> Path:
    """Return $APR_CONFIG, or apr/config.toml in the XDG configuration folder."""
    if env.get("APR_CONFIG"):
        return Path(env["APR_CONFIG"])
    return Path(env.get("XDG_CONFIG_HOME") or _home("APR_CONFIG") / ".config", "apr/config.toml")


def _home(variable: str) -> Path:
    """Return the home folder. Raises ConfigError, naming the variable to set, without one."""
    try:
        return Path.home()
    except RuntimeError as error:
        raise ConfigError(
            "the user who runs this has no home folder", f"Set HOME, or {variable}."
        ) from error


def cache_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Return $APR_CACHE, else `[cache] dir` of the file, else apr in the XDG cache folder."""
    if env.get("APR_CACHE"):
        return Path(env["APR_CACHE"])
    try:
        configured = read_settings(config_path(env)).cache
    except ConfigError:  # reported where the file matters; here only the cache is wanted
        configured = None
    return configured or Path(env.get("XDG_CACHE_HOME") or _home("APR_CACHE") / ".cache") / "apr"


def store_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Return $APR_STORE, else apr/models in the XDG data folder."""
    if env.get("APR_STORE"):
        return Path(env["APR_STORE"])
    return Path(env.get("XDG_DATA_HOME") or _home("APR_STORE") / ".local/share", "apr/models")


def read_settings(path: Path | None = None) -> Settings:
    """Read the core's sections; a missing file means no settings.

    Raises ConfigError naming file and key. Other sections are left to `check_settings`: which of
    them are allowed is known only once plugins are.
    """
    path = path or config_path()
    content = config_content(path)
    own = {section: keys for section, keys in content.items() if section in KNOWN}
    for text, hint in problems(own):
        raise ConfigError(f"{path}: {text}", hint)
    plugins, cache = content.get("plugins", {}), content.get("cache", {}).get("dir")
    disable, prefer = (tuple(plugins.get(key, ())) for key in ("disable", "prefer"))
    return Settings(disable, prefer, Path(cache).expanduser() if cache else None)


def check_settings(sections: Sections, passed_over: Callable[[str], bool]) -> None:
    """Raise ConfigError for unknown sections, unless `passed_over` says so, and for wrong keys.

    Sections in `sections` are always checked.
    """
    path = config_path()
    content = {
        name: keys
        for name, keys in config_content(path).items()
        if name in sections or not passed_over(name)
    }
    for text, hint in problems(content, sections):
        raise ConfigError(f"{path}: {text}", hint)


def config_content(path: Path) -> dict[str, Any]:
    """Return the file's content, valid or not; empty without a file. Raises ConfigError."""
    try:
        return tomllib.loads(config_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}", "Correct the file or remove it.") from error


def config_text(path: Path) -> str:
    """Return the file's text with its line ends, without byte order mark; "" without a file.

    Raises ConfigError, also for a path that is no file: a pipe would never end.
    """
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return path.read_bytes().decode("utf-8-sig")
        empty = path.samefile(os.devnull)
    except FileNotFoundError:  # or a link that leads nowhere
        return ""
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: {error}", "Correct the file or remove it.") from error
    if not empty:
        raise ConfigError(
            f"{path} is not a file, and settings are read from files only",
            "Remove it, or name a file in APR_CONFIG.",
        )
    return ""


def problems(content: Mapping[str, Any], sections: Sections = KNOWN) -> Iterator[tuple[str, str]]:
    """Yield (what is wrong, hint) for every section, key and value that should not be there."""
    for section, keys in content.items():
        if section not in sections or not isinstance(keys, dict):
            yield f"unknown section [{section}]", _suggest(section, sections)
            continue
        for key, value in keys.items():
            expected = sections[section].get(key)
            if expected is None:
                yield f"unknown key {key!r} in [{section}]", _suggest(key, sections[section])
            elif not _fits(value, expected):
                yield f"{section}.{key} must be {WHAT[expected]}", ""
            elif key == "prefer" and isinstance(value, list):
                yield from _unqualified(value)


def _fits(value: Any, expected: type) -> bool:
    if expected is list:
        return isinstance(value, list) and all(isinstance(v, str) for v in value)
    return type(value) is expected or (expected is float and type(value) is int)


def _unqualified(entries: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (what is wrong, hint) for entries of `prefer` that name no plugin."""
    for entry in entries:
        if not QUALIFIED.fullmatch(entry):
            yield (
                f"plugins.prefer: {entry!r} does not say whose it is",
                'Write it as "distribution:name"; `apr plugins list` shows both.',
            )


def _suggest(name: str, known: Mapping[str, object]) -> str:
    return did_you_mean(name, known) or f"Known are: {', '.join(known)}."


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its target, then replace it, keeping permissions. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        if path.exists():
            part.chmod(path.stat().st_mode)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def usable_folder(root: Path, name: str, what: str, setting: str) -> Path | None:
    """Return folder `name` below `root`, made if missing, else a temporary one, else None.

    If it is not below `root`, one line on stderr says where `what` is kept instead and which
    variable (`setting`) names another root.
    """
    problem = _unusable(root / name)
    if not problem:
        return root / name
    instead = _temporary(root.name)
    if instead and _unusable(instead / name):
        instead = None
    where = f"is kept in {instead}" if instead else "is not kept, but made anew each time"
    _say_once(
        f"notice: {root} cannot be used ({problem}): {what} {where}. "
        f"Set {setting} to a folder that you can write to."
    )
    return instead / name if instead else None


def _unusable(folder: Path) -> str:
    """Return why nothing can be written there; empty if something can."""
    import tempfile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _temporary(name: str) -> Path | None:
    """Return a folder among the temporary files that no other user can write to, or None.

    Code is run from there, so a folder that somebody else made is refused.
    """
    import tempfile

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


@cache
def _say_once(text: str) -> None:
    """Print a line on stderr, the first time in this process."""
    print(text, file=sys.stderr)
