"""The whole body of a request: many mistakes in it are reported as quickly as one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

from pydantic import BaseModel, ValidationError, model_validator

from apr_serve.http.error_responses import invalid
from apr_serve.http.errors import ApiError

MANY = 10_000  # mistakes: listing more would block the server for seconds
LOOKED_AT = 8  # items of every list that are checked where there are too many mistakes
KEYS, DEEPEST = 256, 12  # keys of an object, and levels of nesting, in the same case


class Body(BaseModel):
    """A model of a request's body. Raises ApiError where pydantic would list a million mistakes."""

    @model_validator(mode="wrap")
    @classmethod
    def _in_time(cls, content: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(content)
        except ValidationError as error:
            if (count := error.error_count()) <= MANY:
                raise
            message = f"the request does not fit its schema in {count} places"
        try:
            handler(_excerpt(content))
        except ValidationError as error:
            if error.error_count() <= MANY:
                raise invalid(error.errors()) from None
        raise ApiError(400, message)


def _excerpt(value: Any, depth: int = 0) -> Any:
    """Return the value with only the beginnings of its lists and objects."""
    if depth == DEEPEST:
        return None
    if isinstance(value, list):
        return [_excerpt(inner, depth + 1) for inner in value[:LOOKED_AT]]
    if isinstance(value, dict):
        few = islice(value.items(), KEYS)
        return {name: _excerpt(inner, depth + 1) for name, inner in few}
    return value
