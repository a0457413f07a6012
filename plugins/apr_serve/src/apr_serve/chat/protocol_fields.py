"""Fields that request models share: values refused with a reason, and sampling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic_core import PydanticCustomError, core_schema

from apr_serve.http.ignored import IGNORED
from apr_serve.tools.messages import MAX_DEPTH


class Exact(BaseModel):
    """A part of a request. Values are not converted between types.

    Unknown fields are ignored and noted (`http.ignored`), or refused where the server is strict. A
    null counts as absent, whatever the field's name.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_unknown_fields(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = [name for name in data if name not in known]
        if not unknown:
            return data
        asked = [name for name in unknown if data[name] is not None]
        ignored = IGNORED.get(None)
        if ignored is not None and ignored.strict:
            known.update(asked)
        elif ignored is not None:
            ignored.add(asked)
        return {name: value for name, value in data.items() if name in known}


class History(BaseModel):
    """A part of a conversation. Clients hand back what they were given, and add to it."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


def _form(value: Any) -> str:
    return TEXT_FORM if isinstance(value, str) else LIST_FORM


MAX_NAME = 128  # characters of a tool's name
TEXT_FORM, LIST_FORM = "str", "list[]"  # as pydantic names them in the place of an error
BY_FORM = Discriminator(_form)  # text or a list: only mistakes in the form sent are reported


def only(*allowed: Any, why: str) -> Only:
    """Refuse every value but null and those allowed, and say why."""
    return Only(allowed, why)


@dataclass(frozen=True, slots=True)
class Only:
    """The values that a field may have, also in the published schema."""

    allowed: tuple[Any, ...]
    why: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": [*self.allowed, None]}

    def _check(self, value: Any) -> Any:
        if value is None or any(type(value) is type(a) and value == a for a in self.allowed):
            return value
        context = {"found": _short(value), "why": self.why}
        raise PydanticCustomError("unsupported", "{found} is not supported: {why}", context)


def of_kinds(what: str, kinds: Sequence[str], default: str | None = None) -> BeforeValidator:
    """Refuse objects whose `type` is not among the kinds, naming the type."""

    def check(value: Any) -> Any:
        kind = value.get("type", default) if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind in kinds:
            return value  # the model reports what is wrong with it
        context = {"what": what, "kind": _short(kind), "kinds": ", ".join(kinds)}
        form = "{what} of type {kind} are not supported, only: {kinds}"
        raise PydanticCustomError("unsupported", form, context)

    return BeforeValidator(check)


def _shallow(value: dict[str, Any]) -> dict[str, Any]:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return value
    context = {"depth": MAX_DEPTH}
    raise PydanticCustomError("too_deep", "nested over {depth} levels deep", context)


def _inside(value: Any) -> Iterable[Any]:
    """Yield the objects and lists directly inside an object or a list."""
    held = value.values() if isinstance(value, dict) else value
    return (inner for inner in held if isinstance(inner, dict | list))


JsonObject = Annotated[dict[str, Any], AfterValidator(_shallow)]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class MoreSampling(Exact):
    """Sampling parameters that the engine knows and neither protocol has officially."""

    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-10, le=10)
    frequency_penalty: float | None = Field(None, ge=-10, le=10)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    top_k: int | None = Field(None, ge=-1, le=2**31, description="0 or -1: all tokens.")


SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "seed",
)  # fmt: skip


def sampling_of(request: BaseModel) -> dict[str, float | int]:
    """Return the sampling parameters of a request, by the names of `SamplingParams`."""
    asked = {name: getattr(request, name, None) for name in SAMPLING}
    sampling = {name: value for name, value in asked.items() if value is not None}
    if sampling.get("top_k") == -1:
        sampling["top_k"] = 0
    if "seed" in sampling:
        sampling["seed"] %= 2**64
    return sampling
