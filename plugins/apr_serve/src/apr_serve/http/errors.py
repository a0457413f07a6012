"""Errors that end a request, as JSON in the form its protocol expects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from apr_core.plugin import AprError, NotFound, UsageError
from apr_serve.engine.interface import Busy

KINDS = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    429: "rate_limit_error",
}  # fmt: skip
Shape = Callable[["ApiError"], dict[str, Any]]


class ApiError(Exception):
    """Ends a request with HTTP `status`. `param` names the field, `code` is for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def kind(self) -> str:
        """OpenAI's `type` of the error."""
        if self.status >= 500:
            return "server_error"
        return KINDS.get(self.status, "invalid_request_error")


def openai_shape(error: ApiError) -> dict[str, Any]:
    """Return the JSON body of an error as OpenAI's clients read it."""
    return {
        "error": {
            "message": error.message, "type": error.kind, "param": error.param, "code": error.code,
        }
    }  # fmt: skip


SHAPES: dict[str, Shape] = {}  # by the path's beginning; all other paths have OpenAI's


def register_shape(prefix: str, shape: Shape) -> None:
    """Use this form for errors of paths that begin with `prefix`, also before any route runs."""
    SHAPES[prefix] = shape


def error_body(path: str, error: ApiError) -> dict[str, Any]:
    """Return the JSON body of an error on a path."""
    shape = next((s for prefix, s in SHAPES.items() if path.startswith(prefix)), openai_shape)
    return shape(error)


def as_api_error(error: BaseException) -> ApiError:
    """Return any error as one for a client, without details that only the operator should see."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Busy):
        return ApiError(429, error.message, code="busy", headers={"Retry-After": "1"})
    if isinstance(error, NotFound):
        return ApiError(404, error.message, code="not_found")
    if isinstance(error, UsageError):
        return ApiError(400, _with_hint(error))
    if isinstance(error, AprError):
        return ApiError(500, error.message)
    return ApiError(500, "the server failed to answer this request; its log says why")


def _with_hint(error: AprError) -> str:
    return f"{error.message}. {error.hint}" if error.hint else error.message


EXPECTED = (ApiError, AprError)  # anything else is a bug of the server, for its log
