"""The user's configuration file and where it lies. Reads TOML, knows no plugin."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_core.errors import ConfigError

KNOWN: dict[str, dict[str, type]] = {
    "plugins": {"disable": list, "prefer": list},
    "cache": {"dir": str},
}


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
    return Path(env.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "apr" / "config.toml"


def cache_dir(env: Mapping[str, str] = os.environ) -> Path:
    """$APR_CACHE, or `[cache] dir` of the file, or apr in the XDG cache folder."""
    if env.get("APR_CACHE"):
        return Path(env["APR_CACHE"])
    try:
        configured = read_settings(config_path(env)).cache
    except ConfigError:  # said where the file matters: a cache is needed to say it
        configured = None
    return configured or Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "apr"


def read_settings(path: Path | None = None) -> Settings:
    """Read the file; a missing one means no settings. Raises ConfigError naming file and key."""
    path = path or config_path()
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return Settings()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: {error}", "Correct the file or remove it.") from error
    _check(path, content)
    plugins, cache = content.get("plugins", {}), content.get("cache", {}).get("dir")
    return Settings(
        tuple(plugins.get("disable", ())),
        tuple(plugins.get("prefer", ())),
        Path(cache).expanduser() if cache else None,
    )


def _check(path: Path, content: Mapping[str, Any]) -> None:
    for text, hint in problems(content):
        raise ConfigError(f"{path}: {text}", hint)


def problems(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(what is wrong, hint) of every section, key and value that should not be there."""
    for section, keys in content.items():
        if section not in KNOWN or not isinstance(keys, dict):
            yield f"unknown section [{section}]", _suggest(section, KNOWN)
            continue
        for key, value in keys.items():
            expected = KNOWN[section].get(key)
            strings = isinstance(value, list) and all(isinstance(v, str) for v in value)
            if expected is None:
                yield f"unknown key {key!r} in [{section}]", _suggest(key, KNOWN[section])
            elif not isinstance(value, expected) or (expected is list and not strings):
                what = "a list of strings" if expected is list else "a string"
                yield f"{section}.{key} must be {what}", ""


def _suggest(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"Did you mean {close[0]!r}?" if close else f"Known are: {', '.join(known)}."
