"""From chat events to the events of `/v1/messages`, and to the message they add up to."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json

from apr_core.runtime import Delta, Usage
from apr_serve.anthropic.thinking import signature
from apr_serve.chat.events import ChatEvent, ToolCallStart
from apr_serve.tools.coercion import strict_json

Event = dict[str, Any]  # one server-sent event; its `type` is also its name

PING: Event = {"type": "ping"}


class MessageEvents:
    """Translates one answer. `message` is the message so far, complete after the last delta.

    Calls come one after the other: a block ends where the next begins. `hide_thinking` omits the
    text of thinking. The error event that ends a failed message is made elsewhere.
    """

    def __init__(self, model: str, hide_thinking: bool = False) -> None:
        self.message: dict[str, Any] = {
            "id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant",
            "model": model, "content": [], "stop_reason": None, "stop_sequence": None,
            "usage": usage(Usage()),
        }  # fmt: skip
        self._hide_thinking = hide_thinking
        self._block: dict[str, Any] | None = None
        self._pieces: list[str] = []
        self._events: list[Event] = []

    def begin(self, prompt_tokens: int) -> list[Event]:
        """Return the events before the first token; cached tokens are counted in the last ones."""
        message = {**self.message, "content": [], "usage": usage(Usage(prompt_tokens))}
        return [{"type": "message_start", "message": message}, PING]

    def push(self, events: Sequence[ChatEvent]) -> list[Event]:
        """Return this protocol's events for the chat events of one step."""
        for event in events:
            if isinstance(event, Delta):
                self._text(event)
                if event.finish_reason:
                    self._finish(event)
            elif isinstance(event, ToolCallStart):
                self._open({"type": "tool_use", "id": event.id, "name": event.name, "input": {}})
            else:
                self._delta("tool_use", "input_json_delta", "partial_json", event.fragment)
        taken, self._events = self._events, []
        return taken

    def _text(self, event: Delta) -> None:
        if not event.text:
            return
        kind = "thinking" if event.channel == "reasoning" else "text"
        if self._block is None or self._block["type"] != kind:
            self._open({"type": "text", "text": ""} if kind == "text" else _EMPTY_THOUGHT)
        if kind == "thinking" and self._hide_thinking:
            self._pieces.append(event.text)
        else:
            self._delta(kind, f"{kind}_delta", kind, event.text)

    def _open(self, block: dict[str, Any]) -> None:
        self._close()
        self._block = dict(block)
        self._emit("content_block_start", content_block=dict(block))

    def _delta(self, block: str, type_: str, field: str, text: str) -> None:
        assert self._block and self._block["type"] == block, f"{type_} outside of {block}"
        self._pieces.append(text)
        self._emit("content_block_delta", delta={"type": type_, field: text})

    def _emit(self, type_: str, **fields: Any) -> None:
        """Append an event about the block that is being written."""
        index = len(self.message["content"])
        self._events.append({"type": type_, "index": index, **fields})

    def _close(self) -> None:
        """End the block that is being written, if any."""
        block, text = self._block, "".join(self._pieces)
        self._block, self._pieces = None, []
        if block is None:
            return
        if block["type"] == "text":
            block["text"] = text
        elif block["type"] == "thinking":
            block["thinking"] = "" if self._hide_thinking else text
            block["signature"] = signed = signature(text, self._hide_thinking)
            delta = {"type": "signature_delta", "signature": signed}
            self._emit("content_block_delta", delta=delta)
        else:
            block["input"] = _object(text)
        self._emit("content_block_stop")
        self.message["content"].append(block)

    def _finish(self, event: Delta) -> None:
        self._close()
        delta = {
            "stop_reason": stop_reason(event),
            "stop_sequence": event.stop_string,
            "apr_ended_by": event.ended_by,
        }
        counts = usage(event.usage or Usage())
        self.message |= {**delta, "usage": counts}
        self._events.append({"type": "message_delta", "delta": delta, "usage": counts})
        self._events.append({"type": "message_stop"})


_EMPTY_THOUGHT = {"type": "thinking", "thinking": "", "signature": ""}


def _object(text: str) -> dict[str, Any]:
    """Return a call's input; if it was cut off, the part that parses. The result is valid JSON."""
    try:
        arguments = strict_json(text or "{}")
    except (ValueError, RecursionError):
        arguments = _beginning(text)
    if not isinstance(arguments, dict):
        return {}
    written = json.dumps(arguments, ensure_ascii=False).encode("utf-8", "replace")
    whole: dict[str, Any] = json.loads(written)  # unpaired surrogates are question marks now
    return whole


def _beginning(text: str) -> Any:
    try:
        arguments = from_json(text, allow_partial=True)
        json.dumps(arguments, allow_nan=False)
    except ValueError:
        return None
    return arguments


def stop_reason(event: Delta) -> str:
    """Return the reason why the answer ended, in this protocol's words."""
    if event.finish_reason == "tool_calls":
        return "tool_use"
    if event.finish_reason == "length":
        return "model_context_window_exceeded" if event.ended_by == "context" else "max_tokens"
    return "stop_sequence" if event.ended_by == "stop_string" else "end_turn"


def usage(counts: Usage) -> dict[str, Any]:
    """Return token counts in this protocol's fields; `input_tokens` excludes cached ones."""
    return {
        "input_tokens": counts.prompt_tokens - counts.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": counts.cached_tokens,
        "output_tokens": counts.completion_tokens,
        "output_tokens_details": {"thinking_tokens": counts.reasoning_tokens},
    }
