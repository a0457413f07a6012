"""`/v1/embeddings`: the mean over all tokens of the model's last hidden states, at length 1.

A model trained to answer is no match for an embedding model; its vectors are good enough for
clustering and rough search.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from pydantic import Field

from apr_serve.chat.connection import tenant_of, while_connected
from apr_serve.chat.models import ServedModels
from apr_serve.chat.protocol_fields import Exact
from apr_serve.chat.request_body import Body
from apr_serve.chat.service import ChatService
from apr_serve.http.errors import ApiError
from apr_serve.http.layers.bodies import BodyRoute
from apr_serve.openai.parts import ERRORS, Open

MAX_INPUTS = 2048  # as OpenAI has it; some clients send 1000 at a time
Ids = Annotated[list[int], Field(min_length=1)]
Input = (
    Annotated[str, Field(min_length=1)]
    | Annotated[
        list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=MAX_INPUTS)
    ]
    | Ids
    | Annotated[list[Ids], Field(min_length=1, max_length=MAX_INPUTS)]
)


class EmbeddingRequest(Body, Exact):
    """Texts, or token ids, to embed."""

    model: str | None = None
    input: Input
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, description="Only the model's own number.")
    user: str | None = None

    def inputs(self) -> list[str] | list[list[int]]:
        """Return every input, as text or as ids."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [self.input]
        return self.input


class Embedding(Open):
    """One vector; base64 of little-endian float32 if asked for."""

    object: str
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Open):
    """Tokens embedded."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Open):
    """All vectors, in the order of the inputs."""

    object: str
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


def router(models: ServedModels) -> APIRouter:
    """Return the route of embeddings."""
    routes = APIRouter(route_class=BodyRoute, tags=["embeddings"])

    @routes.post(
        "/v1/embeddings",
        description="The mean over all tokens of the last hidden states, scaled to length 1.",
        responses={200: {"model": EmbeddingList}, **ERRORS},
    )
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        """Return the mean of the last hidden states over the tokens of each text."""
        service = models.pick(body.model)
        size = service.model.config.hidden_size
        if body.dimensions not in (None, size):
            raise ApiError(400, f"embeddings here have {size} dimensions", "dimensions")
        prompts = [await _ids(service, text) for text in body.inputs()]
        vectors = await while_connected(request, _all(service, prompts, tenant_of(request)))
        count, as_text = sum(map(len, prompts)), body.encoding_format == "base64"
        rest = {"model": service.model_id, "usage": {"prompt_tokens": count, "total_tokens": count}}
        content = await asyncio.to_thread(_written, vectors, as_text, rest)
        return Response(content, media_type="application/json")

    return routes


async def _ids(service: ChatService, text: str | list[int]) -> list[int]:
    if isinstance(text, str):
        text = await service.encode(text, prompt="input")
    service.check_ids(text, "input")
    service.check_prompt(text, "input")
    return text


async def _all(
    service: ChatService, prompts: list[list[int]], tenant: str
) -> list[NDArray[np.float32]]:
    """Return one vector a prompt; when one fails the rest is cancelled.

    Only as many are queued at once as the engine runs: all of them would fill its queue.
    """
    turn = asyncio.Semaphore(service.engine.stats().slots)

    async def one(ids: list[int]) -> NDArray[np.float32]:
        async with turn:
            return await service.embed(ids, tenant)

    tasks = [asyncio.ensure_future(one(ids)) for ids in prompts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _written(vectors: Sequence[NDArray[np.float32]], as_text: bool, rest: dict[str, Any]) -> bytes:
    """Write the body one vector at a time, so that other threads can run: it may be large."""
    data = ",".join(json.dumps(_item(i, vector, as_text)) for i, vector in enumerate(vectors))
    return f'{{"object": "list", "data": [{data}], {json.dumps(rest)[1:]}'.encode()


def _item(index: int, vector: NDArray[np.float32], as_text: bool) -> dict[str, Any]:
    wide = np.asarray(vector, np.float64)
    scaled = (wide / max(float(np.linalg.norm(wide)), 1e-12)).astype("<f4")
    value: object = base64.b64encode(scaled.tobytes()).decode() if as_text else scaled.tolist()
    return {"object": "embedding", "index": index, "embedding": value}
