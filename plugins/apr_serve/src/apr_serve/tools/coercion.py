"""Argument values that a model wrote as bare text, converted to the types in the tool's schema.

Templates write a string as it is, `True`, `None` and numbers bare, and only lists and objects as
JSON, so the text alone does not tell 5 from "5": the schema does.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

MAX_HOPS = 32  # references followed in a row before any type is allowed
MAX_DEPTH, MAX_SCHEMAS = 12, 2000  # of combinations, for one argument; the same beyond them
MAX_LITERAL = 1 << 16  # characters of a Python literal that is parsed
TYPES = ("null", "boolean", "integer", "number", "object", "array", "string")  # tried in this order
ALIASES = {"int": "integer", "float": "number", "bool": "boolean", "dict": "object",
           "list": "array"}  # fmt: skip
ANY = frozenset(TYPES)
INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
DIGITS = re.compile(r"-?[0-9]{1,4000}")  # also with zeros before them
LARGEST = sys.float_info.max
WORDS = {"null": None, "None": None, "true": True, "True": True, "false": False, "False": False}


class Unfit(ValueError):
    """The text is not a value of the type that was tried."""


class ArgumentTypes:
    """The JSON types that each argument of a tool may have."""

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self._root = parameters
        properties = resolved(parameters, parameters).get("properties")
        self._properties = properties if isinstance(properties, Mapping) else {}
        self._kept: dict[str, frozenset[str]] = {}

    def declares(self, key: str) -> bool:
        """Return True if the schema lists this argument."""
        return key in self._properties

    def of(self, key: str) -> frozenset[str]:
        """Return the JSON types that argument `key` may have; all where the schema is silent."""
        if key not in self._kept:
            self._kept[key] = self.of_schema(self._schema(key))
        return self._kept[key]

    def of_schema(self, schema: Any) -> frozenset[str]:
        """Return the JSON types that a schema of an argument, or a part of one, allows."""
        return _Types(self._root).of(schema)

    def _schema(self, key: str) -> Any:
        other = resolved(self._root, self._root).get("additionalProperties", True)
        return self._properties.get(key, other)


def coerced(text: str, types: frozenset[str]) -> str:
    """Return the value of `text` as JSON, or `text` as a JSON string if it fits none of the types.

    Text that is already JSON stays as it was written, digits and all.
    """
    for name in TYPES[:-1]:
        if name in types:
            try:
                return _READERS[name](text.strip())
            except (ValueError, RecursionError):
                continue
    return as_json(text)


def as_json(value: Any) -> str:
    """Return a value as JSON; invalid Unicode is escaped, so that the result can be encoded."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isascii() or _encodes(text) else json.dumps(value)


def quoted(piece: str) -> str:
    """Return a piece of a string as it stands between the quotes of JSON."""
    return as_json(piece)[1:-1]


def strict_json(text: str) -> Any:
    """Return the JSON value of a text. Raises ValueError, also for NaN, or RecursionError."""
    return json.loads(text, parse_constant=_refuse, parse_float=_finite)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(name: str) -> Any:
    raise Unfit(name)


def _finite(text: str) -> float:
    """Return the nearest finite number: JSON has no infinity to write back."""
    return min(max(float(text), -LARGEST), LARGEST)


def _word(text: str, *kinds: type) -> str:
    if text not in WORDS or not isinstance(WORDS[text], kinds):
        raise Unfit(text)
    return json.dumps(WORDS[text])


def _integer(text: str) -> str:
    if INTEGER.fullmatch(text):
        return text
    if DIGITS.fullmatch(text):
        return str(int(text))
    value = strict_json(text)
    if not (isinstance(value, float) and value.is_integer()):
        raise Unfit(text)
    return str(int(value))


def _number(text: str) -> str:
    if DIGITS.fullmatch(text):
        return _integer(text)
    value = strict_json(text)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unfit(text)
    return text


def _container(text: str, kind: type) -> str:
    """Return a list or object as JSON, also from Python's spelling of it."""
    try:
        value, written = strict_json(text), text
    except (ValueError, RecursionError):
        value = _literal(text)
        written = as_json(value)
    if not isinstance(value, kind):
        raise Unfit(text)
    return written


def _literal(text: str) -> Any:
    if len(text) > MAX_LITERAL or text[:1] not in ("{", "["):
        raise Unfit(text)
    try:
        value = ast.literal_eval(text)
        return json.loads(json.dumps(value, allow_nan=False))  # tuples become lists
    except (SyntaxError, TypeError, MemoryError) as error:
        raise Unfit(text) from error


_READERS: dict[str, Callable[[str], str]] = {
    "null": lambda text: _word(text, type(None)),
    "boolean": lambda text: _word(text, bool),
    "integer": _integer,
    "number": _number,
    "object": lambda text: _container(text, dict),
    "array": lambda text: _container(text, list),
}


def resolved(schema: Any, root: Any) -> Mapping[str, Any]:
    """Return the schema behind local references into `root`; {} where there is none."""
    return followed(schema, root) or {}


def followed(schema: Any, root: Any) -> Mapping[str, Any] | None:
    """Return the schema behind local references; None if they lead nowhere or in a circle."""
    for _ in range(MAX_HOPS):
        if not isinstance(schema, Mapping):
            return None if schema is None else {}
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        schema = _pointed(reference, root)
    return None


def _pointed(reference: str, root: Any) -> Any:
    """Return what a local reference points to; None if there is nothing."""
    if not reference.startswith("#"):
        return None
    at = root
    for name in reference.lstrip("#").strip("/").split("/") if reference != "#" else ():
        name = name.replace("~1", "/").replace("~0", "~")
        if isinstance(at, Mapping):
            at = at.get(name)
        elif isinstance(at, list) and name.isdigit() and int(name) < len(at):
            at = at[int(name)]
        else:
            return None
    return at


class _Types:
    """The types a schema allows; all of them where it is too complex to tell."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root, self._left = root, MAX_SCHEMAS

    def of(self, schema: Any, depth: int = 0) -> frozenset[str]:
        self._left -= 1
        schema = resolved(schema, self._root)
        if depth > MAX_DEPTH or self._left < 0:
            return ANY
        types = frozenset(_own_types(schema))
        for choices in (schema.get("anyOf"), schema.get("oneOf")):
            if isinstance(choices, list) and choices:
                allowed = (self.of(choice, depth + 1) for choice in choices)
                types = _both(types, frozenset().union(*allowed))
        parts = schema.get("allOf")
        for part in parts if isinstance(parts, list) else ():
            types = _both(types, self.of(part, depth + 1))
        if schema.get("nullable") is True:
            types |= {"null"}
        return types or ANY


def _both(one: frozenset[str], other: frozenset[str]) -> frozenset[str]:
    """Return the types that both allow: a whole number is a number."""
    whole = {"integer"} if {"integer", "number"} <= one | other else set()
    narrowed = whole and (("number" in one) != ("number" in other) or "integer" in one & other)
    return one & other | (whole if narrowed else set())


def _own_types(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield the types in the schema's own keywords, combinations apart."""
    named = schema.get("type")
    names = named if isinstance(named, list) else [named]
    if named is not None:
        for name in names:
            name = ALIASES.get(name, name) if isinstance(name, str) else "string"
            yield name if name in ANY else "string"
    elif isinstance(schema.get("enum"), list) or "const" in schema:
        for value in schema.get("enum", [schema.get("const")]):
            yield _type_of(value)
    elif isinstance(schema.get("properties"), Mapping):
        yield "object"
    elif "items" in schema or "prefixItems" in schema:
        yield "array"
    else:
        yield from TYPES


def _type_of(value: Any) -> str:
    kinds = {type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string",
             dict: "object"}  # fmt: skip
    return kinds.get(type(value), "array")
