"""Imports a plugin's hooks module, calls its hooks, and checks what they return."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from apr_core import hookspecs
from apr_core.declarations import (
    API_VERSION,
    HOOKS,
    SUPPORTED_APIS,
    Command,
    Declaration,
    Kernel,
    Quantizer,
    from_record,
    record_of,
)
from apr_core.messages import LONGEST
from apr_core.settings import TYPES

NAME = re.compile(r"[^\s\x00-\x1f\x7f\"'`]{1,100}", re.ASCII)
TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


class Refused(Exception):
    """A plugin whose declarations are not valid."""


class Incompatible(Refused):
    """A plugin that was written for another API."""


def collect(module_name: str) -> Iterator[Declaration]:
    """Yield the declarations of a hooks module. Raises Refused, and whatever the module raises."""
    import pluggy

    with contextlib.redirect_stdout(sys.stderr):  # a plugin that prints must not break --json
        module = import_module(module_name.partition(":")[0])
        manager = pluggy.PluginManager("apr")
        manager.add_hookspecs(hookspecs)
        if os.environ.get("APR_TRACE_PLUGINS") == "1":
            manager.trace.root.setwriter(sys.stderr.write)
            manager.enable_tracing()
        manager.register(module)
        manager.check_pending()
        for hook in HOOKS:
            for result in getattr(manager.hook, hook)():
                yield from [checked(d, hook) for d in result]


def checked(declaration: Any, hook: str) -> Declaration:
    """Return the declaration if it is valid and of the hook's kind. Raises Refused."""
    if not isinstance(declaration, HOOKS[hook]):
        raise Refused(f"{hook} returned {declaration!r}, expected {HOOKS[hook].__name__} records")
    kind, api = declaration.kind, declaration.api
    if type(api) is not int or api not in SUPPORTED_APIS:
        newer = type(api) is int and api > API_VERSION
        raise Incompatible(
            f"{kind} {declaration.name!r} targets API {api}, this apr-core has API "
            f"{API_VERSION}: upgrade {'apr-core' if newer else 'the plugin'}"
        )
    if not isinstance(declaration.name, str) or not NAME.fullmatch(declaration.name):
        raise Refused(
            f"{hook} declares a {kind} called {declaration.name!r}: a name has 1 to 100 printable "
            "ASCII characters, without spaces and quotes"
        )
    problem = _problem(declaration)
    if problem:
        raise Refused(f"{kind} {declaration.name!r}: {problem}")
    return declaration


def _problem(declaration: Declaration) -> str:
    """Return what is wrong with a declaration's fields; empty if nothing is."""
    if not isinstance(declaration.target, str) or not TARGET.fullmatch(declaration.target):
        return f"target must be 'module:Attr', found {declaration.target!r}"
    summary = declaration.summary
    if not isinstance(summary, str) or not summary.isprintable() or len(summary) > LONGEST:
        return "summary must be one line of text"
    if isinstance(declaration, Quantizer):
        sizes = (declaration.block, declaration.bytes_per_block)
        if not all(type(size) is int and size > 0 for size in sizes):
            return "block and bytes_per_block must be positive"
    if isinstance(declaration, Kernel) and not (declaration.backend and declaration.op):
        return "backend and op must be named"
    try:
        if isinstance(declaration, Command) and {k for _, k in declaration.settings} - set(TYPES):
            return f"settings have the types {', '.join(TYPES)}"
        same = from_record(record_of(declaration)) == declaration
    except Exception as error:
        return f"its fields must be text, numbers and tuples ({error})"
    return "" if same else "its fields must be text, numbers and tuples"
