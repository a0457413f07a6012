"""Tools of `/v1/responses`: how each is shown to the model, and how clients name its calls.

Functions are shown as they are. A custom tool, whose input is free text, is shown as a function
with one text argument; its grammar is shown too, but not enforced. Functions of a namespace are
shown with its name as a prefix. Tools of any other type run on OpenAI's servers or in its clients
and are unknown here: they are left out, and the response says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag
from pydantic_core import from_json

from apr_serve.chat.protocol_fields import MAX_NAME, Exact, History, JsonObject
from apr_serve.chat.request import Tool

INPUT = "input"  # the argument that holds a custom tool's text
OTHER = "other"


class FunctionTool(Exact):
    """A function the model may call."""

    type: Literal["function"]
    name: str = Field(min_length=1, max_length=MAX_NAME)
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None
    defer_loading: bool | None = Field(None, description="Tools are in the prompt in any case.")


class TextFormat(Exact):
    """The form of a custom tool's input."""

    type: Literal["text", "grammar"]
    syntax: Literal["lark", "regex"] | None = None
    definition: str | None = None


class CustomTool(Exact):
    """A tool that takes free text."""

    type: Literal["custom"]
    name: str = Field(min_length=1, max_length=MAX_NAME)
    description: str | None = None
    format: TextFormat | None = None
    defer_loading: bool | None = None


class NamespaceTool(Exact):
    """Tools that belong together, such as those of one MCP server."""

    type: Literal["namespace"]
    name: str = Field(min_length=1, max_length=MAX_NAME)
    description: str | None = None
    tools: list[Annotated[FunctionTool | CustomTool, Field(discriminator="type")]]


class OtherTool(History):
    """A tool that is not run here."""

    type: str


def _kind(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if kind is None or kind in ("function", "custom", "namespace") else OTHER


AnyTool = Annotated[
    Annotated[FunctionTool, Tag("function")]
    | Annotated[CustomTool, Tag("custom")]
    | Annotated[NamespaceTool, Tag("namespace")]
    | Annotated[OtherTool, Tag(OTHER)],
    Discriminator(_kind),
]


@dataclass(frozen=True, slots=True)
class KnownTool:
    """A tool as shown to the model, and its names for clients."""

    shown: Tool
    name: str
    custom: bool = False
    namespace: str | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """The fields that every call's item has from its tool."""
        inside = {"namespace": self.namespace} if self.namespace else {}
        return {"name": self.name, **inside}


def known_tools(tools: Sequence[Any]) -> list[KnownTool]:
    """Return all tools that are shown to the model."""
    return [known for tool in tools for known in _known(tool)]


def ignored_tools(tools: Sequence[Any]) -> list[str]:
    """Return the types of the tools that are not shown to the model."""
    return list(dict.fromkeys(tool.type for tool in tools if isinstance(tool, OtherTool)))


def _known(tool: Any, namespace: str | None = None) -> Iterator[KnownTool]:
    if isinstance(tool, NamespaceTool):
        for inner in tool.tools:
            yield from _known(inner, tool.name)
    elif isinstance(tool, FunctionTool):
        name, about = shown_name(tool.name, namespace), tool.description or ""
        shown = Tool(name, about, tool.parameters or {}, tool.strict is True)
        yield KnownTool(shown, tool.name, namespace=namespace)
    elif isinstance(tool, CustomTool):
        shown = Tool(shown_name(tool.name, namespace), tool.description or "", _one_text(tool))
        yield KnownTool(shown, tool.name, custom=True, namespace=namespace)


def shown_name(name: str, namespace: str | None) -> str:
    """Return the name by which the model calls a tool."""
    return name if namespace is None else f"{namespace.removesuffix('__')}__{name}"


def _one_text(tool: CustomTool) -> dict[str, Any]:
    text = {"type": "string"}
    if tool.format and tool.format.definition:
        text["description"] = f"By this {tool.format.syntax} grammar:\n{tool.format.definition}"
    return {
        "type": "object", "properties": {INPUT: text}, "required": [INPUT],
        "additionalProperties": False,
    }  # fmt: skip


def input_of(arguments: str) -> str:
    """Return the text that a custom tool was called with, or its beginning if it was cut off."""
    try:
        value = from_json(arguments, allow_partial="trailing-strings").get(INPUT, "")
    except (ValueError, AttributeError):
        return arguments
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "replace").decode()  # an unpaired surrogate could not be sent
