"""What came of one question, as the engine's side tells it: what protocols translate."""

from __future__ import annotations

from apr_core.generate.deltas import Delta, Usage
from apr_serve.chat.events import ToolCallArguments, ToolCallStart

USAGE = Usage(prompt_tokens=12, cached_tokens=8, completion_tokens=5, reasoning_tokens=2)


def ended(reason="stop", ended_by="stop_token", **more):
    """The last delta of an answer."""
    return Delta(0, finish_reason=reason, ended_by=ended_by, **{"usage": USAGE} | more)


THOUGHT = [Delta(0, "Add ", "reasoning"), Delta(0, "them.", "reasoning")]
SAID = [Delta(0, "It is "), Delta(0, "2.")]
STOPPED, CALLS = ended(), ended("tool_calls")


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
