"""Every setting: its value, and whether it comes from the file, the environment or a default."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apr_core.plugin import ConfigError, cache_dir
from apr_core.runtime import (
    config_content,
    config_path,
    get_registry,
    problems,
    read_settings,
    tolerant_registry,
)
from apr_devkit.doctor.finding import Finding

DEFAULT = "default"
SECRET = ("HF_TOKEN",)
# environment variables that core reads, and what applies where they are not set
VARIABLES: dict[str, str] = {
    "APR_STORE": "apr/models in the XDG data folder",
    "APR_NO_PLUGINS": "plugins are used",
    "APR_PLUGINS": "all installed plugins",
    "APR_PLUGINS_BLOCK": "none",
    "APR_DEBUG": "no tracebacks",
    "APR_TRACE_PLUGINS": "hook calls are not shown",
    "HF_HOME": "the hub client's own",
    "HF_HUB_CACHE": "the hub client's own",
    "HF_ENDPOINT": "the hub client's own",
    "HF_HUB_OFFLINE": "the network is used",
    "HF_TOKEN": "none",
}
FOLDERS = ("APR_CONFIG", "APR_CACHE")  # shown as the settings they set


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting in force. `origin`: default, a file's path, or a variable's name."""

    name: str
    value: Any
    origin: str


def configuration(env: Mapping[str, str] = os.environ) -> Finding:
    """Report the settings of file and environment, and what is wrong in the file."""
    path = config_path(env)
    settings = [*_of_file(path, env), *_of_environment(env)]
    unknown = sorted(n for n in env if n.startswith("APR_") and n not in {*VARIABLES, *FOLDERS})
    facts = {
        "file": str(path), "exists": path.exists(),
        "settings": [asdict(setting) for setting in settings], "other_variables": unknown,
    }  # fmt: skip
    rows = [(s.name, f"{_shown(s.value)}  ({s.origin})") for s in settings]
    rows += [(name, f"{env[name]}  (not of the core; a plugin may read it)") for name in unknown]
    return Finding(rows, facts, list(_problems(path)))


def _shown(value: Any) -> str:
    return (", ".join(value) or "none") if isinstance(value, list | tuple) else str(value)


def _problems(path: Path) -> Iterator[str]:
    """Yield the errors that stop every command that reads the file."""
    try:
        read_settings(path)
        get_registry()
    except ConfigError as error:
        content, sections = _content(path), tolerant_registry().settings()
        mistakes = list(problems(content, sections))  # none if it is not TOML
        texts = [f"{path}: {text}. {hint}".strip() for text, hint in mistakes] or [error.message]
        yield from (f"{text} Commands that use plugins stop at that." for text in texts)


def _of_file(path: Path, env: Mapping[str, str]) -> Iterator[Setting]:
    """Yield the file itself, the cache folder, and everything the file sets."""
    named = (name for name in ("APR_CONFIG", "XDG_CONFIG_HOME") if env.get(name))
    origin = next(named, DEFAULT) + ("" if path.exists() else ", not there")
    yield Setting("configuration file", str(path), origin)
    content = _content(path)
    yield _cache(content, path, env)
    for section, keys in content.items():
        for key, value in keys.items() if isinstance(keys, dict) else ():
            if (section, key) != ("cache", "dir"):
                yield Setting(f"{section}.{key}", value, str(path))


def _cache(content: Mapping[str, Any], path: Path, env: Mapping[str, str]) -> Setting:
    part = content.get("cache")
    named = part.get("dir") if isinstance(part, dict) else None
    in_file = isinstance(named, str) and cache_dir(env) == Path(named).expanduser()
    origin = next(
        name
        for name, holds in (
            ("APR_CACHE", bool(env.get("APR_CACHE"))),
            (str(path), in_file),
            ("XDG_CACHE_HOME", bool(env.get("XDG_CACHE_HOME"))),
            (DEFAULT, True),
        )
        if holds
    )
    return Setting("cache.dir", str(cache_dir(env)), origin)


def _content(path: Path) -> Mapping[str, Any]:
    """Return the content of the file, even where it is invalid; {} if it is not TOML."""
    try:
        return config_content(path)
    except ConfigError:
        return {}


def _of_environment(env: Mapping[str, str]) -> Iterator[Setting]:
    for name, otherwise in VARIABLES.items():
        if name in env:
            yield Setting(name, "set, not shown" if name in SECRET else env[name], "environment")
        else:
            yield Setting(name, otherwise, DEFAULT)
