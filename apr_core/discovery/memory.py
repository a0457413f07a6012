"""Remembers what hooks modules declared, so that no command imports one twice.

One JSON file for each Python environment, in the cache folder. What a plugin declared counts as
long as its version and its files are what they were. What cannot be used is not remembered.
"""

from __future__ import annotations

import contextlib
import json
import sys
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr_core.declarations import API_VERSION, KINDS, Declaration, Layout, Numbers
from apr_core.settings import cache_dir, write_whole

if TYPE_CHECKING:
    from apr_core.discovery import PluginRow

NESTED = {"layout": Layout, "scale": Numbers, "minimum": Numbers}  # fields that are records


class Memory:
    """What is remembered of this environment; with `refresh`, nothing is."""

    def __init__(self, env: Mapping[str, str], refresh: bool = False) -> None:
        key = zlib.crc32(f"{API_VERSION} {sys.prefix} {sys.version}".encode())
        self._path = cache_dir(env) / "plugins" / f"{key:08x}.json"
        self._records: dict[str, Any] = {} if refresh else self._read()
        self._changed = refresh

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            content = json.loads(self._path.read_text("utf-8"))
            if isinstance(content, dict):
                return content
        return {}

    def recall(self, plugin: PluginRow) -> tuple[Declaration, ...] | None:
        """What the plugin declared, if it is the same plugin still."""
        try:
            record = self._records[plugin.name]
            if [plugin.version, plugin.module] != record["plugin"]:
                return None
            if any(_stamp(path) != [path, *state] for path, *state in record["files"]):
                return None
            return tuple(from_record(each) for each in record["declarations"])
        except (KeyError, TypeError, ValueError, AttributeError):  # absent, or damaged
            return None

    def remember(self, plugin: PluginRow, declarations: tuple[Declaration, ...]) -> None:
        """Note what a plugin declared that was just imported."""
        self._changed = True
        self._records[plugin.name] = {
            "plugin": [plugin.version, plugin.module], "files": _files(plugin.module),
            "declarations": [record_of(d) for d in declarations],
        }  # fmt: skip

    def save(self) -> None:
        """Write what is new, if there is a place for it: without one, it costs time only."""
        if self._changed:
            with contextlib.suppress(OSError):
                write_whole(self._path, json.dumps(self._records).encode())


def _files(module: str) -> list[list[Any]]:
    """Stamps of the files of all modules of the plugin's package that are imported."""
    package = module.partition(":")[0].partition(".")[0]
    files = {
        getattr(loaded, "__file__", None)
        for name, loaded in list(sys.modules.items())
        if name.partition(".")[0] == package
    }
    return [_stamp(path) for path in sorted(file for file in files if isinstance(file, str))]


def _stamp(path: str) -> list[Any]:
    """[path, time of the last change in ns, size]; zeros if the file is gone."""
    try:
        state = Path(path).stat()
        return [path, state.st_mtime_ns, state.st_size]
    except OSError:
        return [path, 0, 0]


def record_of(declaration: Declaration) -> dict[str, Any]:
    """A declaration and its kind, as JSON. Raises TypeError for fields that JSON does not have."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(declaration), allow_nan=False))
    return {"kind": declaration.kind, **plain}


def from_record(record: dict[str, Any]) -> Declaration:
    """The declaration of a record. Raises KeyError or TypeError for anything else."""
    values = dict(record)
    cls = KINDS[values.pop("kind")]
    return cls(**{key: _value(key, v) for key, v in values.items()})


def _value(key: str, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_value(key, v) for v in value)
    if isinstance(value, dict):
        return NESTED[key](**{k: _value(k, v) for k, v in value.items()})
    return value
