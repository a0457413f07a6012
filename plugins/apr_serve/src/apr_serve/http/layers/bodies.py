"""Request bodies: read whole within limits, and accepted only as unambiguous JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apr_serve.http.error_responses import respond
from apr_serve.http.errors import ApiError

PARSED = "apr.body"  # key of a request's scope
LOGGED = 20_000  # characters of a prompt in the log, if prompts are logged
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # in pairs they are one character
log = logging.getLogger("apr.server")


class BodyGate:
    """Passes on requests whose body is small enough, arrived in time and is JSON."""

    def __init__(
        self, app: ASGIApp, max_body: int, timeout: float, log_prompts: bool = False
    ) -> None:
        self._app, self._max, self._timeout, self._log = app, max_body, timeout, log_prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse with 400, 408, 413 or 415, or pass on the body that was read."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(Headers(scope=scope), receive)
            if body is None:
                return
            scope[PARSED] = parsed(body, Headers(scope=scope))
        except ApiError as error:
            await respond(error, scope, receive, send)
            return
        if self._log:
            text = body[: 4 * LOGGED].decode("utf-8", "replace")[:LOGGED]
            id_ = scope.get("state", {}).get("request_id")
            log.info("request body", extra={"request_id": id_, "body": text})
        others = [pair for pair in scope["headers"] if pair[0] != b"content-type"]
        scope["headers"] = [*others, (b"content-type", b"application/json")]
        await self._app(scope, _replayed(body, receive), send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """Return the body; None if the client disconnected. Raises ApiError 408 or 413."""
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length) > self._max:
            raise self._too_large()
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._max:
                        raise self._too_large()
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(
                408,
                f"the body did not come within {self._timeout:g} s",
                code="timeout",
                headers={"Connection": "close"},
            ) from None

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"the body is larger than {self._max} bytes",
            code="request_too_large",
            headers={"Connection": "close"},
        )


class BodyRoute(APIRoute):
    """A route whose body is what the gate has parsed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of a request whose JSON is in its scope."""
        handle = super().get_route_handler()

        async def handle_parsed(request: Request) -> Response:
            return await handle(_Parsed(request.scope, request.receive))

        return handle_parsed


class _Parsed(Request):
    async def json(self) -> Any:
        return self.scope[PARSED]


def parsed(body: bytes, headers: Headers) -> Any:
    """Return the body's JSON. An empty body is left to the route. Raises ApiError.

    A browser must also declare it as JSON: then it asks before it sends that to another site. For
    other clients, such as curl with `-d`, the content type is not checked.
    """
    if not body:
        return None
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = kind == "application/json" or (kind.startswith("application/") and "+json" in kind)
    if not is_json and "origin" in headers:  # a form, maybe of another site
        raise ApiError(415, f"the content type must be application/json, found {kind or 'none'!r}")
    try:
        content = json.loads(
            body.decode("utf-8-sig"), parse_constant=_no_number, parse_float=_finite
        )
        if SURROGATE.search(body):
            _whole_characters(content)
        return content
    except UnicodeDecodeError as error:
        raise ApiError(
            400, f"the body is not UTF-8: {error.reason} at byte {error.start}"
        ) from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply") from None
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None


def _whole_characters(content: Any) -> None:
    """Raise ValueError if a string holds an unpaired surrogate: it could not be sent back."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise ValueError(f"{half} in a string is half a character") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]} is too large a number")
    return value


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body first and then later messages."""
    waiting: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message
