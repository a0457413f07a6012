"""`/v1/completions`: continues text as it is, without a template.

Control tokens in a prompt stay text unless `allow_special`; reasoning, if there is any, is part of
the text, with its tags.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from apr_core.runtime import Delta, Usage
from apr_serve.chat.collected import total
from apr_serve.chat.connection import noting, tenant_of, while_connected
from apr_serve.chat.events import ChatEvent
from apr_serve.chat.models import ServedModels
from apr_serve.chat.protocol_fields import only
from apr_serve.chat.request_body import Body
from apr_serve.chat.service import ChatService
from apr_serve.http.errors import ApiError
from apr_serve.http.layers.bodies import BodyRoute
from apr_serve.http.options import ServerOptions
from apr_serve.http.sse import DONE, EventStream, event
from apr_serve.openai.chat_request import MAX_TOKENS, Sampled
from apr_serve.openai.parts import (
    ERRORS,
    Open,
    TokenNames,
    UsageBody,
    failure_events,
    new_head,
    one_stream_option,
    streamed,
    usage_body,
)

DEFAULT_MAX_TOKENS = 16  # as OpenAI has it
MAX_PROMPTS = 64
Result = TypeVar("Result")
Ids = Annotated[list[int], Field(min_length=1)]
Prompt = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
    | Ids
    | Annotated[list[Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
)


class CompletionRequest(Body, Sampled):
    """Text, or token ids, to continue."""

    prompt: Prompt
    max_tokens: int | None = Field(
        None, ge=0, le=MAX_TOKENS, description="Default: 16. 0, with echo: the prompt alone."
    )
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    suffix: Annotated[str | None, only("", why="models here only go on")] = None
    allow_special: bool | None = Field(None, description="Read control tokens in the prompt.")

    def wanted_tokens(self) -> int | None:
        """Return the most tokens an answer may have; None if the client wants no limit."""
        if self.max_tokens is None and self.n_predict is None:
            return DEFAULT_MAX_TOKENS
        return self.limit(self.max_tokens)

    def wanted_logprobs(self) -> int | None:
        """Return how many alternatives of each token to report; None for no log probabilities."""
        return self.logprobs

    def prompts(self) -> list[str] | list[list[int]]:
        """Return every prompt, as text or as ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt


class CompletionChoice(Open):
    """One continuation."""

    index: int
    text: str
    finish_reason: str
    apr_ended_by: str


class Completion(Open):
    """All continuations of all prompts."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody


def router(models: ServedModels, options: ServerOptions) -> APIRouter:
    """Return the route of plain completions."""
    routes = APIRouter(route_class=BodyRoute, tags=["completions"])

    @routes.post(
        "/v1/completions",
        responses=streamed(Completion, "The answers, or a stream of chunks.") | ERRORS,
    )
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue prompts, whole or as a stream of chunks. No chat template is applied."""
        service = models.pick(body.model)
        one_stream_option(body.stream_options, body.stream)
        if body.max_tokens == 0 and not body.echo:
            raise ApiError(400, "max_tokens: 0 needs echo: true", "max_tokens")
        answers = await Completions.begin(service, body, request)
        if body.stream:
            return EventStream(answers.stream(), options.heartbeat, failure_events)
        return JSONResponse(await while_connected(request, answers.whole()))

    return routes


@dataclass(slots=True)
class Written:
    """The text generated so far for one choice."""

    text: str
    logprobs: dict[str, list[Any]] = field(default_factory=dict)
    last: Delta | None = None

    def add(self, logprobs: Mapping[str, list[Any]]) -> None:
        """Add the log probabilities of new tokens."""
        for name, values in logprobs.items():
            self.logprobs.setdefault(name, []).extend(values)


class Completions:
    """The prompts of one request, generated in parallel. Choice i*n+j is answer j to prompt i."""

    def __init__(
        self,
        service: ChatService,
        body: CompletionRequest,
        request: Request,
        prompts: Sequence[tuple[str, Sequence[int]]],
    ) -> None:
        self._service, self._body, self._request = service, body, request
        self._n = body.n or 1
        self._names = TokenNames(
            service.model.tokenizer,
            ends=body.ignore_eos is not True,
            special=body.skip_special_tokens is not False,
        )
        self._head = new_head("cmpl", "text_completion", service.model_id)
        self.written = [
            Written(text if body.echo else "") for text, _ in prompts for _ in range(self._n)
        ]
        self._streams: list[AsyncGenerator[list[ChatEvent], None]] = []

    @classmethod
    async def begin(
        cls, service: ChatService, body: CompletionRequest, request: Request
    ) -> Completions:
        """Check and queue everything. Raises ApiError, and then nothing runs."""
        prompts = [await _encoded(service, prompt, body) for prompt in body.prompts()]
        for _, ids in prompts:
            service.check_prompt(ids, "prompt")
        self = cls(service, body, request, prompts)
        if body.echo and body.logprobs is not None:
            await self._score([ids for _, ids in prompts], body.logprobs)
        try:
            for number, (_, ids) in enumerate(prompts):
                if body.max_tokens == 0:
                    self._end_without_answer(number, len(ids))
                    continue
                await self._begin(ids)
        except BaseException:
            await self.close()
            raise
        return self

    async def _score(self, prompts: Sequence[Sequence[int]], top: int) -> None:
        """Begin the log probabilities of every choice with those of its prompt."""
        tenant = tenant_of(self._request)
        scoring = [self._service.score(ids, top, tenant) for ids in prompts]
        all_scores = await while_connected(self._request, _gathered(scoring))
        for number, (ids, scores) in enumerate(zip(prompts, all_scores, strict=True)):
            for index in range(number * self._n, (number + 1) * self._n):
                self.written[index].add(self._names.prompt(ids[0], scores))

    def _end_without_answer(self, number: int, prompt_tokens: int) -> None:
        """End the choices of a prompt for which no tokens are to be generated."""
        usage = Usage(prompt_tokens)
        for index in range(number * self._n, (number + 1) * self._n):
            self.written[index].last = Delta(
                index, finish_reason="length", ended_by="max_tokens", usage=usage
            )

    async def _begin(self, ids: Sequence[int]) -> None:
        """Queue a prompt."""
        sampling = self._service.sampling(self._body.asked_sampling(), self._body.bias())
        tenant = tenant_of(self._request)
        asked = replace(self._body.generation(ids), params=sampling, plain=True, tenant=tenant)
        self._streams.append(await self._service.stream(asked, param="prompt"))

    async def close(self) -> None:
        """Cancel what is still running."""
        for stream in self._streams:
            await stream.aclose()

    async def whole(self) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        try:
            async for _ in self._steps():
                pass
        finally:
            await self.close()
        return {
            **self._head,
            "choices": [self._choice(i) for i in range(len(self.written))],
            "usage": usage_body(self._usage()),
        }

    def _choice(self, index: int) -> dict[str, Any]:
        written = self.written[index]
        assert written.last is not None
        return {
            "index": index, "text": written.text, "logprobs": written.logprobs or None,
            "finish_reason": written.last.finish_reason, "apr_ended_by": written.last.ended_by,
        }  # fmt: skip

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield server-sent events, one piece a step. An error becomes the last event."""
        options = self._body.stream_options
        include_usage = bool(options and options.include_usage)
        tail: dict[str, Any] = {"usage": None} if include_usage else {}
        try:
            if self._body.echo:
                for index, written in enumerate(self.written):
                    scores = written.logprobs or None
                    yield self._chunk(index, written.text, tail, written.last, scores)
            async for index, delta, logprobs in self._steps():
                if delta.text or delta.logprobs or delta.finish_reason:
                    yield self._chunk(index, delta.text, tail, delta, logprobs)
            usage = self._usage()
            if include_usage:
                yield event({**self._head, "choices": [], "usage": usage_body(usage)})
            yield DONE
        finally:
            await self.close()

    def _chunk(
        self,
        index: int,
        text: str,
        tail: dict[str, Any],
        delta: Delta | None = None,
        logprobs: Mapping[str, list[Any]] | None = None,
    ) -> bytes:
        choice: dict[str, Any] = {
            "index": index, "text": text, "logprobs": logprobs, "finish_reason": None,
        }  # fmt: skip
        if delta and delta.finish_reason:
            choice |= {"finish_reason": delta.finish_reason, "apr_ended_by": delta.ended_by}
        return event({**self._head, "choices": [choice], **tail})

    async def _steps(self) -> AsyncIterator[tuple[int, Delta, Mapping[str, list[Any]] | None]]:
        """Yield (choice, delta, its log probabilities) of all prompts as they come."""
        arrived: asyncio.Queue[tuple[int, Delta] | Exception | None] = asyncio.Queue()
        tasks = [
            asyncio.ensure_future(self._forward(number, stream, arrived))
            for number, stream in enumerate(self._streams)
        ]
        try:
            for _ in tasks:
                while (got := await arrived.get()) is not None:
                    if isinstance(got, Exception):
                        raise got
                    yield got[0], got[1], self._take(*got)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _take(self, index: int, delta: Delta) -> Mapping[str, list[Any]] | None:
        written, logprobs = self.written[index], None
        begin, end = len(written.text), len(written.text) + len(delta.text)
        written.text += delta.text
        if self._body.logprobs is not None:
            logprobs = self._names.completion(delta.logprobs, begin, end)
            written.add(logprobs)
        if delta.finish_reason:
            written.last = delta
        return logprobs

    async def _forward(
        self,
        number: int,
        stream: AsyncGenerator[list[ChatEvent], None],
        arrived: asyncio.Queue[tuple[int, Delta] | Exception | None],
    ) -> None:
        try:
            async for events in stream:
                for delta in (event_ for event_ in events if isinstance(event_, Delta)):
                    arrived.put_nowait((number * self._n + delta.index, delta))
        except Exception as error:
            arrived.put_nowait(error)
        arrived.put_nowait(None)

    def _usage(self) -> Usage:
        """Return the usage of all choices; each prompt counts once."""
        ends = [written.last for written in self.written if written.last]
        firsts = [ends[i].usage or Usage() for i in range(0, len(ends), self._n)]
        usage = total(end.usage or Usage() for end in ends)
        usage = replace(
            usage,
            prompt_tokens=sum(first.prompt_tokens for first in firsts),
            cached_tokens=sum(first.cached_tokens for first in firsts),
        )
        noting(self._request, self._service.model_id)(ends, usage)
        return usage


async def _gathered(work: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    return await asyncio.gather(*work)


async def _encoded(
    service: ChatService, prompt: str | list[int], body: CompletionRequest
) -> tuple[str, Sequence[int]]:
    """Return (text, ids) of a prompt. Raises ApiError if it is empty or has unknown ids."""
    if isinstance(prompt, str):
        ids: Sequence[int] = await service.encode(prompt, body.allow_special is True, "prompt")
        return prompt, ids
    service.check_ids(prompt, "prompt")
    return (service.model.tokenizer.decode(prompt) if body.echo else ""), prompt
