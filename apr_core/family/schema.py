"""Checks a contract against `_schema.yaml`: every problem at once, each with its key path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from apr_core.errors import ContractError

MARK = "?"

# libyaml where PyYAML has it: contracts are read on every load, and it takes a tenth of the time
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Rules = Mapping[int, Sequence[tuple[Sequence[str], str]]]


@cache
def schema() -> dict[str, str]:
    """Return {key path: type}, as the schema file lists them."""
    text = (Path(__file__).parent / "_schema.yaml").read_text("utf-8")
    fields: dict[str, str] = yaml.load(text, YAML_LOADER)["fields"]
    return fields


@cache
def _rules() -> Rules:
    """Return (keys, type) of the key paths, grouped by the number of keys."""
    by_length: dict[int, list[tuple[list[str], str]]] = {}
    for path, kind in schema().items():
        keys = path.removesuffix(MARK).split(".")
        by_length.setdefault(len(keys), []).append((keys, kind))
    return by_length


def problems(content: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a contract, in words; empty if nothing is."""
    required = [path for path in schema() if not path.endswith(MARK)]
    lines = [
        f"missing required field: {path}"
        for pattern in required
        for path in _missing(content, pattern.split("."), "")
    ]
    for path, kind, value in _walk(content, (), _rules()):
        where = ".".join(path)
        if kind is None:
            lines.append(f"unknown field: {where}")
        elif not any(_is(value, option.strip()) for option in kind.split("|")):
            lines.append(f"{where}: expected {kind.replace('|', ' or ')}, found {value!r}")
    return lines


def check(content: Any, origin: str) -> Mapping[str, Any]:
    """Return the content of a valid contract. Raises ContractError listing all problems."""
    if not isinstance(content, dict):
        raise ContractError(f"{origin}: a contract is a YAML mapping")
    lines = problems(content) or list(_disagreements(content))
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


def _missing(content: Any, keys: list[str], path: str) -> Iterator[str]:
    key, rest = keys[0], keys[1:]
    if not isinstance(content, Mapping):
        return
    if key == "*":
        for name, value in content.items():
            if rest:
                yield from _missing(value, rest, f"{path}{name}.")
    elif key not in content:
        if not rest or rest == ["*"]:
            yield f"{path}{key}"
    elif rest:
        yield from _missing(content[key], rest, f"{path}{key}.")


def _walk(
    content: Mapping[str, Any], path: tuple[str, ...], rules: Rules
) -> Iterator[tuple[tuple[str, ...], str | None, Any]]:
    """Yield every key path with its type and value; nothing below a key the schema leaves open."""
    for key, value in content.items():
        here = (*path, str(key))
        kind = _rule(here, rules)
        yield here, kind, value
        if isinstance(value, Mapping) and kind not in (None, "any"):
            yield from _walk(value, here, rules)


def _rule(path: tuple[str, ...], rules: Rules) -> str | None:
    """Return the type of a key path, or None; `*` in a pattern matches any one key."""
    for keys, kind in rules.get(len(path), ()):
        if keys[-1] not in ("*", path[-1]):  # most paths differ there
            continue
        if all(k in ("*", p) for k, p in zip(keys, path, strict=True)):
            return kind
    return None


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
