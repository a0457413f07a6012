"""Errors as responses, from middleware and from routes, in the shape of the request's path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from apr_serve.http.errors import ApiError, as_api_error, error_body

MAX_SHOWN = 5  # problems of one request that are named
PLAIN = {404: "there is nothing at this path", 405: "this path does not take that method"}


def error_response(path: str, error: ApiError) -> Response:
    """Return a response with the error in the form of the path's protocol."""
    return JSONResponse(error_body(path, error), error.status, headers=error.headers)


async def respond(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with an error from within middleware."""
    await error_response(scope["path"], error)(scope, receive, send)


async def on_api_error(request: Request, error: Exception) -> Response:
    """Handle ApiError and apr's own errors."""
    return error_response(request.url.path, as_api_error(error))


async def on_http_error(request: Request, error: Exception) -> Response:
    """Handle errors of routing: no such path, no such method."""
    assert isinstance(error, HTTPException)
    message = PLAIN.get(error.status_code, str(error.detail))
    refused = ApiError(error.status_code, message, code=None, headers=error.headers)
    return error_response(request.url.path, refused)


async def on_invalid(request: Request, error: Exception) -> Response:
    """Handle requests that do not fit their model: 400, naming the fields."""
    problems: Sequence[Any] = error.errors()  # type: ignore[attr-defined]
    return error_response(request.url.path, invalid(problems))


def invalid(problems: Sequence[Any]) -> ApiError:
    """Return one error for all that pydantic found; unknown parameters are named together."""
    unknown = [_field(p) for p in problems if p["type"] == "extra_forbidden"]
    if unknown:
        names = ", ".join(unknown[:MAX_SHOWN])
        return ApiError(
            400,
            f"unknown parameter{'s' * (len(unknown) > 1)}: {names}",
            unknown[0],
            "unknown_parameter",
        )
    messages = dict.fromkeys(f"{_field(p) or 'body'}: {p['msg']}" for p in problems)
    return ApiError(400, "; ".join(list(messages)[:MAX_SHOWN]), _field(problems[0]) or None)


def _field(problem: Any) -> str:
    """Return `messages.0.role` for ("body", "messages", 0, "role"), without union members."""
    parts = [str(part) for part in problem["loc"] if part not in ("body", "query", "path")]
    return ".".join(part for part in parts if not _member(part))


def _member(part: str) -> bool:
    """Return True if it names a type that was tried, not a field."""
    kinds = ("str", "int", "float", "bool")
    return part in kinds or "[" in part or part[:1].isupper() or part.startswith("constrained-")
