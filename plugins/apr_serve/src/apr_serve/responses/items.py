"""Items of a conversation in `/v1/responses`, and their conversion to messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from apr_serve.chat.protocol_fields import BY_FORM, LIST_FORM, TEXT_FORM, History, of_kinds
from apr_serve.http.errors import ApiError
from apr_serve.responses.tools import INPUT, shown_name

TEXT_PARTS = ("input_text", "output_text", "text", "refusal")
ITEMS = ("message", "function_call", "function_call_output", "custom_tool_call",
         "custom_tool_call_output", "reasoning", "item_reference")  # fmt: skip


class TextPart(History):
    """Text of any author, by any of its type names."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class RefusalPart(History):
    """The text of an earlier refusal."""

    type: Literal["refusal"]
    refusal: str


class ReasoningPart(History):
    """Reasoning, whole or summarized."""

    type: Literal["reasoning_text", "summary_text", "text"]
    text: str


Part = Annotated[
    Annotated[TextPart | RefusalPart, Field(discriminator="type")],
    of_kinds("content parts", TEXT_PARTS),
]
Content = Annotated[Annotated[str, Tag(TEXT_FORM)] | Annotated[list[Part], Tag(LIST_FORM)], BY_FORM]


class MessageItem(History):
    """A message of one side."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content


class FunctionCallItem(History):
    """A call the model made earlier."""

    type: Literal["function_call"]
    call_id: str
    name: str
    namespace: str | None = None
    arguments: str


class CustomCallItem(History):
    """A call of a tool that takes text."""

    type: Literal["custom_tool_call"]
    call_id: str
    name: str
    namespace: str | None = None
    input: str


class CallOutputItem(History):
    """What a call returned."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: Content


class ReasoningItem(History):
    """What the model thought earlier."""

    type: Literal["reasoning"]
    summary: list[ReasoningPart] = Field(default_factory=list)
    content: list[ReasoningPart] | None = None


class ItemReference(History):
    """The id of an item in a stored response."""

    type: Literal["item_reference"]
    id: str


def _item_kind(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "message" if kind is None else kind  # messages may be written without it


Item = Annotated[
    Annotated[
        Annotated[MessageItem, Tag("message")]
        | Annotated[FunctionCallItem, Tag("function_call")]
        | Annotated[CallOutputItem, Tag("function_call_output")]
        | Annotated[CustomCallItem, Tag("custom_tool_call")]
        | Annotated[CallOutputItem, Tag("custom_tool_call_output")]
        | Annotated[ReasoningItem, Tag("reasoning")]
        | Annotated[ItemReference, Tag("item_reference")],
        Discriminator(_item_kind),
    ],
    of_kinds("items", ITEMS, default="message"),
]


def messages_of(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Return the items as messages: reasoning, text and calls of one turn become one message."""
    messages: list[dict[str, Any]] = []
    for item in items:
        if isinstance(item, CallOutputItem):
            content = _text(item.output)
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": content})
        elif isinstance(item, ItemReference):
            raise ApiError(400, f"item {item.id!r} is not kept here (any more): send it", "input")
        elif isinstance(item, FunctionCallItem | CustomCallItem):
            _answer(messages).setdefault("tool_calls", []).append(_call(item))
        elif isinstance(item, ReasoningItem):
            answer = _answer(messages, "content", "tool_calls")
            thought = "".join(part.text for part in item.content or item.summary)
            answer["reasoning_content"] = answer.get("reasoning_content", "") + thought
        elif item.role == "assistant":
            _answer(messages, "content", "tool_calls")["content"] = _text(item.content)
        else:
            messages.append({"role": item.role, "content": _text(item.content)})
    for message in messages:
        message.setdefault("content", "")
    return messages


def _answer(messages: list[dict[str, Any]], *without: str) -> dict[str, Any]:
    """Return the assistant's message to extend: the last one, unless it has any of these fields."""
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant" or any(name in last for name in without):
        messages.append({"role": "assistant"})
    return messages[-1]


def _call(item: FunctionCallItem | CustomCallItem) -> dict[str, Any]:
    arguments = item.arguments if isinstance(item, FunctionCallItem) else {INPUT: item.input}
    function = {"name": shown_name(item.name, item.namespace), "arguments": arguments}
    return {"id": item.call_id, "type": "function", "function": function}


def _text(content: Content) -> str:
    if isinstance(content, str):
        return content
    return "".join(p.refusal if isinstance(p, RefusalPart) else p.text for p in content)
