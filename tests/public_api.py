"""The public API as text: `python -m tests.public_api > tests/data/public_api.txt` pins it anew.

A name that goes, a field or an argument that changes breaks somebody's plugin: see
docs/explanation/plugin-api.md before you do that.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import apr_core.plugin
import apr_core.runtime
from apr_core import declarations
from apr_devkit import kits as testing
from apr_devkit.kits.checks import checks_of


def lines() -> Iterator[str]:
    """One line a name, with its fields or signature."""
    yield f"API {declarations.API_VERSION}, supported {sorted(declarations.SUPPORTED_APIS)}"
    for name, cls in sorted(declarations.HOOKS.items()):
        yield f"hook {name}() -> Iterable[{cls.__name__}]"
    for module in (apr_core, apr_core.plugin, apr_core.runtime):
        for name in sorted(module.__all__):
            yield from described(f"{module.__name__}.{name}", getattr(module, name))
    for name in sorted(testing.__all__):
        yield f"apr_devkit.kits.{name}"


def described(name: str, value: Any) -> Iterator[str]:
    """A name and what it takes."""
    if is_dataclass(value) and isinstance(value, type):
        yield name
        for field in fields(value):
            yield f"    {field.name}: {field.type}{_default(field.default)}"
    elif inspect.isclass(value):
        yield name
        for member, function in sorted(vars(value).items()):
            if inspect.isfunction(function) and not member.startswith("_"):
                yield f"    {member}{_signature(function)}"
    elif inspect.isfunction(value):
        yield f"{name}{_signature(value)}"
    else:
        yield name


def _signature(function: Any) -> str:
    """Without what is of this process: addresses of objects, and its environment."""
    text = str(inspect.signature(function))
    text = re.sub(r"environ\(\{.*\}\)", "os.environ", text)
    return re.sub(r"<object object at \w+>", "...", text)


def _default(value: Any) -> str:
    return f" = {value!r}" if isinstance(value, str | int | float | tuple | None) else ""


def kit_checks() -> dict[str, list[str]]:
    """The checks of every kit."""
    kits = [getattr(testing, name) for name in testing.__all__ if name.endswith("Conformance")]
    return {kit.__name__: checks_of(kit) for kit in kits}


if __name__ == "__main__":
    print("\n".join(lines()))
