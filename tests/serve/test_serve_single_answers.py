"""Answers of the responses and messages protocols that fail, or whose client leaves."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from apr_core.errors import BackendError
from apr_core.generate.requests import Usage
from apr_serve.anthropic import routes as anthropic
from apr_serve.anthropic.events import MessageEvents
from apr_serve.chat.events import Finished, TextDelta
from apr_serve.chat.single import steps
from apr_serve.http.errors import ApiError
from apr_serve.responses import routes as responses
from apr_serve.responses.events import ResponseEvents, response_head
from apr_serve.responses.request import ResponsesRequest

FAULT = BackendError("the device is gone")


class Stream:
    """A chat stream that brings these steps; an exception among them is raised."""

    def __init__(self, *brought):
        self.brought, self.closed = list(brought), 0

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.brought:
            raise StopAsyncIteration
        step = self.brought.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    async def aclose(self):
        self.closed += 1


def taken(stream):
    """The stream's steps as routes take them, and what the log line says."""
    details = {}
    request = SimpleNamespace(scope={"state": {"details": details}})
    return steps(SimpleNamespace(model_id="m"), stream, request), details


def as_responses(answer, keep=lambda: None):
    head = response_head(ResponsesRequest(model="m", input="x"), "m")
    return responses._streamed(answer, ResponseEvents(head), keep)


def as_messages(answer):
    events = MessageEvents("m")
    return anthropic._streamed(answer, events, events.begin(3))


async def sent_by(chunks):
    """The events of all that is sent, and the error that came out, if any."""
    text, error = b"", None
    try:
        async for chunk in chunks:
            text += chunk
    except Exception as raised:
        error = raised
    lines = [line for line in text.decode().splitlines() if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines], error


def failed():
    said = [TextDelta(0, "It is")]
    end = Finished(0, "error", "error", Usage(3, 0, 1), FAULT)
    return Stream(said, [TextDelta(0, " 2"), end])


def test_a_failing_answer_ends_its_response_as_failed_and_keeps_its_text():
    stream = failed()
    answer, details = taken(stream)
    events, error = asyncio.run(sent_by(as_responses(answer)))
    assert error is None and stream.closed
    last = events[-1]["response"]
    assert events[-1]["type"] == "response.failed"
    assert last["error"] == {"code": "server_error", "message": "the device is gone"}
    assert last["output"][0]["content"][0]["text"] == "It is 2"
    assert details["ended_by"] == "error" and details["completion_tokens"] == 1


def test_a_failing_answer_ends_its_message_with_an_error_event():
    stream = failed()
    events, error = asyncio.run(sent_by(as_messages(taken(stream)[0])))
    assert error is None and stream.closed
    assert events[-2]["delta"] == {"type": "text_delta", "text": " 2"}
    assert events[-1] == {
        "type": "error", "error": {"type": "api_error", "message": "the device is gone"},
    }  # fmt: skip


def test_a_server_that_stops_says_that_it_is_overloaded():
    end = Finished(0, "cancelled", "cancelled", Usage(3))
    events, _ = asyncio.run(sent_by(as_messages(taken(Stream([end]))[0])))
    assert events[-1]["error"]["type"] == "overloaded_error"


@pytest.mark.parametrize("protocol", [as_responses, as_messages])
def test_a_fault_of_the_server_is_told_without_its_words_and_goes_to_the_log(protocol):
    stream = Stream([TextDelta(0, "It")], KeyError("secret"))
    events, error = asyncio.run(sent_by(protocol(taken(stream)[0])))
    assert isinstance(error, KeyError) and stream.closed
    assert "its log says why" in json.dumps(events[-1])
    assert "secret" not in json.dumps(events)


@pytest.mark.parametrize("protocol", [as_responses, as_messages])
def test_a_client_that_leaves_closes_the_answer(protocol):
    async def leave():
        stream = Stream([TextDelta(0, "It")], [TextDelta(0, "is")])
        chunks = protocol(taken(stream)[0])
        await anext(chunks)
        await anext(chunks)
        assert not stream.closed
        await chunks.aclose()
        return stream

    assert asyncio.run(leave()).closed


def test_what_a_client_left_is_not_kept_and_what_failed_is():
    async def run(leaves):
        kept = []
        stream = Stream([TextDelta(0, "It")], ApiError(503, "no"))
        chunks = as_responses(taken(stream)[0], lambda: kept.append(True))
        await anext(chunks)
        if leaves:
            await chunks.aclose()
        else:
            await sent_by(chunks)
        return kept

    assert asyncio.run(run(leaves=True)) == []
    assert asyncio.run(run(leaves=False)) == [True]
