"""Remembers what hooks modules declared, so that no command imports one twice.

One JSON file for each Python environment, in the cache folder. What a plugin declared counts as
long as its version and its files are what they were. What cannot be used is not remembered.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apr_core.declarations import Declaration
from apr_core.discovery.entry_points import EntryPoint
from apr_core.discovery.records import from_record, record_of
from apr_core.hookspecs import API_VERSION
from apr_core.settings import cache_dir

Stamp = list[Any]  # [path, mtime in ns, size]


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

    def recall(self, plugin: EntryPoint) -> tuple[Declaration, ...] | None:
        """What the plugin declared, if it is the same plugin still."""
        try:
            record = self._records[plugin.name]
            if record["version"] != plugin.version or record["value"] != plugin.value:
                return None
            if any(_stamp(path) != [path, *state] for path, *state in record["files"]):
                return None
            return tuple(from_record(each) for each in record["declarations"])
        except (KeyError, TypeError, ValueError, AttributeError):  # absent, or damaged
            return None

    def keep(self, plugin: EntryPoint, declarations: tuple[Declaration, ...]) -> None:
        """Remember what a plugin declared that was just imported."""
        self._changed = True
        self._records[plugin.name] = {
            "version": plugin.version, "value": plugin.value, "files": _files(plugin.value),
            "declarations": [record_of(d) for d in declarations],
        }  # fmt: skip

    def save(self) -> None:
        """Write what is new, if there is a place for it: without one, it costs time only."""
        if not self._changed:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, beside = tempfile.mkstemp(dir=self._path.parent)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(self._records, file)
                Path(beside).replace(self._path)
            except BaseException:
                Path(beside).unlink(missing_ok=True)
                raise


def _files(module: str) -> list[Stamp]:
    """The files of all modules of the plugin's package that are imported."""
    package = module.partition(":")[0].partition(".")[0]
    files = {
        getattr(loaded, "__file__", None)
        for name, loaded in list(sys.modules.items())
        if name.partition(".")[0] == package
    }
    return [_stamp(path) for path in sorted(file for file in files if isinstance(file, str))]


def _stamp(path: str) -> Stamp:
    try:
        state = Path(path).stat()
        return [path, state.st_mtime_ns, state.st_size]
    except OSError:
        return [path, 0, 0]
