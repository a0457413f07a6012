"""The request of `/v1/chat/completions`, and what it asks of a model.

Accepted without effect, because no answer depends on them: `user`, `metadata`, `store`,
`service_tier`, `safety_identifier`, `prompt_cache_key`, `prompt_cache_retention`,
`prompt_cache_options`, `prediction`, `cache_control` of tools, and
`stream_options.include_obfuscation`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from apr_serve.chat.protocol_fields import Exact, MoreSampling, of_kinds, only, sampling_of
from apr_serve.chat.request import ChatBody, ResponseFormat, Tool, ToolUse
from apr_serve.chat.request_body import Body
from apr_serve.engine.interface import EngineRequest
from apr_serve.http.errors import ApiError

MAX_STOPS, MAX_STOP_LENGTH = 16, 1024
MAX_ANSWERS = 16  # n
MAX_TOKENS = 2**31 - 1
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
# thinking tokens before thinking is ended; None: no limit
BUDGETS: dict[str, int | None] = {
    "low": 1024, "medium": 4096, "high": 16384, "xhigh": None, "max": None,
}  # fmt: skip
TOKEN_ID = re.compile("[0-9]{1,18}")
OWN_NAMES = ("messages", "tools", "add_generation_prompt")  # variables that the server sets
TEXT = {"anyOf": [{"type": "string"}, {"type": "array"}]}
# For the published schema; messages are fully checked where they are read.
MESSAGE: dict[str, Any] = {
    "anyOf": [
        {
            "type": "object",
            "properties": {"role": {"enum": ["system", "developer", "user"]}, "content": TEXT},
            "required": ["role", "content"],
        },
        {
            "type": "object",
            "properties": {
                "role": {"enum": ["assistant", "tool"]},
                "content": {"anyOf": [*TEXT["anyOf"], {"type": "null"}]},
                "reasoning_content": {"type": ["string", "null"]},
                "tool_calls": {"type": "array"},
                "tool_call_id": {"type": "string"},
            },
            "required": ["role"],
        },
    ]
}
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
Stop = StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None


class StreamOptions(Exact):
    """How to stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Sampled(MoreSampling):
    """Parameters that chat and plain completions share."""

    model: str | None = Field(None, description="A served model; needed if there are several.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=1024, description="What is added to a token id's logit."
    )
    stop: Stop = None
    n: int | None = Field(None, ge=1, le=MAX_ANSWERS)
    best_of: Annotated[int | None, only(1, why="use n")] = None
    user: str | None = None
    repeat_penalty: float | None = Field(
        None, ge=0.01, le=100, description="Another name of repetition_penalty."
    )
    n_predict: int | None = Field(
        None, ge=-1, le=MAX_TOKENS, description="Another name of max_tokens; -1: no limit."
    )
    min_tokens: int | None = Field(
        None, ge=0, le=MAX_TOKENS, description="Tokens before one that ends the answer is allowed."
    )
    ignore_eos: bool | None = Field(None, description="Go on after tokens that end answers.")
    cache_prompt: bool | None = Field(None, description="false: read the whole prompt again.")
    skip_special_tokens: bool | None = Field(
        None, description="false: control tokens are part of the text."
    )

    def bias(self) -> dict[int, float]:
        """Return `logit_bias` by token id. Raises ApiError for invalid ids."""
        biases = self.logit_bias or {}
        if not all(TOKEN_ID.fullmatch(token) for token in biases):
            raise ApiError(400, "logit_bias: every key must be a token id", "logit_bias")
        return {int(token): bias for token, bias in biases.items()}

    def limit(self, *limits: int | None) -> int | None:
        """Return the smallest number of tokens that is asked for; None if there is no limit."""
        wanted = (*limits, None if self.n_predict == -1 else self.n_predict)
        return min((n for n in wanted if n is not None), default=None)

    def asked_sampling(self) -> dict[str, float | int]:
        """Return the sampling parameters of the request, by the names of `SamplingParams`."""
        sampling = sampling_of(self)
        if self.repeat_penalty is not None:
            sampling.setdefault("repetition_penalty", self.repeat_penalty)
        return sampling

    def wanted_tokens(self) -> int | None:
        """Return the most tokens an answer may have; None if the client sets no limit."""
        raise NotImplementedError

    def wanted_logprobs(self) -> int | None:
        """Return how many alternatives of each token to report; None for no log probabilities."""
        raise NotImplementedError

    def generation(self, prompt_ids: Sequence[int]) -> EngineRequest:
        """Return the request for the engine, without sampling and constraint.

        Raises ApiError if it wants more tokens than it allows.
        """
        least, most = self.min_tokens or 0, self.wanted_tokens()
        if most is not None and least > most:
            raise ApiError(400, f"min_tokens is {least}, more than the limit, {most}", "min_tokens")
        return EngineRequest(
            prompt_ids,
            max_tokens=most,
            min_tokens=least,
            stop=self.stops(),
            n=self.n or 1,
            top_logprobs=self.wanted_logprobs(),
            ignore_stop_tokens=self.ignore_eos is True,
            skip_special_tokens=self.skip_special_tokens is not False,
            use_cache=self.cache_prompt is not False,
        )

    def stops(self) -> tuple[str, ...]:
        """Return the stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class Thinking(Exact):
    """Whether to think, and how many tokens at most."""

    type: Literal["enabled", "adaptive", "auto", "disabled"]
    budget_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)


def _spelled_out(value: Any) -> Any:
    return {"type": "enabled" if value else "disabled"} if isinstance(value, bool) else value


class Reasoning(Exact):
    """How much to think, as routers of several providers write it."""

    effort: Effort | None = None
    max_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)
    enabled: bool | None = None


class Function(Exact):
    """A function the model may call."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema.")
    strict: bool | None = None


class FunctionTool(Exact):
    """A tool: only functions are supported."""

    type: Literal["function"]
    function: Function
    cache_control: Any = None


class FunctionName(Exact):
    """The name of a function."""

    name: str


class NamedChoice(Exact):
    """The one function to be called."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(Exact):
    """The functions that may, or must, be called now, out of all that are given."""

    mode: Literal["auto", "required"]
    tools: list[NamedChoice] = Field(min_length=1)


class AllowedChoice(Exact):
    """A choice among some of the functions."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class JsonSchema(Exact):
    """The schema an answer must have."""

    name: str = Field(max_length=64)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class Format(Exact):
    """What the answer's text is to be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(
        None, alias="schema", description="Of a json_object, as some servers have it."
    )


class ChatCompletionRequest(Body, Sampled, ChatBody):
    """A chat, and how to answer it."""

    messages: list[dict[str, Any]] = Field(
        min_length=1,
        max_length=10_000,
        description="As OpenAI has them. Content is text or parts of text.",
        json_schema_extra={"items": MESSAGE},
    )
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    reasoning_effort: Effort | None = Field(
        None, description="none and minimal: no thinking; else thinking, of limited length."
    )
    thinking_budget: int | None = Field(
        None, ge=0, le=MAX_TOKENS, description="Reasoning tokens after which the thought is closed."
    )
    thinking: Annotated[Thinking | None, BeforeValidator(_spelled_out)] = Field(
        None, description="As Anthropic has it, or true or false."
    )
    enable_thinking: bool | None = None
    reasoning: Reasoning | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Variables of the model's template, such as `enable_thinking`."
    )
    add_generation_prompt: bool | None = Field(
        None, description="false: without the header of an answer."
    )
    response_format: Format | None = None
    tools: list[Annotated[FunctionTool, of_kinds("tools", ("function",))]] | None = Field(
        None, max_length=128
    )
    tool_choice: (
        Literal["none", "auto", "required"]
        | Annotated[NamedChoice | AllowedChoice, Field(discriminator="type")]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    modalities: Annotated[list[str] | None, only(["text"], why="this server answers in text")] = (
        None
    )
    verbosity: Annotated[str | None, only("medium", why="how much is said is the model's own")] = (
        None
    )
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None

    def chat_messages(self) -> Sequence[Mapping[str, Any]]:
        """Return the messages as they came."""
        return self.messages

    def wanted_tokens(self) -> int | None:
        """Return the most tokens an answer may have; None if the client sets no limit."""
        return self.limit(self.max_tokens, self.max_completion_tokens)

    def wanted_logprobs(self) -> int | None:
        """Return how many alternatives of each token to report; None for no log probabilities."""
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def template_variables(self) -> dict[str, Any]:
        """Return the variables for the template, without `enable_thinking`."""
        variables = dict(self.chat_template_kwargs or {})
        variables.pop("enable_thinking", None)
        return variables

    def begins_answer(self) -> bool:
        """Return True if the prompt ends with the header of an answer."""
        return self.add_generation_prompt is not False

    def thinking_limits(self) -> tuple[bool | None, int | None]:
        """Return (whether to think, maximum tokens); template variables override the effort."""
        variables = self.chat_template_kwargs or {}
        for name in OWN_NAMES:
            if name in variables:
                raise ApiError(
                    400, f"chat_template_kwargs may not set {name!r}", "chat_template_kwargs"
                )
        override = variables.get("enable_thinking")
        if override is not None and not isinstance(override, bool):
            raise ApiError(
                400,
                "chat_template_kwargs.enable_thinking must be true or false",
                "chat_template_kwargs",
            )
        budget, effort = self.thinking_budget, self.reasoning_effort
        if override is None:
            override = self.enable_thinking
        if self.thinking is not None:
            override = self.thinking.type != "disabled" if override is None else override
            budget = self.thinking.budget_tokens if budget is None else budget
        if self.reasoning is not None:
            override = self.reasoning.enabled if override is None else override
            budget = self.reasoning.max_tokens if budget is None else budget
            effort = effort or self.reasoning.effort
        if effort is None:
            return override, budget
        thinks = effort in BUDGETS
        return (thinks if override is None else override), (
            BUDGETS.get(effort) if budget is None else budget
        )

    def tool_use(self) -> ToolUse:
        """Return the tools that may be called, and which must be."""
        tools, choice = tuple(_tool(tool.function) for tool in self.tools or ()), self.tool_choice
        parallel = self.parallel_tool_calls is not False
        if isinstance(choice, NamedChoice):
            return ToolUse(tools, _named(tools, choice), parallel)
        if isinstance(choice, AllowedChoice):
            allowed = choice.allowed_tools
            chosen = tuple(_named(tools, wanted) for wanted in allowed.tools)
            return ToolUse(chosen, allowed.mode, parallel)
        if choice == "required" and not tools:
            raise ApiError(400, "tool_choice 'required' needs tools", "tool_choice")
        return ToolUse(tools, choice or "auto", parallel)

    def answer_format(self) -> ResponseFormat | None:
        """Return the format that the answer's text must have; None for free text."""
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        if wanted.type == "json_object":
            return ResponseFormat(
                "json_schema" if wanted.schema_ else "json_object", wanted.schema_
            )
        if wanted.json_schema is None:
            raise ApiError(400, "response_format json_schema needs json_schema", "response_format")
        return ResponseFormat("json_schema", wanted.json_schema.schema_ or {})


def _named(tools: Sequence[Tool], wanted: NamedChoice) -> Tool:
    name = wanted.function.name
    named = next((tool for tool in tools if tool.name == name), None)
    if named is None:
        raise ApiError(400, f"tool_choice names {name!r}, which is no tool here", "tool_choice")
    return named


def _tool(function: Function) -> Tool:
    parameters = function.parameters or {"type": "object", "properties": {}}
    return Tool(function.name, function.description or "", parameters, function.strict is True)
