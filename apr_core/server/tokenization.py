"""`/tokenize` and `/detokenize`: what the model sees, of text or of a whole chat."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter
from pydantic import Field

from apr_core.server.errors import ApiError
from apr_core.server.models import ServedModels
from apr_core.server.openai_chat_request import ChatCompletionRequest, FunctionTool
from apr_core.server.openai_parts import ERRORS, Open, TokenNames
from apr_core.server.protocol_fields import Exact

MAX_IDS = 1_000_000


class TokenizeRequest(Exact):
    """Text, or the messages of a chat."""

    model: str | None = None
    text: str | None = None
    messages: list[dict[str, object]] | None = Field(None, min_length=1)
    tools: list[FunctionTool] | None = None
    chat_template_kwargs: dict[str, object] | None = None
    allow_special: bool = Field(False, description="Read control tokens in the text.")
    with_pieces: bool = Field(False, description="Also the text of every token.")


class Tokenized(Open):
    """The ids; `context` is how many the model holds."""

    tokens: list[int]
    count: int
    context: int
    pieces: list[str] | None = None


class DetokenizeRequest(Exact):
    """Ids to be text."""

    model: str | None = None
    tokens: Annotated[list[int], Field(max_length=MAX_IDS)]


class Detokenized(Open):
    """The text."""

    text: str


def router(models: ServedModels) -> APIRouter:
    """Both routes."""
    routes = APIRouter(tags=["tokens"])

    @routes.post("/tokenize", responses=ERRORS)
    async def tokenize(body: TokenizeRequest) -> Tokenized:
        """The token ids of a text, or of the prompt that messages become."""
        service = models.pick(body.model)
        if (body.text is None) == (body.messages is None):
            raise ApiError(400, "give either text or messages", "text")
        if body.messages is None:
            ids = await service.encode(body.text or "", body.allow_special)
        else:
            told = body.model_dump(include={"messages", "tools", "chat_template_kwargs"})
            chat = ChatCompletionRequest.model_validate(told).as_chat("")
            ids = await asyncio.to_thread(service.prompt_ids, chat)
        names = TokenNames(service.model.tokenizer)
        pieces = [names.text(id_) for id_ in ids] if body.with_pieces else None
        return Tokenized(
            tokens=ids, count=len(ids), context=service.model.max_len, pieces=pieces
        )  # fmt: skip

    @routes.post("/detokenize", responses=ERRORS)
    async def detokenize(body: DetokenizeRequest) -> Detokenized:
        """The text of token ids."""
        service = models.pick(body.model)
        if body.tokens:
            service.check_ids(body.tokens, "tokens")
        return Detokenized(
            text=await asyncio.to_thread(service.model.tokenizer.decode, body.tokens)
        )  # fmt: skip

    return routes
