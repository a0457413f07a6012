"""Checks of clients' JSON schemas before grammars are made of them.

The grammar library recurses over a schema and follows its references, in native code that cannot
report a full stack; and it silently ignores a few old keywords. Both are refused here.

Annotations in the sense of JSON schema do not constrain answers: unknown words, and formats that
only some programs know, such as a path or a password.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from apr_core.plugin import UsageError

MAX_DEPTH = 64
MAX_SIZE = 1 << 18  # characters of JSON
MAX_REFERRED = 6000  # references times depth: bounds how deep the library may recurse
MAX_PROPERTIES = 1000  # in all; time grows with their square, also that of an answer's first step
PASSED_OVER = {
    "divisibleBy": "use multipleOf",
    "disallow": "the library has no negation",
    "extends": "use allOf",
    "x-guidance": "it is no keyword of JSON schema",
}
MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
MEETING = ("$ref", "anyOf", "oneOf", "allOf")
DATA = ("enum", "const", "default", "examples", "example")  # values, not schemas
RESTRICTING = {
    "type", "enum", "const", "multipleOf", "maximum", "exclusiveMaximum", "minimum",
    "exclusiveMinimum", "maxLength", "minLength", "pattern", "format", "items", "prefixItems",
    "additionalItems", "unevaluatedItems", "contains", "minContains", "maxContains", "maxItems",
    "minItems", "uniqueItems", "properties", "patternProperties", "additionalProperties",
    "propertyNames", "unevaluatedProperties", "required", "minProperties", "maxProperties",
    "dependentRequired", "dependentSchemas", "dependencies", "allOf", "anyOf", "oneOf", "not",
    "if", "then", "else", "$ref", "$dynamicRef", "$recursiveRef", *PASSED_OVER,
}  # fmt: skip
# The only schemas that the library knows by heart; it looks up no others.
DRAFT = re.compile(
    r"http://json-schema\.org/draft-0[467]/schema#?"
    r"|https://json-schema\.org/draft/20(19-09|20-12)/schema#?"
)
FORMATS = ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri",
           "uuid")  # fmt: skip


def checked(schema: Any, where: str) -> Mapping[str, Any]:
    """Return the schema without parts that restrict nothing, once it is safe to compile.

    Raises UsageError that begins with `where`.
    """
    if not isinstance(schema, Mapping):
        raise UsageError(f"{where}: a JSON schema must be an object")
    depth = _depth(schema)
    if depth > MAX_DEPTH:
        raise UsageError(f"{where}: the schema is nested over {MAX_DEPTH} levels deep")
    try:
        size = len(json.dumps(schema, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: the schema is not JSON: {error}") from None
    if size > MAX_SIZE:
        raise UsageError(f"{where}: the schema has {size} characters, {MAX_SIZE} are allowed")
    references = set()
    properties = property_count(schema)
    for part in _schemas(schema):
        _check_keywords(part, where)
        if isinstance(part.get("$ref"), str):
            references.add(part["$ref"])
    if properties > MAX_PROPERTIES:
        excess = f"{properties} properties, {MAX_PROPERTIES} are allowed"
        raise UsageError(f"{where}: the schema has {excess}")
    if len(references) * depth > MAX_REFERRED:
        raise UsageError(
            f"{where}: the schema refers to {len(references)} definitions, nested up to {depth} "
            f"levels deep: their product may be {MAX_REFERRED}"
        )
    meant: Mapping[str, Any] = _mapped(schema, _without_notes)
    return meant


def restricting(schema: Mapping[str, Any]) -> set[str]:
    """Return the keywords of a schema that restrict its values."""
    return schema.keys() & RESTRICTING


def _without_notes(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema's own keywords without those that only seem to restrict something."""
    keywords = dict(schema)
    if not DRAFT.fullmatch(str(schema.get("$schema"))):
        keywords.pop("$schema", None)
    form, names = schema.get("format"), schema.get("propertyNames")
    if isinstance(form, str) and form not in FORMATS:
        del keywords["format"]
    if isinstance(names, Mapping) and {k: names[k] for k in restricting(names)} in (
        {},
        {"type": "string"},
    ):
        del keywords["propertyNames"]
    return keywords


def _check_keywords(schema: Mapping[str, Any], where: str) -> None:
    for word, why in PASSED_OVER.items():
        if word in schema:
            raise UsageError(f"{where}: {word} in the schema is not supported: {why}")
    for word in ("exclusiveMinimum", "exclusiveMaximum"):
        if isinstance(schema.get(word), bool):
            raise UsageError(f"{where}: {word} in the schema must be a number, as since draft 6")


def _count(schema: Mapping[str, Any], word: str) -> int:
    value = schema.get(word)
    return len(value) if isinstance(value, Mapping | list) else 0


def property_count(schema: Any) -> int:
    """Return how many properties a schema and those within it list."""
    return sum(_count(part, "properties") for part in _schemas(schema))


def multiplies(schema: Any) -> bool:
    """Return True if schemas in it must hold together: the library expands them case by case.

    Ten combined choices of two are a thousand cases, and so on without limit.
    """
    for part in _schemas(schema):
        meeting = [word for word in MEETING if word in part]
        alone = not restricting(part) - {*MEETING, "type"}
        if len(meeting) > 1 or _count(part, "allOf") > 1 or (meeting and not alone):
            return True
    return False


def _schemas(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the schema and all schemas within it, not names of properties or values."""
    left = [schema]
    while left:
        part = left.pop()
        if isinstance(part, list):
            left += part
        if not isinstance(part, Mapping):
            continue
        yield part
        for key, value in part.items():
            if key in MAPS and isinstance(value, Mapping):
                left += value.values()
            elif key not in DATA:
                left.append(value)


def _depth(value: Any) -> int:
    """Return how deep a value is nested, counted without recursion and not far over MAX_DEPTH."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        depth += 1
        inner: list[Any] = []
        for item in level:
            if isinstance(item, Mapping):
                inner += item.values()
            elif isinstance(item, list | tuple):
                inner += item
        level = inner
    return depth


def rooted(schema: Any, root: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema found inside `root` as a whole schema: its references still resolve."""
    if "$ref" not in json.dumps(schema):
        return dict(schema)
    return {"$ref": "#/$defs/value", "$defs": {"value": _moved(schema), "root": _moved(root)}}


def _moved(schema: Any) -> Any:
    return _mapped(schema, _with_moved_reference)


def _with_moved_reference(schema: Mapping[str, Any]) -> dict[str, Any]:
    moved = {word: value for word, value in schema.items() if word not in ("$id", "$schema")}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = "#/$defs/root" + reference[1:]
    return moved


def _mapped(schema: Any, change: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Any:
    """Return a schema with `change` applied to it and all within it. Values are no schemas."""
    if isinstance(schema, list):
        return [_mapped(part, change) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        word: value
        if word in DATA
        else {name: _mapped(inner, change) for name, inner in value.items()}
        if word in MAPS and isinstance(value, Mapping)  # by names that are no keywords
        else _mapped(value, change)
        for word, value in change(schema).items()
    }
