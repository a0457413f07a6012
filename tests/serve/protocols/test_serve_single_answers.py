"""Answers of the responses and messages protocols that fail, or whose client leaves."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from apr_core.errors import BackendError
from apr_core.generate.deltas import Delta, Usage
from apr_serve.anthropic import routes as anthropic
from apr_serve.anthropic.events import MessageEvents
from apr_serve.chat.connection import noting
from apr_serve.chat.service import ChatService
from apr_serve.engine.interface import EngineRequest
from apr_serve.http.errors import ApiError
from apr_serve.http.sse import EventStream
from apr_serve.responses import routes as responses
from apr_serve.responses.events import ResponseEvents, response_head
from apr_serve.responses.request import ResponsesRequest
from tests.serve.protocols.chat_events import ended

FAULT = BackendError("the device is gone")
WAITS = None


class Deliveries:
    """What an engine brings, a list a step; an exception is raised, and WAITS is waited at."""

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
        if step is WAITS:
            await asyncio.Event().wait()
        return step

    def close(self):
        self.closed += 1


def as_responses(steps, keep=lambda: None):
    events = ResponseEvents(response_head(ResponsesRequest(model="m", input="x"), "m"))
    answer = responses._streamed(steps, events, keep)
    return EventStream(answer, failure=responses._failed(events, keep))


def as_messages(steps):
    events = MessageEvents("m")
    answer = anthropic._streamed(steps, events, events.begin(3))
    return EventStream(answer, failure=anthropic._failed)


def sent_by(protocol, deliveries, leaves_after=1000, **options):
    """What is sent for these deliveries, the error that came out, and what the log line says."""

    async def run():
        details, bodies, left = {}, [], asyncio.Event()
        request = SimpleNamespace(scope={"state": {"details": details}})
        service = ChatService(None, SimpleNamespace(), "m")
        service._submit = lambda request, param: deliveries

        async def send(message):
            bodies.append(message.get("body", b""))
            if len(bodies) > leaves_after:
                left.set()

        async def receive():
            await left.wait()
            return {"type": "http.disconnect"}

        steps = await service.stream(EngineRequest([1]), ended=noting(request, "m"))
        error = None
        try:
            await protocol(steps, **options)({}, receive, send)
        except Exception as raised:
            error = raised
        lines = b"".join(bodies).decode().splitlines()
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
        return events, error, details

    return asyncio.run(run())


def failed():
    end = ended("error", "error", usage=Usage(3, 0, 1), error=FAULT)
    return Deliveries([Delta(0, "It is")], [Delta(0, " 2"), end])


def test_a_failing_answer_ends_its_response_as_failed_and_keeps_its_text():
    deliveries = failed()
    events, error, details = sent_by(as_responses, deliveries)
    assert error is None and deliveries.closed
    last = events[-1]["response"]
    assert events[-1]["type"] == "response.failed"
    assert last["error"] == {"code": "server_error", "message": "the device is gone"}
    assert last["output"][0]["content"][0]["text"] == "It is 2"
    assert details["ended_by"] == "error" and details["completion_tokens"] == 1


def test_a_failing_answer_ends_its_message_with_an_error_event():
    deliveries = failed()
    events, error, _ = sent_by(as_messages, deliveries)
    assert error is None and deliveries.closed
    assert events[-2]["delta"] == {"type": "text_delta", "text": " 2"}
    assert events[-1] == {
        "type": "error",
        "error": {"type": "api_error", "message": "the device is gone"},
    }


def test_a_server_that_stops_says_that_it_is_overloaded():
    events, _, _ = sent_by(as_messages, Deliveries([ended("cancelled", "cancelled")]))
    assert events[-1]["error"]["type"] == "overloaded_error"


@pytest.mark.parametrize("protocol", [as_responses, as_messages])
def test_a_fault_of_the_server_is_told_without_its_words_and_goes_to_the_log(protocol):
    deliveries = Deliveries([Delta(0, "It")], KeyError("secret"))
    events, error, _ = sent_by(protocol, deliveries)
    assert isinstance(error, KeyError) and deliveries.closed
    assert "its log says why" in json.dumps(events[-1])
    assert "secret" not in json.dumps(events)


@pytest.mark.parametrize("protocol", [as_responses, as_messages])
def test_a_client_that_leaves_closes_the_answer(protocol):
    deliveries = Deliveries([Delta(0, "It")], WAITS)
    events, error, details = sent_by(protocol, deliveries, leaves_after=2)
    assert error is None and deliveries.closed and "It" in json.dumps(events[-1])
    assert details == {}


@pytest.mark.parametrize(("last", "expected"), [(WAITS, []), (ApiError(503, "no"), [True])])
def test_what_a_client_left_is_not_kept_and_what_failed_is(last, expected):
    kept = []
    deliveries = Deliveries([Delta(0, "It")], last)
    sent_by(
        as_responses,
        deliveries,
        leaves_after=2 if last is WAITS else 1000,
        keep=lambda: kept.append(True),
    )
    assert kept == expected
