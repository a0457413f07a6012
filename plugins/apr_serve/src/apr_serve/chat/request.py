"""What the service reads of a chat's request, whatever protocol it came by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from apr_core.runtime import GenerationRequest

ToolChoice = Literal["auto", "none", "required"]


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
class ToolUse:
    """The tools of a request, which of them must be called, and whether several may be at once."""

    tools: Sequence[Tool] = ()
    choice: ToolChoice | Tool = "auto"
    parallel: bool = True

    @property
    def shown(self) -> Sequence[Tool]:
        """The tools the model is told of: none where it may call none."""
        return () if self.choice == "none" else self.tools


NO_TOOLS = ToolUse()


class ChatBody:
    """A base of the requests of chat protocols. What it answers is all that the service asks.

    Any of these raises ApiError for what does not fit together.
    """

    def chat_messages(self) -> Sequence[Mapping[str, Any]]:
        """The conversation as OpenAI has it: content a string or parts, calls with arguments."""
        raise NotImplementedError

    def generation(self, prompt_ids: Sequence[int]) -> GenerationRequest:
        """How to answer a prompt, but for sampling, thinking and what constrains the answer."""
        return GenerationRequest(prompt_ids)

    def tool_use(self) -> ToolUse:
        """The tools, and how they may be called."""
        return NO_TOOLS

    def answer_format(self) -> ResponseFormat | None:
        """What the answer's text must be."""
        return None

    def asked_sampling(self) -> Mapping[str, float | int]:
        """The sampling that is asked for, by the names of `SamplingParams`."""
        return {}

    def bias(self) -> Mapping[int, float]:
        """What is added to logits, by token id."""
        return {}

    def thinking_limits(self) -> tuple[bool | None, int | None]:
        """Whether to think, and how many tokens at most; None leaves it to the template."""
        return None, None

    def template_variables(self) -> Mapping[str, Any]:
        """Further names for the template."""
        return {}

    def begins_answer(self) -> bool:
        """Whether the prompt ends with the header of an answer."""
        return True
