"""The user's configuration file and where it lies. Reads TOML, knows no plugin.

Commands of plugins may have sections of their own, which they declare (`Command.settings`).
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_core.errors import ConfigError

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
    """What the file says: plugins to leave out, plugins that win a name, the cache folder."""

    disable: tuple[str, ...] = ()
    prefer: tuple[str, ...] = ()
    cache: Path | None = None


def config_path(env: Mapping[str, str] = os.environ) -> Path:
    """$APR_CONFIG, or apr/config.toml in the XDG configuration folder."""
    if env.get("APR_CONFIG"):
        return Path(env["APR_CONFIG"])
    return (
        Path(env.get("XDG_CONFIG_HOME") or _home("APR_CONFIG") / ".config") / "apr" / "config.toml"
    )


def _home(variable: str) -> Path:
    """The user's folder. Raises ConfigError, naming the variable that does without, if none."""
    try:
        return Path.home()
    except RuntimeError as error:
        raise ConfigError(
            "the user who runs this has no home folder", f"Set HOME, or {variable}."
        ) from error


def cache_dir(env: Mapping[str, str] = os.environ) -> Path:
    """$APR_CACHE, or `[cache] dir` of the file, or apr in the XDG cache folder."""
    if env.get("APR_CACHE"):
        return Path(env["APR_CACHE"])
    try:
        configured = read_settings(config_path(env)).cache
    except ConfigError:  # said where the file matters: a cache is needed to say it
        configured = None
    return configured or Path(env.get("XDG_CACHE_HOME") or _home("APR_CACHE") / ".cache") / "apr"


def read_settings(path: Path | None = None) -> Settings:
    """Read the core's sections; a missing file means no settings.

    Raises ConfigError naming file and key. Other sections are left to `check_settings`, as who may
    have one is not known before plugins are.
    """
    path = path or config_path()
    content = config_content(path)
    own = {section: keys for section, keys in content.items() if section in KNOWN}
    for text, hint in problems(own):
        raise ConfigError(f"{path}: {text}", hint)
    plugins, cache = content.get("plugins", {}), content.get("cache", {}).get("dir")
    return Settings(
        tuple(plugins.get("disable", ())),
        tuple(plugins.get("prefer", ())),
        Path(cache).expanduser() if cache else None,
    )


def check_settings(sections: Sections, passed_over: Callable[[str], bool]) -> None:
    """Raise ConfigError for what is in the file and in no section; some sections are passed over.

    Those in `sections` never are.
    """
    path = config_path()
    content = {
        name: keys for name, keys in config_content(path).items()
        if name in sections or not passed_over(name)
    }  # fmt: skip
    for text, hint in problems(content, sections):
        raise ConfigError(f"{path}: {text}", hint)


def config_content(path: Path) -> dict[str, Any]:
    """What the file holds, allowed or not; nothing where there is none. Raises ConfigError."""
    try:
        return tomllib.loads(config_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}", "Correct the file or remove it.") from error


def config_text(path: Path) -> str:
    """The file's text, whatever ends its lines and with no byte order mark; "" if there is none.

    Raises ConfigError, also for what is no file: a pipe would never end.
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
    """(what is wrong, hint) of every section, key and value that should not be there."""
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
    """Entries of `prefer` that name no plugin: they would choose nothing."""
    for entry in entries:
        if not QUALIFIED.fullmatch(entry):
            yield (
                f"plugins.prefer: {entry!r} does not say whose it is",
                'Write it as "distribution:name"; `apr plugins list` shows both.',
            )


def _suggest(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"Did you mean {close[0]!r}?" if close else f"Known are: {', '.join(known)}."
