"""One served model: takes requests and yields events. Knows no protocol."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from apr_core.plugin import AprError, FormatError
from apr_core.runtime import (
    ChatTemplate,
    Delta,
    PromptTooLong,
    SamplingParams,
    TokenLogprob,
    chat_pieces,
    check_prompt,
)
from apr_serve.chat.answer_parser import AnswerParser
from apr_serve.chat.bridge import Bridge, Deliveries
from apr_serve.chat.collected import CollectedAnswer, collect, failure
from apr_serve.chat.events import ChatEvent
from apr_serve.chat.request import NO_TOOLS, ChatBody, Tool, ToolUse
from apr_serve.engine.interface import Constraint, EngineRequest, GenerationEngine
from apr_serve.http.errors import ApiError, as_api_error
from apr_serve.tools.messages import normalized, template_tools
from apr_serve.tools.tool_calls import Form, form_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from apr_core.runtime import Model

FOREVER = float("inf")
PART = 1 << 16  # characters counted at a time in a text that may be far too long
SEAM = 64  # tokens by which counting in parts may be wrong at a border; a generous bound
Ended = Callable[[Sequence[Delta]], None]
BUDGET_TEXT = "\n\nThis is enough thinking; the answer follows.\n"


def _nothing(ends: Sequence[Delta]) -> None:
    pass


class Observer(Protocol):
    """Records latencies of tokens, in seconds."""

    def first_token(self, model: str, seconds: float) -> None:
        """Record the time from the request to its first token."""

    def next_token(self, model: str, seconds: float) -> None:
        """Record the time between two steps that brought tokens to one request."""


class ChatService:
    """A model, the engine that runs it, and the id clients know it by.

    Every method that can refuse raises ApiError. `observer` and `timeout` may be set.
    """

    def __init__(self, model: Model, engine: GenerationEngine, model_id: str) -> None:
        self.model, self.engine, self.model_id = model, engine, model_id
        self.observer: Observer | None = None
        self.timeout = FOREVER  # seconds a request may take
        self.created = int(time.time())
        self._bridge = Bridge(engine)

    @cached_property
    def _template(self) -> ChatTemplate:
        source = self.model.metadata.get("chat_template")
        if not isinstance(source, str):
            raise ApiError(400, f"{self.model_id} has no chat template: use /v1/completions")
        return ChatTemplate(source)

    def prompt_ids(self, body: ChatBody) -> list[int]:
        """Return the prompt ids of a chat. Raises ApiError if that fails."""
        try:
            messages = normalized(body.chat_messages())
            tools = self._template_tools(body.tool_use().shown)
            pieces = chat_pieces(
                self.model.tokenizer,
                self._template,
                messages,
                enable_thinking=body.thinking_limits()[0],
                tools=tools,
                variables=body.template_variables(),
                add_generation_prompt=body.begins_answer(),
            )
            return self._ids_of(pieces, "messages")
        except FormatError as error:  # the template's fault, but only other messages help
            raise ApiError(400, error.message, "messages") from error
        except AprError as error:
            raise self._refused(error, "messages") from error

    async def request(self, body: ChatBody, tenant: str) -> EngineRequest:
        """Return the engine's request for a chat."""
        ids = await asyncio.to_thread(self.prompt_ids, body)
        constraint = await asyncio.to_thread(self._constraint, body)
        return replace(
            body.generation(ids),
            params=self.sampling(body.asked_sampling(), body.bias()),
            thinking_budget=body.thinking_limits()[1],
            budget_text=BUDGET_TEXT,
            constraint=constraint,
            tenant=tenant,
        )

    async def stream(
        self,
        request: EngineRequest,
        tools: ToolUse = NO_TOOLS,
        ended: Ended = _nothing,
        param: str = "messages",
        since: float | None = None,
    ) -> AsyncGenerator[list[ChatEvent], None]:
        """Queue a request and return a generator of events, one list a step; closing it cancels.

        Raises ApiError if it is refused, naming `param` where the prompt is too long; the generator
        raises it if an answer fails, after all events before that. `ended` is called with the last
        deltas. The time to the first token counts from `since`, by default from now.
        """
        watch = Stopwatch(self, time.perf_counter() if since is None else since)
        steps = self._events(request, tools, ended, param, watch)
        await anext(steps)
        return steps

    async def _events(
        self, request: EngineRequest, tools: ToolUse, ended: Ended, param: str, watch: Stopwatch
    ) -> AsyncGenerator[list[ChatEvent], None]:
        """Yield an empty list once the request is queued, then the events of each step."""
        parsers = [AnswerParser(tools.shown, index, tools.parallel) for index in range(request.n)]
        ends: list[Delta] = []
        deliveries = self._submit(request, param)
        try:
            yield []
            async for deltas in deliveries:
                watch.saw(deltas)
                events: list[ChatEvent] = []
                for delta in deltas:
                    events += parsers[delta.index].push(delta)
                    if delta.finish_reason:
                        ends.append(delta)
                    if delta.finish_reason in ("error", "cancelled"):
                        ended(ends)
                        yield events[:-1]
                        raise failure(delta)
                if len(ends) == request.n:
                    ended(ends)
                yield events
        finally:
            deliveries.close()

    async def complete(
        self, request: EngineRequest, tools: ToolUse, ended: Ended, since: float
    ) -> list[CollectedAnswer]:
        """Return all answers, whole. Raises ApiError if one fails."""
        answers = [CollectedAnswer(index) for index in range(request.n)]
        async with aclosing(await self.stream(request, tools, ended, since=since)) as steps:
            async for events in steps:
                collect(answers, events)
        return answers

    def _submit(self, request: EngineRequest, param: str) -> Deliveries:
        try:
            deliveries = self._bridge.submit(request)
        except AprError as error:
            raise self._refused(
                error, param if isinstance(error, PromptTooLong) else None
            ) from error
        if self.timeout < FOREVER:
            late = ApiError(504, f"the answer took over {self.timeout:g} s", code="timeout")
            loop = asyncio.get_running_loop()
            deliveries.alarm = loop.call_later(self.timeout, deliveries.expire, late)
        return deliveries

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Raise ApiError unless every id is a token."""
        size = self.model.tokenizer.valid_size
        bad = next((id_ for id_ in ids if not 0 <= id_ < size), None)
        if bad is not None:
            raise ApiError(400, f"{param}: token ids go from 0 to {size - 1}, found {bad}", param)

    def check_prompt(self, ids: Sequence[int], param: str) -> None:
        """Raise ApiError unless there are ids and the context holds them plus one token."""
        try:
            check_prompt(self.model, ids)
        except AprError as error:
            raise self._refused(error, param) from error

    def _refused(self, error: AprError, param: str | None) -> ApiError:
        """Return the error for a client, naming the parameter if the client caused it."""
        if isinstance(error, PromptTooLong):
            return self._too_long(str(error.tokens), param)
        refused = as_api_error(error)
        if refused.status == 400:
            refused.param = param
        return refused

    def _too_long(self, count: str, param: str | None) -> ApiError:
        return ApiError(
            400,
            f"the prompt has {count} tokens, the context of {self.model_id} holds "
            f"{self.model.max_len}",
            param,
            "context_length_exceeded",
        )

    def _ids_of(self, pieces: Iterable[int | str], param: str) -> list[int]:
        """Return the ids of all pieces; raise ApiError as soon as they far exceed the context."""
        ids: list[int] = []
        for piece in pieces:
            ids += [piece] if isinstance(piece, int) else self._encoded(piece, param)
            if len(ids) > self.model.max_len + PART:
                raise self._too_long(f"over {len(ids)}", param)
        return ids

    def _encoded(self, text: str, param: str) -> list[int]:
        """Return the ids of text; raise ApiError early if it far exceeds the context."""
        limit, count = self.model.max_len, 0
        for start in range(0, len(text) if len(text) > PART else 0, PART):
            count += len(self.model.tokenizer.encode(text[start : start + PART])) - SEAM
            if count > limit:
                raise self._too_long(f"over {count}", param)
        return self.model.tokenizer.encode(text)

    def sampling(
        self, asked: Mapping[str, float | int], bias: Mapping[int, float] | None = None
    ) -> SamplingParams:
        """Return the model's default sampling, changed by the parameters of the request."""
        self.check_ids(list(bias or ()), "logit_bias")
        try:
            params = SamplingParams.from_defaults(self.model.config.sampling, **asked)
            return replace(params, logit_bias=tuple((bias or {}).items()))
        except AprError as error:
            raise self._refused(error, None) from error

    async def encode(
        self, text: str, allow_special: bool = False, prompt: str | None = None
    ) -> list[int]:
        """Return the ids of plain text; control tokens in it stay text unless allowed.

        `prompt` is the parameter that holds the text, if it must fit into the context.
        """

        tokenizer = self.model.tokenizer

        def work() -> list[int]:
            if not prompt:
                return tokenizer.encode(text, allow_special)
            split = tokenizer.split(text) if allow_special else [(text, None)]
            return self._ids_of((token.id if token else piece for piece, token in split), prompt)

        try:
            return await asyncio.to_thread(work)
        except AprError as error:
            raise self._refused(error, prompt or "text") from error

    async def embed(self, ids: Sequence[int], tenant: str = "") -> NDArray[np.float32]:
        """Return the mean [hidden] of the last hidden states over the ids."""
        try:
            return await self._bridge.embed(ids, tenant)
        except AprError as error:
            raise self._refused(error, "input") from error

    async def score(self, ids: Sequence[int], top: int, tenant: str = "") -> list[TokenLogprob]:
        """Return the log probabilities of ids[1:], each with its `top` most likely alternatives."""
        try:
            return await self._bridge.score(ids, top, tenant)
        except AprError as error:
            raise self._refused(error, "prompt") from error

    def _constraint(self, body: ChatBody) -> Callable[[], Constraint] | None:
        """Return what constrains the answer, or None. Raises ApiError for an unusable grammar.

        If the model may choose, calls are constrained to their schemas if a tool is strict, or if
        the answer that may come instead is constrained.
        """
        use, wanted = body.tool_use(), body.answer_format()
        tools, choice = use.shown, use.choice
        optional = not isinstance(choice, Tool) and choice != "required"
        strict = any(tool.strict for tool in tools)
        if optional and wanted is None and not strict:
            return None
        from apr_serve.grammar import grammar

        tokenizer = self.model.tokenizer
        answer = None if wanted is None else wanted.schema or {"type": "object"}
        try:
            if optional and not tools:
                return grammar.json_schema(tokenizer, answer or {})
            called = [choice] if isinstance(choice, Tool) else tools
            parallel = use.parallel and not isinstance(choice, Tool)
            return grammar.tool_calls(
                tokenizer, called, not optional, parallel, self._call_form, answer
            )
        except AprError as error:
            raise self._refused(error, "tools" if tools else "response_format") from error

    def _template_tools(self, tools: Sequence[Tool]) -> list[dict[str, Any]] | None:
        """Return the tools as templates show them. Raises ApiError if there is no call form."""
        if tools and self._call_form is None:
            message = f"tools: the chat template of {self.model_id} teaches no calls of tools"
            raise ApiError(400, message, "tools")
        try:
            return template_tools(tools)
        except AprError as error:
            raise self._refused(error, "tools") from error

    @cached_property
    def _call_form(self) -> Form | None:
        return form_of(str(self.model.metadata.get("chat_template")))


class Stopwatch:
    """Reports to the service's observer when tokens came."""

    def __init__(self, service: ChatService, since: float) -> None:
        self._service = service
        self._last, self._first = since, True

    def saw(self, deltas: Sequence[Delta]) -> None:
        """Record that deltas of one step arrived."""
        observer = self._service.observer
        if observer is None or not any(delta.ids or delta.text for delta in deltas):
            return
        now = time.perf_counter()
        tell = observer.first_token if self._first else observer.next_token
        tell(self._service.model_id, now - self._last)
        self._last, self._first = now, False
