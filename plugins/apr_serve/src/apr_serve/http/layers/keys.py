"""API keys: where they come from, and the check of each request. A key is never logged."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from apr_core.plugin import InputOutputError, UsageError
from apr_serve.http.error_responses import respond
from apr_serve.http.errors import ApiError
from apr_serve.http.options import KEY_VARIABLE
from apr_serve.page.routes import is_public

OPEN = frozenset({"/health/live", "/health/ready", "/openapi.json"})
NEEDED = "this server needs an API key: send `Authorization: Bearer KEY`"
SHORTEST = 8  # characters; a shorter key is a typing error, or easily guessed


def gather_keys(
    given: Sequence[str], file: Path | None, environment: Mapping[str, str]
) -> tuple[str, ...]:
    """Return all keys: of the command line, of a file (one a line, # comments), of the environment.

    Raises UsageError for keys that cannot be sent or are too short, InputOutputError for the file.
    """
    keys = [*given, *environment.get(KEY_VARIABLE, "").split(",")]
    if any(not key.strip() for key in given) or not environment.get(KEY_VARIABLE, "-").strip(", "):
        raise UsageError(
            "an API key is empty: everybody could ask",
            f"Write one, or leave out --api-key and {KEY_VARIABLE} to ask for none.",
        )
    if file is not None:
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputOutputError(f"the file of API keys cannot be read: {error}") from error
        entries = [line.strip() for line in lines]
        keys += [line for line in entries if line and not line.startswith("#")]
        if not any(line and not line.startswith("#") for line in entries):
            raise UsageError(f"{file} holds no API key", "Write one key a line.")
    keys = [key.strip() for key in keys if key.strip()]
    for number, key in enumerate(keys, 1):
        if len(key) < SHORTEST or not (key.isascii() and key.isprintable()) or " " in key:
            raise UsageError(
                f"API key number {number} of {len(keys)} is not usable",
                f"A key has at least {SHORTEST} visible ASCII characters and no spaces.",
            )
    return tuple(dict.fromkeys(keys))


class KeyGate:
    """Passes requests with a known key, and all requests for health and the static pages.

    The key comes as `Authorization: Bearer KEY` or `x-api-key: KEY`. Digests are compared, against
    every key and in constant time, so that timing tells nothing about the keys.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse with 401, or pass on with `tenant` in the request's state."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = _sent_key(Headers(scope=scope))
        key = self._number(sent)
        path = scope["path"]
        if self._digests and key is None and not (path in OPEN or is_public(path)):
            message = "this API key is not known here" if sent else NEEDED
            error = ApiError(
                401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"}
            )
            await respond(error, scope, receive, send)
            return
        client = scope["client"][0]
        scope.setdefault("state", {})["tenant"] = client if key is None else f"key {key}"
        await self._app(scope, receive, send)

    def _number(self, sent: str) -> int | None:
        digest, match = _digest(sent), None
        for number, known in enumerate(self._digests):
            if hmac.compare_digest(digest, known):
                match = number
        return match


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()


def _sent_key(headers: Headers) -> str:
    kind, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
