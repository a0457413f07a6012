"""From chat events to the events of `/v1/responses`, and to the response they add up to."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from apr_core.runtime import Delta, TokenLogprob, Usage
from apr_serve.chat.events import ChatEvent, ToolCallStart
from apr_serve.responses.request import PlainText, ResponsesRequest
from apr_serve.responses.tools import KnownTool, OtherTool, input_of

Event = dict[str, Any]  # one server-sent event; its `type` is also its name
CALLS = ("function_call", "custom_tool_call")
Logprobs = Callable[[Sequence[TokenLogprob]], list[dict[str, Any]]]


def new_id(prefix: str) -> str:
    """Return a new unique id."""
    return f"{prefix}_{uuid.uuid4().hex}"


def response_head(request: ResponsesRequest, model: str) -> dict[str, Any]:
    """Return the response before anything is generated, with the request's settings."""
    asked = request.model_dump(
        mode="json", by_alias=True, exclude_none=True, include={"tool_choice", "text", "reasoning"}
    )
    effort, summary = (asked.get("reasoning", {}).get(n) for n in ("effort", "summary"))
    missing = {"apr_ignored_tools": request.ignored_tools} if request.ignored_tools else {}
    return {
        "id": new_id("resp"), "object": "response", "created_at": int(time.time()),
        "status": "in_progress", "background": False, "completed_at": None, "error": None,
        "incomplete_details": None, "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens, "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata or {}, "model": model, "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": effort, "summary": summary},
        "safety_identifier": request.safety_identifier, "service_tier": "default",
        "store": request.store is not False, "temperature": request.temperature,
        "text": {"format": PlainText(type="text").model_dump(), **asked.get("text", {})},
        "tool_choice": asked.get("tool_choice", "auto"),
        "tools": _told_back(request),
        "top_logprobs": request.top_logprobs or 0, "top_p": request.top_p,
        "truncation": "disabled", "usage": None, "user": request.user, **missing,
    }  # fmt: skip


def _told_back(request: ResponsesRequest) -> list[dict[str, Any]]:
    """Return the tools shown to the model, as they were given."""
    declarations = [tool for tool in request.tools or () if not isinstance(tool, OtherTool)]
    tools = [tool.model_dump(mode="json", exclude_none=True) for tool in declarations]
    usual = {"strict": False, "description": None, "parameters": None}
    return [{**usual, **tool} if tool["type"] == "function" else tool for tool in tools]


class _Written:
    """An output item that is being written: its place in the output and its text so far."""

    def __init__(self, place: int, item: dict[str, Any]) -> None:
        self.place, self.item = place, item
        self.pieces: list[str] = []
        self.logprobs: list[dict[str, Any]] = []

    @property
    def where(self) -> dict[str, Any]:
        return {"item_id": self.item["id"], "output_index": self.place}

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class ResponseEvents:
    """Translates one answer. `response` is the response so far, complete after the last delta.

    The last delta ends it as complete or incomplete (a limit); `fail` ends it otherwise. Calls come
    one after the other: an item ends where the next begins. `logprobs` makes the JSON of tokens'
    log probabilities; None if they are not asked for. `tools` are those that may be called.
    """

    def __init__(
        self,
        head: dict[str, Any],
        logprobs: Logprobs | None = None,
        tools: Sequence[KnownTool] = (),
    ) -> None:
        self.response, self._logprobs = head, logprobs
        self._tools = {tool.shown.name: tool for tool in tools}
        self._written: _Written | None = None
        self._count = 0
        self._events: list[Event] = []

    def begin(self) -> list[Event]:
        """Return the events before anything is generated."""
        for name in ("created", "in_progress"):
            self._emit(f"response.{name}", response={**self.response, "output": []})
        return self._taken()

    def push(self, events: Sequence[ChatEvent]) -> list[Event]:
        """Return this protocol's events for the chat events of one step."""
        for event in events:
            if isinstance(event, Delta):
                self._text(event)
                if event.finish_reason:
                    self._finish(event)
            elif isinstance(event, ToolCallStart):
                self._call(event)
            else:
                self._arguments(event.fragment)
        return self._taken()

    def fail(self, message: str) -> list[Event]:
        """Return the last events of a stream that fails."""
        self._close("incomplete")
        self._end("failed", error={"code": "server_error", "message": message})
        return self._taken()

    def _emit(self, type_: str, **fields: Any) -> None:
        self._events.append({"type": type_, "sequence_number": self._count, **fields})
        self._count += 1

    def _taken(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _open(self, prefix: str, type_: str, **fields: Any) -> _Written:
        """Begin an item; the one before is complete."""
        self._close("completed")
        item = {"id": new_id(prefix), "type": type_, "status": "in_progress", **fields}
        self._written = written = _Written(len(self.response["output"]), item)
        self._emit("response.output_item.added", output_index=written.place, item=dict(item))
        return written

    def _text(self, event: Delta) -> None:
        kind = "reasoning" if event.channel == "reasoning" else "message"
        shown = event.text or (event.logprobs and kind == "message")  # of reasoning, text only
        if not shown:
            return
        written = self._written
        if written is None or written.item["type"] != kind:
            written = self._begin_text(kind)
        written.pieces.append(event.text)
        if kind == "reasoning":
            delta = {"delta": event.text}
            self._emit("response.reasoning_text.delta", **written.where, content_index=0, **delta)
            return
        entries = self._logprobs(event.logprobs) if self._logprobs else []
        written.logprobs += entries
        self._emit(
            "response.output_text.delta",
            **written.where,
            content_index=0,
            delta=event.text,
            logprobs=entries,
        )

    def _begin_text(self, kind: str) -> _Written:
        if kind == "reasoning":
            written = self._open("rs", "reasoning", summary=[], content=[])
        else:
            written = self._open("msg", "message", role="assistant", content=[])
        part = _part(written)
        self._emit("response.content_part.added", **written.where, content_index=0, part=part)
        return written

    def _call(self, event: ToolCallStart) -> None:
        tool = self._tools.get(event.name)
        fields = {"call_id": event.id, **(tool.fields if tool else {"name": event.name})}
        if tool and tool.custom:
            self._open("ctc", "custom_tool_call", **fields, input="")
        else:
            self._open("fc", "function_call", **fields, arguments="")

    def _arguments(self, fragment: str) -> None:
        written = self._written
        assert written and written.item["type"] in CALLS, "arguments outside a call"
        written.pieces.append(fragment)
        if written.item["type"] == "function_call":
            self._emit("response.function_call_arguments.delta", **written.where, delta=fragment)

    def _close(self, status: str) -> None:
        """End the item that is being written, if any."""
        written, self._written = self._written, None
        if written is None:
            return
        item = written.item | {"status": status}
        if item["type"] == "function_call":
            item["arguments"] = written.text
            self._emit(
                "response.function_call_arguments.done",
                **written.where,
                name=item["name"],
                arguments=written.text,
            )
        elif item["type"] == "custom_tool_call":
            self._close_input(written, item)
        else:
            item["content"] = [self._close_text(written)]
        self.response["output"].append(item)
        self._emit("response.output_item.done", output_index=written.place, item=item)

    def _close_input(self, written: _Written, item: dict[str, Any]) -> None:
        """Add the text of a custom tool, read from its complete arguments."""
        item["input"] = text = input_of(written.text)
        kind = "response.custom_tool_call_input"
        self._emit(f"{kind}.delta", **written.where, delta=text)
        self._emit(f"{kind}.done", **written.where, input=text)

    def _close_text(self, written: _Written) -> dict[str, Any]:
        where = {**written.where, "content_index": 0}
        part = _part(written)
        if written.item["type"] == "reasoning":
            self._emit("response.reasoning_text.done", **where, text=written.text)
        else:
            content = {"text": written.text, "logprobs": written.logprobs}
            self._emit("response.output_text.done", **where, **content)
        self._emit("response.content_part.done", **where, part=part)
        return part

    def _finish(self, event: Delta) -> None:
        self.response |= {"usage": usage(event.usage or Usage()), "apr_ended_by": event.ended_by}
        if event.finish_reason != "length":
            self._complete()
            return
        self._close("incomplete")
        self._end("incomplete", incomplete_details={"reason": "max_output_tokens"})

    def _complete(self) -> None:
        self._close("completed")
        answered = {item["type"] for item in self.response["output"]} - {"reasoning"}
        if not answered:  # an empty answer is an answer, and clients read its text
            self._begin_text("message")
            self._close("completed")
        self._end("completed", completed_at=int(time.time()))

    def _end(self, status: str, **fields: Any) -> None:
        self.response |= {"status": status, **fields}
        self._emit(f"response.{status}", response=dict(self.response))


def _part(written: _Written) -> dict[str, Any]:
    """Return the only content part of a text item."""
    if written.item["type"] == "reasoning":
        return {"type": "reasoning_text", "text": written.text}
    return {
        "type": "output_text", "text": written.text, "annotations": [],
        "logprobs": list(written.logprobs),
    }  # fmt: skip


def usage(counts: Usage) -> dict[str, Any]:
    """Return token counts in this protocol's fields."""
    return {
        "input_tokens": counts.prompt_tokens,
        "input_tokens_details": {"cached_tokens": counts.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": counts.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": counts.reasoning_tokens},
        "total_tokens": counts.prompt_tokens + counts.completion_tokens,
    }
