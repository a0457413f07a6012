"""The events that chat protocols translate: the engine's deltas, and tool calls in them."""

from __future__ import annotations

from dataclasses import dataclass

from apr_core.runtime import Delta


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """Answer `index` begins its tool call number `call`. `id` is unique."""

    index: int
    call: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """A fragment of the call's arguments; all fragments joined are one JSON object.

    If the answer was cut off within the call, they are only the beginning of one.
    """

    index: int
    call: int
    fragment: str


ChatEvent = Delta | ToolCallStart | ToolCallArguments
