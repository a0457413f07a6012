"""One served model: chat requests in, events out. Knows no protocol and no HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from apr_core.plugin import AprError, FormatError
from apr_core.runtime import (
    ChatTemplate,
    Constraint,
    Delta,
    GenerationRequest,
    PromptTooLong,
    SamplingParams,
    TokenLogprob,
    chat_pieces,
    check_prompt,
)
from apr_serve.chat.answer_parser import AnswerParser
from apr_serve.chat.bridge import Bridge, Deliveries
from apr_serve.chat.collected import Answer, collect
from apr_serve.chat.events import ChatEvent, ChatRequest, Tool
from apr_serve.engine.interface import GenerationEngine
from apr_serve.http.errors import ApiError, as_api_error
from apr_serve.tools.messages import normalized, template_tools
from apr_serve.tools.tool_calls import Form, form_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from apr_core.runtime import Model

FOREVER = float("inf")
PART = 1 << 16  # characters that are counted at a time where a text may be far too long
SEAM = 64  # tokens by which counting in parts may be wrong at a border, generously
BUDGET_TEXT = "\n\nThis is enough thinking; the answer follows.\n"


class Observer(Protocol):
    """Who is told how fast tokens come. Times in seconds."""

    def first_token(self, model: str, seconds: float) -> None:
        """From the request to its first token."""

    def next_token(self, model: str, seconds: float) -> None:
        """Between two steps that brought tokens to one request."""


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

    def prompt_ids(self, request: ChatRequest) -> list[int]:
        """The ids of a chat's prompt. Raises ApiError if the messages or the template refuse."""
        try:
            messages, tools = normalized(request.messages), self._template_tools(request)
            pieces = chat_pieces(
                self.model.tokenizer, self._template, messages,
                enable_thinking=request.enable_thinking, tools=tools,
                variables=request.template_variables,
                add_generation_prompt=request.add_generation_prompt,
            )  # fmt: skip
            return self._ids_of(pieces, "messages")
        except FormatError as error:  # the template's fault, but only other messages help
            raise ApiError(400, error.message, "messages") from error
        except AprError as error:
            raise self._refused(error, "messages") from error

    def stream(self, request: ChatRequest) -> ChatStream:
        """The answers' events, a list a step.

        Await it to have the request checked and queued (ApiError if it is refused), then iterate;
        iterating alone does both. Closing it cancels what is still running.
        """
        return ChatStream(self, request)

    async def complete(self, request: ChatRequest) -> list[Answer]:
        """All answers, whole. Raises ApiError if one fails."""
        answers = [Answer(index) for index in range(request.n)]
        stream = self.stream(request)
        try:
            async for events in stream:
                collect(answers, events)
        finally:
            await stream.aclose()
        return answers

    async def open(self, request: ChatRequest) -> Deliveries:
        """Check and queue a chat request."""
        ids = await asyncio.to_thread(self.prompt_ids, request)
        constraint = await asyncio.to_thread(self._constraint, request)
        generation = GenerationRequest(
            ids,
            self.sampling(request.sampling, request.logit_bias),
            max_tokens=request.max_tokens,
            min_tokens=request.min_tokens,
            ignore_stop_tokens=request.ignore_stop_tokens,
            use_cache=request.use_cache,
            stop=tuple(request.stop),
            n=request.n,
            top_logprobs=request.top_logprobs,
            thinking_budget=request.thinking_budget,
            budget_text=BUDGET_TEXT,
            constraint=constraint,
            owner=request.owner,
        )
        return self.submit(generation)

    def submit(self, request: GenerationRequest, param: str = "messages") -> Deliveries:
        """Queue ids for generation. `param` is named when the prompt is refused."""
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
        """Raise ApiError unless there are ids and the context holds them and a token more."""
        try:
            check_prompt(self.model, ids)
        except AprError as error:
            raise self._refused(error, param) from error

    def _refused(self, error: AprError, param: str | None) -> ApiError:
        """The error for a client, naming the parameter if it is the client's fault."""
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
            param, "context_length_exceeded",
        )  # fmt: skip

    def _ids_of(self, pieces: Iterable[int | str], param: str) -> list[int]:
        """The ids of all pieces; ApiError as soon as they are far over the context."""
        ids: list[int] = []
        for piece in pieces:
            ids += [piece] if isinstance(piece, int) else self._encoded(piece, param)
            if len(ids) > self.model.max_len + PART:
                raise self._too_long(f"over {len(ids)}", param)
        return ids

    def _encoded(self, text: str, param: str) -> list[int]:
        """The ids of text; ApiError if it is far over the context, before all of it is read."""
        limit, count = self.model.max_len, 0
        for start in range(0, len(text) if len(text) > PART else 0, PART):
            count += len(self.model.tokenizer.encode(text[start : start + PART])) - SEAM
            if count > limit:
                raise self._too_long(f"over {count}", param)
        return self.model.tokenizer.encode(text)

    def sampling(
        self, asked: Mapping[str, float | int], bias: Mapping[int, float] | None = None
    ) -> SamplingParams:
        """The model's own sampling, changed by what was asked for."""
        self.check_ids(list(bias or ()), "logit_bias")
        try:
            params = SamplingParams.from_defaults(self.model.config.sampling, **asked)
            return replace(params, logit_bias=tuple((bias or {}).items()))
        except AprError as error:
            raise self._refused(error, None) from error

    async def encode(
        self, text: str, allow_special: bool = False, prompt: str | None = None
    ) -> list[int]:
        """Ids of plain text; control tokens in it stay text unless allowed.

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

    async def embed(self, ids: Sequence[int], owner: str = "") -> NDArray[np.float32]:
        """The mean [hidden] of the last hidden states over the ids."""
        try:
            return await self._bridge.embed(ids, owner)
        except AprError as error:
            raise self._refused(error, "input") from error

    async def score(self, ids: Sequence[int], top: int, owner: str = "") -> list[TokenLogprob]:
        """The log probabilities of ids[1:], each with its `top` likeliest rivals."""
        try:
            return await self._bridge.score(ids, top, owner)
        except AprError as error:
            raise self._refused(error, "prompt") from error

    def _constraint(self, request: ChatRequest) -> Callable[[], Constraint] | None:
        """What limits the answer, if anything does. Raises ApiError for a grammar it cannot be.

        Where the choice is the model's, calls are held to their schemas if a tool is strict, or if
        the answer that may come instead is limited.
        """
        tools, choice, wanted = request.shown_tools, request.tool_choice, request.response_format
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
            parallel = request.parallel_tool_calls and not isinstance(choice, Tool)
            return grammar.tool_calls(
                tokenizer, called, not optional, parallel, self._call_form, answer
            )
        except AprError as error:
            raise self._refused(error, "tools" if tools else "response_format") from error

    def _template_tools(self, request: ChatRequest) -> list[dict[str, Any]] | None:
        """The tools as templates show them. Raises ApiError where calls could not be read."""
        if request.shown_tools and self._call_form is None:
            message = f"tools: the chat template of {self.model_id} teaches no calls of tools"
            raise ApiError(400, message, "tools")
        try:
            return template_tools(request.shown_tools)
        except AprError as error:
            raise self._refused(error, "tools") from error

    @cached_property
    def _call_form(self) -> Form | None:
        return form_of(str(self.model.metadata.get("chat_template")))


class ChatStream(AsyncIterator[list[ChatEvent]]):
    """The events of a chat request's answers, as a step's deliveries bring them."""

    def __init__(self, service: ChatService, request: ChatRequest) -> None:
        self._service, self._request = service, request
        self._deliveries: Deliveries | None = None
        tools, parallel = request.shown_tools, request.parallel_tool_calls
        self._parsers = [AnswerParser(tools, index, parallel) for index in range(request.n)]
        self._watch = Stopwatch(service)

    def __await__(self) -> Generator[Any, None, ChatStream]:
        return self._opened().__await__()

    async def _opened(self) -> ChatStream:
        if self._deliveries is None:
            self._deliveries = await self._service.open(self._request)
        return self

    @property
    def prompt_tokens(self) -> int:
        """Of the prompt, cached or not; 0 until the request is queued."""
        return self._deliveries.prompt_tokens if self._deliveries else 0

    async def __anext__(self) -> list[ChatEvent]:
        if self._deliveries is None:
            await self._opened()
        assert self._deliveries is not None
        deltas = await anext(self._deliveries)
        self._watch.saw(deltas)
        events: list[ChatEvent] = []
        for delta in deltas:
            parser = self._parsers[delta.index]
            events += parser.finish(delta) if delta.finish_reason else parser.push(delta)
        return events

    async def aclose(self) -> None:
        """Cancel whatever has not ended."""
        if self._deliveries is not None:
            self._deliveries.close()


class Stopwatch:
    """Tells the service's observer when tokens came."""

    def __init__(self, service: ChatService) -> None:
        self._service = service
        self._last, self._first = time.perf_counter(), True

    def saw(self, deltas: Sequence[Delta]) -> None:
        """Deltas of one step arrived."""
        observer = self._service.observer
        if observer is None or not any(delta.ids or delta.text for delta in deltas):
            return
        now = time.perf_counter()
        tell = observer.first_token if self._first else observer.next_token
        tell(self._service.model_id, now - self._last)
        self._last, self._first = now, False
