"""What the service reads from a chat request of any protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from apr_serve.engine.interface import EngineRequest

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
    """The tools of a request, which of them must be called, and whether in parallel."""

    tools: Sequence[Tool] = ()
    choice: ToolChoice | Tool = "auto"
    parallel: bool = True

    @property
    def shown(self) -> Sequence[Tool]:
        """The tools shown to the model: none where it may call none."""
        return () if self.choice == "none" else self.tools


NO_TOOLS = ToolUse()


class ChatBody:
    """A base of the requests of chat protocols: its methods are all that the service reads.

    Each of them raises ApiError for fields that contradict each other.
    """

    def chat_messages(self) -> Sequence[Mapping[str, Any]]:
        """Return the conversation in OpenAI's form: content as a string or as parts."""
        raise NotImplementedError

    def generation(self, prompt_ids: Sequence[int]) -> EngineRequest:
        """Return the request for the engine, without sampling, thinking and constraint."""
        return EngineRequest(prompt_ids)

    def tool_use(self) -> ToolUse:
        """Return the tools, and how they may be called."""
        return NO_TOOLS

    def answer_format(self) -> ResponseFormat | None:
        """Return the format that the answer's text must have; None for free text."""
        return None

    def asked_sampling(self) -> Mapping[str, float | int]:
        """Return the sampling parameters of the request, by the names of `SamplingParams`."""
        return {}

    def bias(self) -> Mapping[int, float]:
        """Return what is added to logits, by token id."""
        return {}

    def thinking_limits(self) -> tuple[bool | None, int | None]:
        """Return (whether to think, maximum thinking tokens); None leaves it to the template."""
        return None, None

    def template_variables(self) -> Mapping[str, Any]:
        """Return further variables for the template."""
        return {}

    def begins_answer(self) -> bool:
        """Return True if the prompt ends with the header of an answer."""
        return True
