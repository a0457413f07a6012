"""Errors in the form Anthropic's clients read. Importing this registers it for their paths."""

from __future__ import annotations

from typing import Any

from apr_serve.http.errors import ApiError, register_shape
from apr_serve.openai import parts as openai_parts
from apr_serve.openai.parts import Open

PATH = "/v1/messages"
KINDS = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
    504: "timeout_error",
}  # fmt: skip
# Codes by which the official client decides what to do next.
NO_THREADS = "thread_unsupported_request"
FOR_PROGRAMS = (NO_THREADS,)


def anthropic_shape(error: ApiError) -> dict[str, Any]:
    """Return the JSON body of an error as Anthropic's clients read it."""
    usual = "api_error" if error.status >= 500 else "invalid_request_error"
    kind = KINDS.get(error.status, usual)
    details = {"details": {"error_code": error.code}} if error.code in FOR_PROGRAMS else {}
    return {"type": "error", "error": {"type": kind, "message": error.message, **details}}


class MessagesErrorDetail(Open):
    """What is wrong."""

    type: str
    message: str


class MessagesError(Open):
    """Anthropic's form of an error."""

    type: str
    error: MessagesErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {**entry, "model": MessagesError} for status, entry in openai_parts.ERRORS.items()
}

register_shape(PATH, anthropic_shape)
