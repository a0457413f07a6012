"""Which backend, and which of its devices, a name means: `NAME` or `NAME:DEVICE`.

NAME is what a plugin declares, bare or as `distribution:name`; DEVICE is a number. A name that is
declared means what it says, so `a:1` is device 1 of `a` only if no distribution `a` has a backend
called `1`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from apr_core.errors import BackendError, PluginNotFound
from apr_core.registry import Owned, Registry

NUMBERED = re.compile(r"(.+):([0-9]+)")


def find_backend(registry: Registry, name: str) -> tuple[Owned, str | None]:
    """The declaration, and the device if one is named. Raises PluginNotFound or PluginConflict."""
    numbered = NUMBERED.fullmatch(name)
    if not numbered:
        return registry.get("backend", name), None
    try:
        return registry.get("backend", name), None
    except PluginNotFound:
        return registry.get("backend", numbered[1]), numbered[2]


def device_option(factory: Callable[..., Any], name: str, device: str | None) -> dict[str, str]:
    """How to call a backend's target for a device: it gets the option only where one is named.

    Raises BackendError if it takes none.
    """
    if device is None:
        return {}
    if not _takes_device(factory):
        bare = name.rpartition(":")[0]
        raise BackendError(
            f"backend {bare!r} has no devices to choose from, so there is no {name}",
            f"Write {bare}.",
        )
    return {"device": device}


def _takes_device(factory: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # written in C, and says nothing
        return False
    return any(p.name == "device" or p.kind is p.VAR_KEYWORD for p in parameters)
