"""The outermost layer: request ids, the log line, counting, and uncaught errors."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apr_serve.chat.collected import stopping
from apr_serve.chat.connection import LEFT
from apr_serve.http.error_responses import respond
from apr_serve.http.errors import as_api_error
from apr_serve.http.ignored import HEADER, IGNORED, Ignored
from apr_serve.http.layers.proxies import Proxies
from apr_serve.http.metrics import Metrics

ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
QUIET = ("/health/", "/metrics", "/page/", "/status.json")  # requested every few seconds
log = logging.getLogger("apr.server")


class ServerState:
    """The state of the process: `draining` once it takes no more requests."""

    def __init__(self) -> None:
        self.draining = False
        self.open_requests = 0


class RequestMiddleware:
    """Wraps the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        state: ServerState,
        proxies: Proxies,
        strict_parameters: bool = False,
    ) -> None:
        self._app, self._metrics, self._state, self._proxies = app, metrics, state, proxies
        self._strict = strict_parameters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, even if the application fails."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["client"] = (self._proxies.client(scope), 0)
        ignored = Ignored(self._strict)
        IGNORED.set(ignored)
        exchange = Exchange(scope, send, ignored)
        self._state.open_requests += 1
        try:
            if self._state.draining and scope["method"] == "POST":
                await respond(stopping(), scope, receive, exchange.send)
            else:
                await self._app(scope, receive, exchange.send)
        except Exception as error:
            log.exception("a request failed", extra=exchange.fields())
            if not exchange.status:
                await respond(as_api_error(error), scope, receive, exchange.send)
        finally:
            self._state.open_requests -= 1
            self._metrics.answered(_route(scope), exchange.status or LEFT)
            exchange.report()


class Exchange:
    """One request and its response: puts the id on both, and remembers the status.

    Fields that were ignored are named in a header.
    """

    def __init__(self, scope: Scope, send: Send, ignored: Ignored) -> None:
        self.scope, self._send, self._ignored = scope, send, ignored
        self.status, self._started = 0, time.perf_counter()
        sent = Headers(scope=scope).get("x-request-id", "")
        self.id = sent if ID.fullmatch(sent) else f"req_{uuid.uuid4().hex}"
        self.details: dict[str, Any] = {}
        scope.setdefault("state", {}).update(request_id=self.id, details=self.details)

    async def send(self, message: Message) -> None:
        """Send a message on, with the id in the response's headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(raw=message["headers"])
            headers["x-request-id"] = self.id
            if names := str(self._ignored):
                headers[HEADER] = self.details["ignored"] = names
        await self._send(message)

    def fields(self) -> dict[str, Any]:
        """Return the fields of the request's log line."""
        return {
            "request_id": self.id, "method": self.scope["method"], "path": self.scope["path"],
            "status": self.status or None, "ms": round(self._ms(), 1),
            "client": self.scope["client"][0], **self.details,
        }  # fmt: skip

    def _ms(self) -> float:
        return (time.perf_counter() - self._started) * 1000

    def report(self) -> None:
        """Write the log line; requests that come every few seconds have one only when they fail."""
        if self.status >= 400 or not self.scope["path"].startswith(QUIET):
            level = logging.WARNING if self.status >= 500 else logging.INFO
            log.log(level, "request" if self.status else "client left", extra=self.fields())


def _route(scope: Scope) -> str:
    """Return the route's own path: labels must not come from clients."""
    return getattr(scope.get("route"), "path", None) or "unknown"
