"""Reads config.json for families: values by name, with errors that name what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from apr_core.errors import ContractError

MISSING = object()


class ConfigReader:
    """Typed access to a (nested) config.json. `nested` names the block tried first."""

    def __init__(self, hf: Mapping[str, Any], nested: str = "") -> None:
        self.top = hf
        inner = hf.get(nested) if nested else None
        if inner is not None and not isinstance(inner, Mapping):
            raise ContractError(f"config.json: {nested!r} must be an object")
        self.block: Mapping[str, Any] = inner if inner is not None else hf

    def integer(self, key: str, default: Any = MISSING, minimum: int = 1) -> int:
        """A whole number of at least `minimum`."""
        value = self._get(key, default)
        if type(value) is not int or value < minimum:
            raise ContractError(
                f"config.json: {key} is {value!r}, expected a whole number from {minimum} up"
            )
        return value

    def number(self, key: str, default: Any = MISSING) -> float:
        """A positive number."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ContractError(f"config.json: {key} is {value!r}, expected a positive number")
        return float(value)

    def _get(self, key: str, default: Any) -> Any:
        value = self.block.get(key)
        if value is None:
            value = default
        if value is MISSING:
            raise ContractError(
                f"config.json lacks {key!r}", "Take the config.json the checkpoint came with."
            )
        return value

    def rope(self, key: str, default: Any = MISSING) -> Any:
        """A value of rope_parameters, or of the same name beside it (the older spelling)."""
        parameters = self.block.get("rope_parameters") or {}
        if not isinstance(parameters, Mapping):
            raise ContractError("config.json: rope_parameters must be an object")
        value = parameters.get(key, self.block.get(key))
        value = default if value is None else value
        if value is MISSING:
            raise ContractError(
                f"config.json lacks {key!r}, in rope_parameters or beside it",
                "Take the config.json the checkpoint came with.",
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ContractError(f"config.json: {key} is {value!r}, expected a positive number")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A boolean: at the top level first, then in the block."""
        value = self.top.get(key, self.block.get(key, default))
        if not isinstance(value, bool):
            raise ContractError(f"config.json: {key} is {value!r}, expected true or false")
        return value

    def refuse(self, key: str, allowed: Iterable[Any], why: str) -> None:
        """Raise ContractError unless the value is absent, null or one of `allowed`."""
        value = self.block.get(key)
        if value is not None and value not in list(allowed):
            raise ContractError(f"config.json: {key} = {value!r} is not supported: {why}")

    def refuse_rope_scaling(self) -> None:
        """Only the plain rotary embedding is supported."""
        for key in ("rope_parameters", "rope_scaling"):
            part = self.block.get(key) or {}
            kind = part.get("rope_type", part.get("type", "default")) if part else "default"
            if kind != "default":
                raise ContractError(
                    f"config.json: {key} asks for {kind!r}, only plain rotary positions are "
                    "supported",
                    "Remove the scaling from config.json: the original context length then holds.",
                )

    def stop_ids(self, generation: Mapping[str, Any] | None) -> tuple[int, ...]:
        """The union of eos_token_id over config, its block and generation_config."""
        found: list[int] = []
        for source in (generation or {}, self.block, self.top):
            value = source.get("eos_token_id")
            for item in value if isinstance(value, list) else [value]:
                if type(item) is int and item >= 0:
                    found.append(item)
        return tuple(dict.fromkeys(found))


SAMPLING = ("temperature", "top_k", "top_p", "min_p", "presence_penalty", "repetition_penalty")


def sampling_defaults(generation: Mapping[str, Any] | None) -> dict[str, float]:
    """The model's own sampling values; do_sample false means temperature 0."""
    if not generation:
        return {}
    if generation.get("do_sample") is False:
        return {"temperature": 0.0}
    numbers = {k: generation.get(k) for k in SAMPLING}
    return {
        k: v for k, v in numbers.items() if isinstance(v, int | float) and not isinstance(v, bool)
    }
