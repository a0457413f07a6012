"""The application: routes, the layers around them, and how errors look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

import apr_core
from apr_core.plugin import AprError
from apr_serve.anthropic import routes as anthropic
from apr_serve.chat.models import ServedModels
from apr_serve.chat.service import ChatService
from apr_serve.http import monitoring
from apr_serve.http.error_responses import on_api_error, on_http_error, on_invalid
from apr_serve.http.errors import ApiError
from apr_serve.http.ignored import HEADER
from apr_serve.http.layers.bodies import BodyGate
from apr_serve.http.layers.keys import OPEN, KeyGate
from apr_serve.http.layers.proxies import Proxies
from apr_serve.http.layers.requests import RequestMiddleware, ServerState
from apr_serve.http.metrics import Metrics
from apr_serve.http.options import ServerOptions
from apr_serve.openai import chat as openai_chat
from apr_serve.openai import completions as openai_completions
from apr_serve.openai import embeddings, tokenization
from apr_serve.page import routes as pages
from apr_serve.responses import routes as responses

DESCRIPTION = """OpenAI's API, and Anthropic's messages, for the models served here.
Unknown parameters are ignored, and named in the header `x-apr-ignored`. Errors have OpenAI's form:
`error.message`, `type`, `param`, `code`."""
EXPOSED = ["x-request-id", "retry-after", HEADER]


class Application(FastAPI):
    """FastAPI whose schema has no 422: invalid requests get a 400 here, in OpenAI's form.

    The schema asks for a key if `needs_key`.
    """

    needs_key = False

    def openapi(self) -> dict[str, Any]:
        """Return the published schema."""
        if self.openapi_schema is None:
            schema = super().openapi()
            for operation in (o for path in schema["paths"].values() for o in path.values()):
                operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                schema["components"]["schemas"].pop(name, None)
            if self.needs_key:
                _require_key(schema)
        return self.openapi_schema or {}


def _require_key(schema: dict[str, Any]) -> None:
    """Document the key, so that `/docs` has a field for it and generated clients send it."""
    schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in schema["paths"].items():
        for operation in operations.values() if path not in OPEN else ():
            operation["security"] = [{"key": []}]


def create_app(models: Mapping[str, ChatService], options: ServerOptions) -> FastAPI:
    """Return the application for these models; its `state` has `models`, `metrics`, `server`."""
    served = ServedModels(models, options.aliases)
    metrics, state = Metrics(served), ServerState()
    for service in served.values():
        service.observer, service.timeout = metrics, options.request_timeout
    app = Application(
        title="apr",
        version=apr_core.__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.needs_key = bool(options.api_keys)
    app.state.models, app.state.metrics, app.state.server = served, metrics, state
    for error in (ApiError, AprError):
        app.add_exception_handler(error, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    _add_routes(app, served, options, metrics, state)
    _add_layers(app, options, metrics, state)
    return app


def _add_routes(
    app: FastAPI, models: ServedModels, options: ServerOptions, metrics: Metrics, state: ServerState
) -> None:
    app.include_router(openai_chat.router(models, options))
    app.include_router(openai_completions.router(models, options))
    app.include_router(embeddings.router(models))
    app.include_router(tokenization.router(models))
    app.include_router(monitoring.router(models, metrics, state))
    app.include_router(pages.router(models, metrics.registry))
    app.include_router(responses.router(models, options.heartbeat))
    app.include_router(anthropic.router(models, options.heartbeat))


def _add_layers(app: FastAPI, options: ServerOptions, metrics: Metrics, state: ServerState) -> None:
    """Add the middleware, innermost first."""
    app.add_middleware(
        BodyGate,
        max_body=options.max_body,
        timeout=options.body_timeout,
        log_prompts=options.log_prompts,
    )
    app.add_middleware(KeyGate, keys=options.api_keys)
    if options.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(options.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
            max_age=600,
        )
    proxies = Proxies(options.trusted_proxies)
    app.add_middleware(
        RequestMiddleware,
        metrics=metrics,
        state=state,
        proxies=proxies,
        strict_parameters=options.strict_parameters,
    )
