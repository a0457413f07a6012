"""Checks a contract against `_schema.yaml`: every problem at once, each with its key path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, reduce
from pathlib import Path
from typing import Any

import yaml

from apr_core.errors import ContractError

MARK = "?"

# libyaml where PyYAML has it: contracts are read on every load, and it takes a tenth of the time
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(slots=True)
class _Field:
    """A key of the schema, or `*`: its type, and the keys below it."""

    kind: str = ""
    required: bool = True
    below: dict[str, _Field] = field(default_factory=dict)


@cache
def schema() -> dict[str, str]:
    """Return {key path: type}, as the schema file lists them."""
    text = (Path(__file__).parent / "_schema.yaml").read_text("utf-8")
    fields: dict[str, str] = yaml.load(text, YAML_LOADER)["fields"]
    return fields


@cache
def _root() -> _Field:
    """Return the schema as a tree: the field above all others."""
    root = _Field()
    for path, kind in schema().items():
        *keys, last = path.removesuffix(MARK).split(".")
        above = reduce(lambda parent, key: parent.below[key], keys, root)
        above.below[last] = _Field(kind, not path.endswith(MARK))
    return root


def _problems(content: Mapping[str, Any], above: _Field, path: str) -> Iterator[str]:
    for key, each in above.below.items():
        if each.required and key not in (*content, "*"):
            yield f"missing required field: {path}{key}"
    for key, value in content.items():
        here, rule = f"{path}{key}", above.below.get(str(key)) or above.below.get("*")
        if rule is None:
            yield f"unknown field: {here}"
        elif not any(_is(value, option.strip()) for option in rule.kind.split("|")):
            yield f"{here}: expected {rule.kind.replace('|', ' or ')}, found {value!r}"
        elif isinstance(value, Mapping) and rule.kind != "any":
            yield from _problems(value, rule, f"{here}.")


def check(content: Any, origin: str) -> Mapping[str, Any]:
    """Return the content of a valid contract. Raises ContractError listing all problems."""
    if not isinstance(content, dict):
        raise ContractError(f"{origin}: a contract is a YAML mapping")
    lines = list(_problems(content, _root(), "")) or list(_disagreements(content))
    if lines:
        raise ContractError(f"{origin}: " + "; ".join(lines), "See docs/reference/contracts.md.")
    return content


def _disagreements(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each role that one part of the contract has and another lacks."""
    per_layer = {role for role, name in content["tensor_template"]["per_layer"].items() if name}
    roles = per_layer | (set(content["tensor_template"]) - {"per_layer"})
    for part in ("shape_template", "quantization_policy"):
        for role in sorted(roles ^ set(content[part])):
            lacking = part if role in roles else "tensor_template"
            yield f"role {role!r} is missing in {lacking}"
    for kind, listed in content["layer_types"].items():
        for role in sorted(set(listed) - per_layer):
            yield f"layer_types.{kind}: unknown role {role!r}"
    for alias, kind in content.get("layer_type_aliases", {}).items():
        if kind not in content["layer_types"]:
            yield f"layer_type_aliases.{alias}: unknown layer type {kind!r}"
    for group, part in content.get("carry", {}).items():
        for name in sorted(set(part.get("policy", {})) - set(part.get("tensors", {}))):
            yield f"carry.{group}.policy: {name!r} is not among its tensors"


def _is(value: Any, kind: str) -> bool:
    if kind == "any":
        return True
    if kind.startswith("enum["):
        return value in [option.strip() for option in kind[5:-1].split(",")]
    if kind == "list[str]":
        return isinstance(value, list) and all(isinstance(v, str) for v in value)
    if kind == "bool":
        return isinstance(value, bool) or value in ("true", "false")
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    types = {"str": str, "int": int, "map": dict, "null": type(None)}
    return type(value) is types[kind]
