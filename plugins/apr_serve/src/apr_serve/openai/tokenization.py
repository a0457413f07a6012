"""`/tokenize` and `/detokenize`: the token ids of a text or of a whole chat."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field, ValidationError

from apr_serve.chat.models import ServedModels
from apr_serve.chat.protocol_fields import Exact
from apr_serve.chat.request_body import Body
from apr_serve.chat.service import ChatService
from apr_serve.http.error_responses import invalid
from apr_serve.http.errors import ApiError
from apr_serve.http.layers.bodies import BodyRoute
from apr_serve.openai.chat_request import ChatCompletionRequest, FunctionTool
from apr_serve.openai.parts import ERRORS, Open, TokenNames

MAX_IDS = 1_000_000


class TokenizeRequest(Body, Exact):
    """Text, or the messages of a chat."""

    model: str | None = None
    text: str | None = None
    messages: list[dict[str, object]] | None = Field(None, min_length=1)
    tools: list[FunctionTool] | None = None
    chat_template_kwargs: dict[str, object] | None = None
    allow_special: bool = Field(False, description="Read control tokens in the text.")
    with_pieces: bool = Field(False, description="Also the text of every token.")


class Tokenized(Open):
    """The ids; `context` is the most that the model holds."""

    tokens: list[int]
    count: int
    context: int
    pieces: list[str] | None = None


class DetokenizeRequest(Body, Exact):
    """Ids to be decoded."""

    model: str | None = None
    tokens: Annotated[list[int], Field(max_length=MAX_IDS)]


class Detokenized(Open):
    """The text."""

    text: str


def router(models: ServedModels) -> APIRouter:
    """Return both routes."""
    routes = APIRouter(route_class=BodyRoute, tags=["tokens"])

    @routes.post("/tokenize", responses={200: {"model": Tokenized}, **ERRORS})
    async def tokenize(body: TokenizeRequest) -> Response:
        """Return the token ids of a text, or of the prompt that messages become."""
        service = models.pick(body.model)
        if (body.text is None) == (body.messages is None):
            raise ApiError(400, "give either text or messages", "text")
        if body.messages is None:
            ids = await service.encode(body.text or "", body.allow_special)
        else:
            ids = await asyncio.to_thread(service.prompt_ids, _chat(body))
        answer = Tokenized(tokens=ids, count=len(ids), context=service.model.max_len)
        if body.with_pieces:
            answer.pieces = await asyncio.to_thread(_pieces, service, ids)
        return _written(answer)

    @routes.post("/detokenize", responses={200: {"model": Detokenized}, **ERRORS})
    async def detokenize(body: DetokenizeRequest) -> Response:
        """Return the text of token ids."""
        service = models.pick(body.model)
        if body.tokens:
            service.check_ids(body.tokens, "tokens")
        text = await asyncio.to_thread(service.model.tokenizer.decode, body.tokens)
        return _written(Detokenized(text=text))

    return routes


def _chat(body: TokenizeRequest) -> ChatCompletionRequest:
    fields = body.model_dump(include={"messages", "tools", "chat_template_kwargs"})
    try:
        return ChatCompletionRequest.model_validate(fields)
    except ValidationError as error:
        raise invalid(error.errors()) from None


def _pieces(service: ChatService, ids: list[int]) -> list[str]:
    names = TokenNames(service.model.tokenizer)
    texts = {id_: names.text(id_) for id_ in set(ids)}
    return [texts[id_] for id_ in ids]


def _written(answer: BaseModel) -> Response:
    """Return the answer as JSON, serialized only once: it may have millions of numbers."""
    return Response(answer.model_dump_json(), media_type="application/json")
