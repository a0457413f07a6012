"""Pieces of request models that protocols share: what is refused with a reason, and sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field
from pydantic_core import PydanticCustomError


class Exact(BaseModel):
    """A part of a request whose unknown fields are errors: they would change the answer."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class History(BaseModel):
    """A part of a conversation. Clients hand back what they were given, and add to it."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


def _form(value: Any) -> str:
    return TEXT_FORM if isinstance(value, str) else LIST_FORM


MAX_NAME = 128  # of a tool
TEXT_FORM, LIST_FORM = "str", "list[]"  # as pydantic would call them where it tells a place
BY_FORM = Discriminator(_form)  # of text or a list: what is wrong is told of that one only


def only(*allowed: Any, why: str) -> BeforeValidator:
    """Refuses every value but null and those allowed, and says why."""

    def check(value: Any) -> Any:
        if value is None or any(type(value) is type(a) and value == a for a in allowed):
            return value
        told = {"found": _short(value), "why": why}
        raise PydanticCustomError("unsupported", "{found} is not supported: {why}", told)

    return BeforeValidator(check)


def of_kinds(what: str, kinds: Sequence[str], default: str | None = None) -> BeforeValidator:
    """Refuses objects whose `type` is none of the kinds, by the name they have."""

    def check(value: Any) -> Any:
        kind = value.get("type", default) if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind in kinds:
            return value  # what is wrong with it, its model says
        told = {"what": what, "kind": _short(kind), "kinds": ", ".join(kinds)}
        form = "{what} of type {kind} are not supported, only: {kinds}"
        raise PydanticCustomError("unsupported", form, told)

    return BeforeValidator(check)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class MoreSampling(Exact):
    """Sampling that neither protocol has officially but the engine knows; also in chat."""

    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-10, le=10)
    frequency_penalty: float | None = Field(None, ge=-10, le=10)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    seed: int | None = Field(None, ge=0, lt=2**63)
    chat_template_kwargs: dict[str, Any] | None = None


SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "seed",
)  # fmt: skip


def sampling_of(request: BaseModel) -> dict[str, float | int]:
    """What a request asks for, by the names of `SamplingParams`."""
    found = {name: getattr(request, name, None) for name in SAMPLING}
    return {name: value for name, value in found.items() if value is not None}
