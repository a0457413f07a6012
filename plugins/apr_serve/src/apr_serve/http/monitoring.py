"""What a server reports about itself: models and the kernels they use, health, metrics."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from apr_serve.chat.models import ServedModels
from apr_serve.chat.service import ChatService
from apr_serve.http.layers.requests import ServerState
from apr_serve.http.metrics import Metrics
from apr_serve.openai.parts import ERRORS, Open


class ModelCard(Open):
    """A served model. `bound` lists what each op runs on, `fallbacks` the slow ones.

    `object`, `created` and `owned_by` are for OpenAI's clients, `type`, `display_name` and
    `created_at` for Anthropic's.
    """

    id: str
    object: str
    created: int
    owned_by: str
    type: str
    display_name: str
    created_at: str
    context: int
    backend: str
    bound: list[str]
    fallbacks: list[str]


class ModelList(Open):
    """All served models, in one page: `has_more` and the ids are for Anthropic's clients."""

    object: str
    data: list[ModelCard]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Health(Open):
    """Either `ok` or the reason why not."""

    status: str


def router(models: ServedModels, metrics: Metrics, state: ServerState) -> APIRouter:
    """Return the routes of models, health and metrics."""
    routes = APIRouter()

    @routes.get("/v1/models", tags=["models"])
    async def list_models() -> ModelList:
        """List the models served here, what runs them, and what of it is slow."""
        cards = [_card(models, name, service) for name, service in models.items()]
        ids = [card["id"] for card in cards] or [None]
        return ModelList.model_validate(
            {
                "object": "list", "data": cards, "has_more": False,
                "first_id": ids[0], "last_id": ids[-1],
            }
        )  # fmt: skip

    @routes.get("/v1/models/{name:path}", tags=["models"], responses={404: ERRORS[404]})
    async def one_model(name: str) -> ModelCard:
        """Describe one model, by its name or an alias."""
        service = models.pick(name)
        return ModelCard.model_validate(_card(models, service.model_id, service))

    @routes.head("/health/live", include_in_schema=False)
    @routes.get("/health/live", tags=["health"])
    async def live() -> Health:
        """Tell whether the process answers."""
        return Health(status="ok")

    @routes.head("/health/ready", include_in_schema=False)
    @routes.get("/health/ready", tags=["health"], responses={503: {"model": Health}})
    async def ready() -> Response:
        """Tell whether requests are accepted: not while the server is stopping."""
        word = "draining" if state.draining else "ok"
        return JSONResponse({"status": word}, 503 if state.draining else 200)

    @routes.get("/metrics", tags=["health"], response_class=Response)
    async def prometheus() -> Response:
        """Return counters and histograms for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return routes


def _card(models: ServedModels, name: str, service: ChatService) -> dict[str, Any]:
    model = service.model
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "apr",
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(service.created, UTC).isoformat(),
        "aliases": [alias for alias, target in models.aliases.items() if target == name],
        "context": model.max_len,
        "backend": model.backend.name,
        "bound": model.report.lines(),
        "fallbacks": list(model.report.fallbacks),
    }
