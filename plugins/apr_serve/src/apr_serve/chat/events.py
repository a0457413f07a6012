"""What all chat protocols are translated to, and the events they are answered from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from apr_core.runtime import Channel, EndedBy, TokenLogprob, Usage

ToolChoice = Literal["auto", "none", "required"]
FinishReason = Literal["stop", "length", "tool_calls", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call; `parameters` is its JSON schema."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False  # arguments are constrained to the schema even where the choice is auto


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """What the answer's text must be: any JSON object, or JSON of a schema."""

    kind: Literal["json_object", "json_schema"]
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One turn, whatever protocol it came by.

    `messages` are as OpenAI has them, already plain: content a string or parts, tool calls with
    arguments as strings or mappings; `text.messages` makes them what templates take. `sampling`
    holds only what was asked for; the model's defaults fill in. `enable_thinking` None leaves it to
    the template, `template_variables` are further names for it.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Tool] = ()
    tool_choice: ToolChoice | Tool = "auto"
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    sampling: Mapping[str, float | int] = field(default_factory=dict)
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    max_tokens: int | None = None
    min_tokens: int = 0  # before a token that ends the answer is allowed
    ignore_stop_tokens: bool = False
    use_cache: bool = True  # of prefixes
    add_generation_prompt: bool = True
    stop: Sequence[str] = ()
    n: int = 1
    top_logprobs: int | None = None
    enable_thinking: bool | None = None
    thinking_budget: int | None = None
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    owner: str = ""

    @property
    def shown_tools(self) -> Sequence[Tool]:
        """The tools the model is told of: none where it may call none."""
        return () if self.tool_choice == "none" else self.tools


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text of answer `index`: reasoning, or what a person reads."""

    index: int
    text: str
    channel: Channel = "text"
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """Answer `index` begins its call number `call` of a tool. `id` is unique."""

    index: int
    call: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """A fragment of the call's arguments; all of them joined are one JSON object.

    Only its beginning, where the answer was cut off within the call.
    """

    index: int
    call: int
    fragment: str


@dataclass(frozen=True, slots=True)
class Finished:
    """Answer `index` is complete: its last event. `stop_string` is what ended it, if any."""

    index: int
    reason: FinishReason
    ended_by: EndedBy
    usage: Usage
    error: Exception | None = None
    stop_string: str | None = None


ChatEvent = TextDelta | ToolCallStart | ToolCallArguments | Finished
