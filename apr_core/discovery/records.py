"""Declarations as JSON has them, and back."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from apr_core.declarations import KINDS, Declaration, Layout, Numbers

NESTED = {"layout": Layout, "scale": Numbers, "minimum": Numbers}


def record_of(declaration: Declaration) -> dict[str, Any]:
    """A declaration and its kind, as JSON. Raises TypeError for fields that JSON does not have."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(declaration), allow_nan=False))
    return {"kind": declaration.kind, **plain}


def from_record(record: dict[str, Any]) -> Declaration:
    """The declaration of a record. Raises KeyError or TypeError for anything else."""
    values = dict(record)
    cls = KINDS[values.pop("kind")]
    return cls(**{key: _value(key, v) for key, v in values.items()})


def _value(key: str, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_value(key, v) for v in value)
    if isinstance(value, dict):
        return NESTED[key](**{k: _value(k, v) for k, v in value.items()})
    return value
