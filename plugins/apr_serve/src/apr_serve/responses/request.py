"""The request of `/v1/responses`, and what it asks of a model.

Accepted without effect, because no answer depends on them: `user`, `safety_identifier`,
`prompt_cache_key`, `prompt_cache_retention`, `prompt_cache_options`, `service_tier`,
`client_metadata`, `access_programs`, `max_tool_calls` (of built-in tools, which there are none of),
`client_metadata`, `access_programs`, `max_tool_calls` (only for built-in tools, and none exist),
`content`), and `include` of what only built-in tools and encrypted reasoning have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, Tag, model_validator
from pydantic_core import PydanticCustomError

from apr_serve.chat.protocol_fields import (
    BY_FORM,
    LIST_FORM,
    TEXT_FORM,
    Exact,
    JsonObject,
    MoreSampling,
    of_kinds,
    only,
    sampling_of,
)
from apr_serve.chat.request import ChatBody, ResponseFormat, Tool, ToolUse
from apr_serve.chat.request_body import Body
from apr_serve.chat.thinking import by_effort, template_variables
from apr_serve.engine.interface import EngineRequest
from apr_serve.http.errors import ApiError
from apr_serve.responses.items import Item, MessageItem, messages_of
from apr_serve.responses.tools import AnyTool, KnownTool, ignored_tools, known_tools

LOGPROBS = "message.output_text.logprobs"


class NamedTool(Exact):
    """The one tool that must be called, or one of those allowed."""

    type: Literal["function", "custom"]
    name: str


class AllowedTools(Exact):
    """The tools that may, or must, be called now, out of all that are given."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[Annotated[NamedTool, of_kinds("tools", ["function", "custom"])]] = Field(
        min_length=1
    )


class PlainText(Exact):
    """Text without constraint."""

    type: Literal["text"]


class AnyJson(Exact):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Exact):
    """JSON of a schema, which the answer is constrained to whether `strict` or not."""

    type: Literal["json_schema"]
    name: str = Field(min_length=1)
    schema_: JsonObject = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


Format = Annotated[PlainText | AnyJson | JsonSchema, Field(discriminator="type")]


class TextOptions(Exact):
    """What the answer's text must be."""

    format: Format | None = None
    verbosity: Annotated[str | None, only("medium", why="nothing would change")] = None


class ReasoningOptions(Exact):
    """Whether the model thinks first."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Annotated[
        str | None,
        only("auto", "current_turn", why="the template leaves the thoughts of earlier turns out"),
    ] = None


class StreamOptions(Exact):
    """Streams are not padded, whatever is asked for."""

    include_obfuscation: bool | None = None


Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


class ResponsesRequest(Body, MoreSampling, ChatBody):
    """The request of a client; `continuing` adds the items of earlier responses."""

    _earlier: Sequence[Item] = PrivateAttr(())

    model: str | None = Field(None, description="A served model; needed if there are several.")
    input: Annotated[
        Annotated[str, Tag(TEXT_FORM)] | Annotated[list[Item], Tag(LIST_FORM)], BY_FORM
    ]
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: Annotated[
        Any, only(why="send the whole conversation, or previous_response_id")
    ] = None
    prompt: Annotated[Any, only(why="prompts are not kept here")] = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    background: Annotated[bool | None, only(False, why="a client waits for its answer")] = None
    truncation: Annotated[
        str | None, only("disabled", why="nothing is left out of a conversation unasked")
    ] = None
    include: list[Includable] | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[AnyTool] | None = Field(
        None, description="Tools that are not run here are left out beside others that are."
    )
    tool_choice: (
        Literal["auto", "none", "required"]
        | Annotated[NamedTool | AllowedTools, Field(discriminator="type")]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    chat_template_kwargs: JsonObject | None = None
    reasoning: ReasoningOptions | None = None
    metadata: dict[str, str] | None = Field(None, max_length=16)
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    service_tier: str | None = None
    client_metadata: dict[str, Any] | None = None
    access_programs: Any = None
    max_tool_calls: int | None = None

    @model_validator(mode="after")
    def _some_tool_is_known(self) -> ResponsesRequest:
        if self.ignored_tools and not self.known_tools:
            context = {"kinds": ", ".join(map(repr, self.ignored_tools))}
            form = "tools: none of these is run here, and no function is among them: {kinds}"
            raise PydanticCustomError("unsupported", form, context)
        return self

    @property
    def known_tools(self) -> list[KnownTool]:
        """The tools shown to the model."""
        return known_tools(self.tools or ())

    @property
    def ignored_tools(self) -> list[str]:
        """The types of the tools that are not shown to the model."""
        return ignored_tools(self.tools or ())

    @property
    def items(self) -> list[Item]:
        """The input as items."""
        if isinstance(self.input, str):
            return [MessageItem(role="user", content=self.input)]
        return self.input

    @property
    def wanted_logprobs(self) -> int | None:
        """How many alternatives of each token to report; None for no log probabilities."""
        if self.top_logprobs is None and LOGPROBS in (self.include or ()):
            return 0
        return self.top_logprobs

    def continuing(self, items: Sequence[Item], earlier: Sequence[Item]) -> ResponsesRequest:
        """Return the same request with these items as its input, after earlier ones."""
        body = self.model_copy(update={"input": list(items)})
        body._earlier = earlier
        return body

    def chat_messages(self) -> list[dict[str, Any]]:
        """Return the conversation as plain messages."""
        system = [{"role": "system", "content": self.instructions}] if self.instructions else []
        return system + messages_of([*self._earlier, *self.items])

    def asked_sampling(self) -> dict[str, float | int]:
        """Return the sampling parameters of the request, by the names of `SamplingParams`."""
        return sampling_of(self)

    def generation(self, prompt_ids: Sequence[int]) -> EngineRequest:
        """Return the request for the engine, without sampling and constraint."""
        return EngineRequest(
            prompt_ids, max_tokens=self.max_output_tokens, top_logprobs=self.wanted_logprobs
        )

    def tool_use(self) -> ToolUse:
        """Return the tools that may be called, and which must be."""
        known, choice = self.known_tools, self.tool_choice
        tools, parallel = [tool.shown for tool in known], self.parallel_tool_calls is not False
        if isinstance(choice, NamedTool):
            return ToolUse(tools, _named(known, choice), parallel)
        if isinstance(choice, AllowedTools):
            allowed = [_named(known, wanted) for wanted in choice.tools]
            return ToolUse(allowed, choice.mode, parallel)
        if choice == "required" and not tools:
            raise ApiError(400, "tool_choice 'required' needs tools", "tool_choice")
        return ToolUse(tools, choice or "auto", parallel)

    def answer_format(self) -> ResponseFormat | None:
        """Return the format that the answer's text must have; None for free text."""
        form = self.text.format if self.text else None
        if isinstance(form, JsonSchema):
            return ResponseFormat("json_schema", form.schema_)
        return ResponseFormat("json_object") if isinstance(form, AnyJson) else None

    def thinking_limits(self) -> tuple[bool | None, int | None]:
        """Return (whether to think, maximum thinking tokens); None leaves it to the template."""
        thinks, budget = by_effort(self.reasoning.effort if self.reasoning else None)
        override, _ = template_variables(self.chat_template_kwargs)
        return (thinks if override is None else override), budget

    def template_variables(self) -> dict[str, Any]:
        """Return further variables for the template."""
        return template_variables(self.chat_template_kwargs)[1]


def _named(tools: Sequence[KnownTool], wanted: NamedTool) -> Tool:
    for tool in tools:
        if wanted.name in (tool.name, tool.shown.name):
            return tool.shown
    raise ApiError(400, f"tool_choice names {wanted.name!r}, which is no tool here", "tool_choice")
