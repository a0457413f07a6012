"""What chat protocols make their answers of: the engine's deltas, and calls of tools in them."""

from __future__ import annotations

from dataclasses import dataclass

from apr_core.runtime import Delta


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


ChatEvent = Delta | ToolCallStart | ToolCallArguments
