"""The request of `/v1/messages`, and what it asks of a model.

Accepted without effect, because no answer depends on them: `cache_control` (prefixes are always
reused), `metadata`, `service_tier`, `speed`, `citations` of text, `eager_input_streaming`,
thinking redacted by another server, and `is_error` of a result, whose text says what went wrong.
Tools marked `defer_loading` are in the prompt from the start. Edits asked for by
`context_management` are not made, and the answer says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from apr_serve.anthropic.thinking import recalled
from apr_serve.chat.protocol_fields import (
    BY_FORM,
    LIST_FORM,
    MAX_NAME,
    TEXT_FORM,
    Exact,
    History,
    JsonObject,
    MoreSampling,
    of_kinds,
    sampling_of,
)
from apr_serve.chat.request import ChatBody, ResponseFormat, Tool, ToolChoice, ToolUse
from apr_serve.chat.request_body import Body
from apr_serve.chat.thinking import by_effort, template_variables
from apr_serve.engine.interface import EngineRequest
from apr_serve.openai.chat_request import MAX_STOPS, StopString

USER_BLOCKS = ("text", "tool_result")
CHOICES: dict[str, ToolChoice] = {"auto": "auto", "any": "required", "none": "none"}
ASSISTANT_BLOCKS = ("text", "thinking", "redacted_thinking", "tool_use")


class TextBlock(History):
    """Text."""

    type: Literal["text"]
    text: str


class ThinkingBlock(History):
    """What the model thought earlier."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(History):
    """Thinking that only another server can read."""

    type: Literal["redacted_thinking"]


class ToolUseBlock(History):
    """A call the model made earlier."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: JsonObject


TextBlocks = list[Annotated[TextBlock, of_kinds("blocks", ["text"])]]
OnlyText = Annotated[
    Annotated[str, Tag(TEXT_FORM)] | Annotated[TextBlocks, Tag(LIST_FORM)], BY_FORM
]


class ToolReference(History):
    """A tool that a search for tools has found: its name."""

    type: Literal["tool_reference"]
    tool_name: str

    @property
    def text(self) -> str:
        """The text that the model reads."""
        return self.tool_name


Results = list[
    Annotated[
        Annotated[TextBlock | ToolReference, Field(discriminator="type")],
        of_kinds("blocks", ["text", "tool_reference"]),
    ]
]


class ToolResultBlock(History):
    """What a call returned."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: (
        Annotated[Annotated[str, Tag(TEXT_FORM)] | Annotated[Results, Tag(LIST_FORM)], BY_FORM]
        | None
    ) = None
    is_error: bool | None = None


UserBlock = Annotated[
    Annotated[TextBlock | ToolResultBlock, Field(discriminator="type")],
    of_kinds("blocks of the user", USER_BLOCKS),
]
AssistantBlock = Annotated[
    Annotated[
        TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock,
        Field(discriminator="type"),
    ],
    of_kinds("blocks of the assistant", ASSISTANT_BLOCKS),
]


UserBlocks = Annotated[list[UserBlock], Field(min_length=1)]


class UserMessage(History):
    """What the user said, and what tools returned."""

    role: Literal["user"]
    content: Annotated[
        Annotated[str, Tag(TEXT_FORM)] | Annotated[UserBlocks, Tag(LIST_FORM)], BY_FORM
    ]


class AssistantMessage(History):
    """What the model answered earlier."""

    role: Literal["assistant"]
    content: Annotated[
        Annotated[str, Tag(TEXT_FORM)] | Annotated[list[AssistantBlock], Tag(LIST_FORM)], BY_FORM
    ]


class SystemMessage(History):
    """Instructions; wherever they stand, the template gets them with the others."""

    role: Literal["system"]
    content: OnlyText


Message = Annotated[UserMessage | AssistantMessage | SystemMessage, Field(discriminator="role")]


class ClientTool(Exact):
    """A tool the client runs."""

    type: Literal["custom"] | None = None
    name: str = Field(min_length=1, max_length=MAX_NAME)
    description: str | None = None
    input_schema: JsonObject
    strict: bool | None = None
    cache_control: Any = None
    eager_input_streaming: bool | None = None
    defer_loading: bool | None = None


class AnyChoice(Exact):
    """Whether tools may, must or must not be called."""

    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool = False


class NamedChoice(Exact):
    """The one tool that must be called."""

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool = False


class ThinkingOn(Exact):
    """Think, up to a number of tokens; `omitted` thinking is not shown."""

    type: Literal["enabled"]
    budget_tokens: int = Field(ge=1)
    display: Literal["summarized", "omitted"] | None = None


class ThinkingAdaptive(Exact):
    """Think as long as it takes."""

    type: Literal["adaptive"]
    display: Literal["summarized", "omitted"] | None = None


class ThinkingOff(Exact):
    """Answer at once."""

    type: Literal["disabled"]


class JsonFormat(Exact):
    """JSON of a schema, which the answer is constrained to."""

    type: Literal["json_schema"]
    schema_: JsonObject = Field(alias="schema")


class OutputConfig(Exact):
    """What the answer's text must be, and how long to think where thinking is adaptive."""

    format: JsonFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class PromptRequest(Body, Exact, ChatBody):
    """What a prompt is made of."""

    model: str | None = Field(None, description="A served model; needed if there are several.")
    messages: list[Message] = Field(min_length=1)
    system: OnlyText | None = None
    tools: list[Annotated[ClientTool, of_kinds("tools", ["custom"])]] | None = None
    tool_choice: Annotated[AnyChoice | NamedChoice, Field(discriminator="type")] | None = None
    thinking: (
        Annotated[ThinkingOn | ThinkingAdaptive | ThinkingOff, Field(discriminator="type")] | None
    ) = None
    output_config: OutputConfig | None = None
    cache_control: Any = None
    context_management: dict[str, Any] | None = None
    chat_template_kwargs: JsonObject | None = None

    @model_validator(mode="after")
    def _ends_with_a_question(self) -> PromptRequest:
        if self.messages[-1].role == "assistant":
            raise PydanticCustomError(
                "unsupported",
                "messages: the last one is the assistant's, but answers cannot be begun by "
                "clients (prefill); the conversation must end with a user message",
            )
        return self

    @model_validator(mode="after")
    def _chosen_tool_is_given(self) -> PromptRequest:
        choice = self.tool_choice
        names = [tool.name for tool in self.tools or ()]
        if isinstance(choice, NamedChoice) and choice.name not in names:
            context = {"name": repr(choice.name)}
            form = "tool_choice: {name} is not among the tools"
            raise PydanticCustomError("unknown_tool", form, context)
        if choice and choice.type == "any" and not names:
            raise PydanticCustomError("unknown_tool", "tool_choice: 'any' needs tools")
        return self

    def chat_messages(self) -> list[dict[str, Any]]:
        """Return the conversation as plain messages; each tool result is a message."""
        messages = _system(self.system or [])
        for message in self.messages:
            if isinstance(message, AssistantMessage):
                messages.append(_assistant(message))
            elif isinstance(message, SystemMessage):
                messages += _system(message.content)
            else:
                messages += _user(message)
        return messages

    def tool_use(self) -> ToolUse:
        """Return the tools, and how they may be called."""
        tools = [
            Tool(t.name, t.description or "", t.input_schema, bool(t.strict))
            for t in self.tools or ()
        ]
        choice = self.tool_choice
        parallel = not (choice and choice.disable_parallel_tool_use)
        if isinstance(choice, NamedChoice):
            named = next(tool for tool in tools if tool.name == choice.name)
            return ToolUse(tools, named, parallel)
        return ToolUse(tools, CHOICES[choice.type] if choice else "auto", parallel)

    def answer_format(self) -> ResponseFormat | None:
        """Return the format that the answer's text must have; None for free text."""
        form = self.output_config.format if self.output_config else None
        return ResponseFormat("json_schema", form.schema_) if form else None

    def thinking_limits(self) -> tuple[bool | None, int | None]:
        """Return (whether to think, maximum thinking tokens); None leaves it to the template."""
        thinking, (override, _) = self.thinking, template_variables(self.chat_template_kwargs)
        thinks, budget = None if thinking is None else False, None
        if isinstance(thinking, ThinkingOn):
            thinks, budget = True, thinking.budget_tokens
        elif isinstance(thinking, ThinkingAdaptive):
            effort = self.output_config.effort if self.output_config else None
            thinks, budget = True, by_effort(effort)[1]
        return (thinks if override is None else override), budget

    def template_variables(self) -> dict[str, Any]:
        """Return further variables for the template."""
        return template_variables(self.chat_template_kwargs)[1]


class MessagesRequest(PromptRequest, MoreSampling):
    """A prompt, and how to answer it."""

    max_tokens: int = Field(ge=1)
    stop_sequences: list[StopString] | None = Field(None, max_length=MAX_STOPS)
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    speed: str | None = None
    thread: dict[str, Any] | None = Field(
        None, description="Refused by a code that tells clients to send the whole conversation."
    )

    @model_validator(mode="after")
    def _leaves_room_for_an_answer(self) -> MessagesRequest:
        if isinstance(self.thinking, ThinkingOn) and self.thinking.budget_tokens >= self.max_tokens:
            raise PydanticCustomError(
                "no_room", "thinking.budget_tokens must be less than max_tokens, which includes it"
            )
        return self

    def asked_sampling(self) -> dict[str, float | int]:
        """Return the sampling parameters of the request, by the names of `SamplingParams`."""
        return sampling_of(self)

    def generation(self, prompt_ids: Sequence[int]) -> EngineRequest:
        """Return the request for the engine, without sampling and constraint."""
        stop = tuple(self.stop_sequences or ())
        return EngineRequest(prompt_ids, max_tokens=self.max_tokens, stop=stop)

    @property
    def hides_thinking(self) -> bool:
        """Whether the text of thinking is left out."""
        return getattr(self.thinking, "display", None) == "omitted"


def _system(content: OnlyText) -> list[dict[str, Any]]:
    """Return one message a block: all protocols join several in the same way."""
    texts = [content] if isinstance(content, str) else [block.text for block in content]
    return [{"role": "system", "content": text} for text in texts]


def _user(message: UserMessage) -> list[dict[str, Any]]:
    if isinstance(message.content, str):
        return [{"role": "user", "content": message.content}]
    messages: list[dict[str, Any]] = []
    for block in message.content:
        if isinstance(block, ToolResultBlock):
            messages.append(_result(block))
            continue
        if not messages or messages[-1]["role"] != "user":
            messages.append({"role": "user", "content": []})
        messages[-1]["content"].append({"type": "text", "text": block.text})
    return messages


def _result(block: ToolResultBlock) -> dict[str, Any]:
    content = block.content or ""
    text = content if isinstance(content, str) else "\n".join(part.text for part in content)
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}


def _assistant(message: AssistantMessage) -> dict[str, Any]:
    if isinstance(message.content, str):
        return {"role": "assistant", "content": message.content}
    blocks = message.content
    plain: dict[str, Any] = {"role": "assistant"}
    plain["content"] = "".join(b.text for b in blocks if isinstance(b, TextBlock))
    thoughts = [recalled(b.thinking, b.signature) for b in blocks if isinstance(b, ThinkingBlock)]
    if thoughts:
        plain["reasoning_content"] = "".join(thoughts)
    calls = [_call(b) for b in blocks if isinstance(b, ToolUseBlock)]
    return plain | ({"tool_calls": calls} if calls else {})


def _call(block: ToolUseBlock) -> dict[str, Any]:
    function = {"name": block.name, "arguments": block.input}
    return {"id": block.id, "type": "function", "function": function}
