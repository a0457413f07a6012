"""How Python things look in Markdown: signatures, fields, members, docstrings."""

from __future__ import annotations

import ast
import inspect
import io
import os
import re
import textwrap
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, Field, fields
from importlib import import_module
from types import ModuleType
from typing import Any, get_args


def doc(value: Any) -> str:
    """The docstring, without its indentation."""
    return inspect.getdoc(value) or ""


def first(value: Any) -> str:
    """The first paragraph of a docstring, in one line."""
    return doc(value).partition("\n\n")[0].replace("\n", " ")


def with_code(text: str) -> str:
    """A docstring whose indented part is Python."""
    return re.sub(
        r"\n\n((?: {4}.*\n?|\n(?= {4}))+)",
        lambda m: "\n\n```text\n" + textwrap.dedent(m[1]).rstrip() + "\n```\n",
        text,
    ) + "\n"  # fmt: skip


def code(text: str) -> str:
    """Text in the font of code."""
    return f"`{text}`"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, and an empty one."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [header, *rows]]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], "|---" * len(header) + "|", *lines[1:], ""]


def load(target: str) -> Any:
    """What "module:attribute" names."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def field_table(module: ModuleType, cls: Any, without: Iterable[str]) -> Iterator[str]:
    """The table of a dataclass's fields; their meanings are the comments beside them."""
    own = [f for f in fields(cls) if f.name not in without]
    if not own:
        return
    meanings = _field_comments(module, cls)
    literal = {"StateKind": " or ".join(f'"{v}"' for v in get_args(module.StateKind))}
    silent = [f.name for f in own if f.name not in meanings]
    if silent:
        raise ValueError(f"{cls.__name__}: no comment beside {', '.join(silent)} says what it is")
    rows = [
        (code(f.name), code(literal.get(f.type, f.type)), _default(f), meanings[f.name])
        for f in own
    ]
    yield from table(("field", "type", "default", "meaning"), rows)


def _field_comments(module: ModuleType, cls: type) -> dict[str, str]:
    """{field: the comment beside it}."""
    source = inspect.getsource(module)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    fields: dict[str, str] = {}
    for base in cls.__mro__:
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and node.name == base.__name__:
                fields |= {
                    each.target.id: comments[each.lineno]
                    for each in node.body
                    if isinstance(each, ast.AnnAssign)
                    and isinstance(each.target, ast.Name)
                    and each.lineno in comments
                }
    return fields


def _default(field: Field[Any]) -> str:
    if field.default is MISSING:
        return "required"
    return code(f'"{field.default}"' if isinstance(field.default, str) else repr(field.default))


def members(cls: type) -> Iterator[tuple[str, str]]:
    """(signature, first sentence) of a class's attributes and methods."""
    for name, type_ in getattr(cls, "__annotations__", {}).items():
        if not name.startswith("_"):
            yield f"`{name}`", code(_plain_type(str(type_)))
    inherited = {k: v for base in reversed(cls.__mro__[1:-1]) for k, v in vars(base).items()}
    for name, value in ({**inherited, **vars(cls)} if not is_protocol(cls) else vars(cls)).items():
        called = name == "__call__"
        getter = getattr(value, "fget", getattr(value, "func", None))  # of a property, maybe cached
        function = getter or getattr(value, "__func__", value)
        if inspect.isfunction(function) and (called or not name.startswith("_")):
            shown = "" if getter else signature(function)
            yield f"`{name}{shown}`", first(function)


def signature(value: Any) -> str:
    """The signature without `self` and without quotes around types."""
    signature = inspect.signature(value)
    parameters = [
        p.replace(annotation=Unquoted(p.annotation), default=_shown_default(p.default))
        for n, p in signature.parameters.items()
        if n not in ("self", "cls")
    ]
    returned = Unquoted(signature.return_annotation)
    return str(signature.replace(parameters=parameters, return_annotation=returned))


class Unquoted:
    """A type as it is written in the source."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return _plain_type(self.text)


def _shown_default(value: Any) -> Any:
    if value is os.environ:
        return Unquoted("os.environ")
    return Unquoted("...") if type(value) is object else value  # a default that means "none given"


def _plain_type(text: str) -> str:
    text = re.sub(r"NDArray\[(?:np\.)?(\w+)\]", r"\1 array", text)
    return re.sub(r"\bapr_core(\.\w+)+\.(\w+)", r"\2", text)


def plain_field(field: Field[Any]) -> str:
    """A field as it stands in a call."""
    return field.name if field.default is MISSING else f"{field.name}={field.default!r}"


def is_protocol(value: Any) -> bool:
    """Whether a class says what others have to be, and is never made."""
    return bool(getattr(value, "_is_protocol", False))
