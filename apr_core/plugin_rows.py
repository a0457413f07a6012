"""One plugin's hooks module: importing it, calling its hooks, and checking what they return."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from typing import Any, Literal

from apr_core import hookspecs
from apr_core.declarations import (
    HOOKS,
    KINDS,
    Declaration,
    Kernel,
    Layout,
    Numbers,
    Quantizer,
)

Status = Literal["ok", "broken", "disabled", "incompatible", "unavailable"]
NAME = re.compile(r"[^\s\x00-\x1f\x7f\"'`]{1,100}", re.ASCII)
TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
LONGEST = 200  # characters of a summary or a reason that are worth a line
NESTED = {"layout": Layout, "scale": Numbers, "minimum": Numbers}


@dataclass(frozen=True, slots=True)
class PluginRow:
    """One entry point: what it provides, or why not."""

    distribution: str
    version: str
    entry_point: str
    module: str
    status: Status
    reason: str = ""
    declarations: tuple[Declaration, ...] = ()

    @property
    def name(self) -> str:
        """`distribution:entry point`, unique."""
        return f"{self.distribution}:{self.entry_point}"


@dataclass(frozen=True, slots=True)
class Found:
    """An entry point as the packaging metadata has it. `problem`: what is wrong with that."""

    distribution: str
    version: str
    entry_point: str
    value: str
    problem: str = ""

    @property
    def name(self) -> str:
        """`distribution:entry point`, unique."""
        return f"{self.distribution}:{self.entry_point}"

    def row(
        self, status: Status, reason: str = "", declarations: tuple[Declaration, ...] = ()
    ) -> PluginRow:
        """The row of this entry point."""
        return PluginRow(
            self.distribution, self.version, self.entry_point, self.value, status, reason,
            declarations,
        )  # fmt: skip


class Refused(Exception):
    """A plugin that may not be used; carries the row's status and reason."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def checked_collection(found: Found, on_error: Callable[[], None] = lambda: None) -> PluginRow:
    """The row of a plugin, imported here and now. Anything but an interrupt is a reason."""
    try:
        return found.row("ok", "", tuple(collect(found.value)))
    except Refused as refusal:
        return found.row(refusal.status, one_line(refusal.reason))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may raise anything, also what nobody should catch
        on_error()
        return found.row("broken", one_line(f"{type(error).__name__}: {error}".rstrip(": ")))


def one_line(text: str) -> str:
    """Text of somebody else, fit for one line of a terminal."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    line = " ".join(printable.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."


def collect(value: str) -> Iterator[Declaration]:
    """The declarations of the hooks module of an entry point `value`. Raises what it raises."""
    import pluggy

    with contextlib.redirect_stdout(sys.stderr):  # a plugin that prints must not break --json
        module = import_module(value.partition(":")[0].strip())
        manager = pluggy.PluginManager("apr")
        manager.add_hookspecs(hookspecs)
        if os.environ.get("APR_TRACE_PLUGINS") == "1":
            manager.trace.root.setwriter(sys.stderr.write)
            manager.enable_tracing()
        manager.register(module)
        manager.check_pending()
        for hook, kind in HOOKS.items():
            for result in getattr(manager.hook, hook)():
                yield from [checked(d, hook, kind) for d in result]


def checked(declaration: Any, hook: str, kind: str) -> Declaration:
    """One declaration, if it is of the hook's kind and makes sense. Raises Refused."""
    if not isinstance(declaration, KINDS[kind]):
        expected = f"{KINDS[kind].__name__} records"
        raise Refused("broken", f"{hook} returned {declaration!r}, expected {expected}")
    api = declaration.api
    if type(api) is not int or api not in hookspecs.SUPPORTED_APIS:
        raise Refused(
            "incompatible",
            f"{kind} {declaration.name!r} targets API {api}, this apr-core has API "
            f"{hookspecs.API_VERSION}: {_upgrade(api)}",
        )
    if not isinstance(declaration.name, str) or not NAME.fullmatch(declaration.name):
        raise Refused(
            "broken",
            f"{hook} declares a {kind} called {declaration.name!r}: a name has 1 to 100 printable "
            "ASCII characters, without spaces and quotes",
        )
    problem = _problem(declaration)
    if problem:
        raise Refused("broken", f"{kind} {declaration.name!r}: {problem}")
    return declaration


def _upgrade(api: Any) -> str:
    newer = type(api) is int and api > hookspecs.API_VERSION
    return "upgrade apr-core" if newer else "upgrade the plugin"


def _problem(declaration: Declaration) -> str:
    """What is wrong with the fields of a declaration; nothing if all is well."""
    if not isinstance(declaration.target, str) or not TARGET.fullmatch(declaration.target):
        return f"target must be 'module:Attr', found {declaration.target!r}"
    if not isinstance(declaration.summary, str) or not _is_a_line(declaration.summary):
        return "summary must be one line of text"
    if isinstance(declaration, Quantizer):
        sizes = (declaration.block, declaration.bytes_per_block)
        if not all(type(size) is int and size > 0 for size in sizes):
            return "block and bytes_per_block must be positive"
    if isinstance(declaration, Kernel) and not (declaration.backend and declaration.op):
        return "backend and op must be named"
    try:
        again = from_plain(as_plain(declaration))
    except Exception as error:
        return f"its fields must be text, numbers and tuples ({error})"
    return "" if again == declaration else "its fields must be text, numbers and tuples"


def _is_a_line(text: str) -> bool:
    return text.isprintable() and len(text) <= LONGEST


def as_plain(declaration: Declaration) -> dict[str, Any]:
    """A declaration as JSON has it, with its kind."""
    return {"kind": declaration.kind, **_plain(declaration)}


def _plain(value: Any) -> Any:
    if isinstance(value, Declaration | Layout | Numbers):
        # fields that say nothing stay out, so that they may be added to and what is kept is short
        return {
            f.name: _plain(getattr(value, f.name)) for f in fields(value)
            if f.default is MISSING or getattr(value, f.name) != f.default
        }  # fmt: skip
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{value!r} is a {type(value).__name__}")


def from_plain(record: dict[str, Any]) -> Declaration:
    """The declaration that `as_plain` wrote. Raises KeyError or TypeError for anything else."""
    values = dict(record)
    cls = KINDS[values.pop("kind")]
    return cls(**{key: _value(key, v) for key, v in values.items()})


def checked_plain(record: dict[str, Any]) -> Declaration:
    """The same, if its fields make sense. Raises ValueError too."""
    declaration = from_plain(record)
    problem = _problem(declaration)
    if problem or not isinstance(declaration.name, str):
        raise ValueError(problem or f"name {declaration.name!r}")
    return declaration


def _value(key: str, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_value(key, v) for v in value)
    if isinstance(value, dict):
        return NESTED[key](**{k: _value(k, v) for k, v in value.items()})
    return value
