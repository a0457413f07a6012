"""What came of one question, as the engine's side tells it: what protocols translate."""

from __future__ import annotations

from apr_core.generate.requests import Usage
from apr_serve.chat.events import Finished, TextDelta, ToolCallArguments, ToolCallStart

USAGE = Usage(prompt_tokens=12, cached_tokens=8, completion_tokens=5, reasoning_tokens=2)
THOUGHT = [TextDelta(0, "Add ", "reasoning"), TextDelta(0, "them.", "reasoning")]
SAID = [TextDelta(0, "It is "), TextDelta(0, "2.")]
STOPPED = Finished(0, "stop", "stop_token", USAGE)
CALLS = Finished(0, "tool_calls", "stop_token", USAGE)


def called(first, second):
    """Two calls of a tool, with these ids."""
    return [
        ToolCallStart(0, 0, first, "add"), ToolCallArguments(0, 0, '{"a"'),
        ToolCallArguments(0, 0, ": 1}"),
        ToolCallStart(0, 1, second, "add"), ToolCallArguments(0, 1, "{}"),
    ]  # fmt: skip


def answers(calls):
    """Answers of every make, by what is in them."""
    return {
        "text": [*SAID, STOPPED],
        "thought and text": [*THOUGHT, *SAID, STOPPED],
        "calls": [*calls, CALLS],
        "all": [*THOUGHT, *SAID, *calls, CALLS],
        "text after a call": [*calls, *SAID, CALLS],
        "a second thought": [*THOUGHT, *SAID, *THOUGHT, *SAID, STOPPED],
        "nothing": [STOPPED],
    }
