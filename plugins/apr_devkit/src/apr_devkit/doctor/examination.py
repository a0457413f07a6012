"""Examines everything apr depends on, part by part."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator

from apr_devkit.doctor import configuration, machine, plugins, storage
from apr_devkit.doctor.finding import Finding, Part


def _parts() -> dict[str, Callable[[], Finding]]:
    return {
        "system": machine.system,
        "processor": machine.processor,
        "memory": machine.memory,
        "devices": plugins.devices,
        "plugins": plugins.plugins,
        "libraries": plugins.libraries,
        "storage": storage.storage,
        "configuration": configuration.configuration,
    }


def examine(parts: dict[str, Callable[[], Finding]] | None = None) -> Iterator[Part]:
    """Yield each part as it is done; a part that cannot be examined reports that."""
    for name, look in (parts or _parts()).items():
        yield Part(name, _careful(name, look))


def _careful(name: str, look: Callable[[], Finding]) -> Finding:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # a backend that prints must not break --json
            return look()
    except (Exception, SystemExit) as error:
        if os.environ.get("APR_DEBUG") == "1":
            traceback.print_exc()
        reason = f"cannot be examined: {type(error).__name__}: {error}"
        return Finding([("", reason)], {"error": reason}, warnings=[f"{name} {reason}"])
