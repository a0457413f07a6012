"""Anthropic's own client, unmodified, against a server with the bundled model."""

from __future__ import annotations

import json
import time
from typing import Literal

import anthropic
import httpx
import pytest
from anthropic import beta_tool
from pydantic import BaseModel

from tests.serve.serving import serving, shared

pytestmark = pytest.mark.needs_plugins

SUM = [{"role": "user", "content": "What is 2+2? Answer with just the number."}]
HELLO = [{"role": "user", "content": "Hello"}]
GREETING = "Hello! I can add two numbers for you."
CHOOSE = {
    "name": "choose", "description": "Chooses one.",
    "input_schema": {
        "type": "object", "properties": {"which": {"enum": ["left", "right"]}},
        "required": ["which"], "additionalProperties": False,
    },
}  # fmt: skip
KEY = "a-key-for-this-test"


class Verdict(BaseModel):
    answer: Literal["yes", "no"]


@pytest.fixture(scope="module")
def server():
    return shared()


@pytest.fixture(scope="module")
def client(server):
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


def ask(client, messages=SUM, max_tokens=100, **options):
    return client.messages.create(model="sums", messages=messages, max_tokens=max_tokens, **options)


def refused(client, words, kind=anthropic.BadRequestError, **options):
    with pytest.raises(kind) as caught:
        ask(client, **options)
    assert words in caught.value.body["error"]["message"]
    return caught.value.body["error"]


def test_a_message_is_answered_with_usage(client):
    message = ask(client)
    assert [(block.type, block.text) for block in message.content] == [("text", "4")]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert (message.role, message.model, message.type) == ("assistant", "sums", "message")
    assert message.usage.output_tokens == 2
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens > 10


def test_a_stream_is_the_same_message_in_official_events(client):
    with client.messages.stream(model="sums", messages=HELLO, max_tokens=100) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(pieces) == GREETING and len(pieces) > 5
    assert (final.content[0].text, final.stop_reason) == (GREETING, "end_turn")
    whole = ask(client, HELLO)
    assert whole.content[0].text == GREETING
    assert whole.usage.output_tokens == final.usage.output_tokens


def test_raw_events_come_in_the_official_order(client):
    kinds = [event.type for event in ask(client, stream=True)]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds[1] == "content_block_start" and kinds[-3] == "content_block_stop"
    assert set(kinds[2:-3]) == {"content_block_delta"}


def test_the_first_event_tells_how_long_the_prompt_is(client):
    first, *_, delta, _ = ask(client, stream=True)
    read = delta.usage.cache_read_input_tokens
    assert first.message.usage.input_tokens == delta.usage.input_tokens + read


def test_tokens_of_a_prompt_are_counted_as_they_are_used(client):
    asked = {"messages": HELLO, "system": "Be kind.", "tools": [CHOOSE]}
    counted = client.messages.count_tokens(model="sums", **asked).input_tokens
    usage = ask(client, max_tokens=1, **asked).usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens
    assert counted > client.messages.count_tokens(model="sums", messages=HELLO).input_tokens


def test_a_stop_sequence_ends_the_message_and_is_named(client):
    message = ask(client, HELLO, stop_sequences=["never", "two numbers"])
    assert message.content[0].text == "Hello! I can add "
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "two numbers")
    with client.messages.stream(
        model="sums", messages=HELLO, max_tokens=100, stop_sequences=["two numbers"]
    ) as stream:
        final = stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", "two numbers")


def test_too_few_tokens_are_told(client):
    assert ask(client, HELLO, max_tokens=3).stop_reason == "max_tokens"


def test_a_tool_is_used_streamed_or_not_and_its_result_goes_back(client):
    asked = {"tools": [CHOOSE], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}}
    message = ask(client, **asked)
    (use,) = [block for block in message.content if block.type == "tool_use"]
    assert message.stop_reason == "tool_use"
    assert use.name == "choose" and use.input["which"] in ("left", "right")
    with client.messages.stream(model="sums", messages=SUM, max_tokens=100, **asked) as stream:
        final = stream.get_final_message()
    assert final.content[-1].input == use.input and final.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "done"}
    history = [*SUM, message.to_param(), {"role": "user", "content": [result]}]
    followed = ask(client, history, max_tokens=5, tools=[CHOOSE])
    usage = followed.usage
    assert usage.input_tokens + usage.cache_read_input_tokens > message.usage.output_tokens


def test_a_named_tool_is_the_one_used(client):
    other = CHOOSE | {"name": "other"}
    named = {"type": "tool", "name": "other"}
    message = ask(client, tools=[CHOOSE, other], tool_choice=named)
    assert message.content[-1].name == "other"


def test_the_official_runner_of_tools_goes_on_without_threads(client):
    @beta_tool
    def add(a: int, b: int) -> str:
        """Adds."""
        return str(a + b)

    runner = client.beta.messages.tool_runner(
        model="sums", max_tokens=60, messages=SUM, tools=[add]
    )
    assert runner.until_done().content
    refused(client, "send the whole conversation", extra_body={"thread": {"type": "create"}})


def test_thinking_is_a_block_with_a_signature_that_can_go_back(client):
    asked = {"thinking": {"type": "enabled", "budget_tokens": 8}, "max_tokens": 60}
    message = ask(client, HELLO, **asked)
    thought = message.content[0]
    assert thought.type == "thinking" and thought.thinking and thought.signature
    assert 8 <= message.usage.output_tokens_details.thinking_tokens < message.usage.output_tokens
    with client.messages.stream(model="sums", messages=HELLO, **asked) as stream:
        streamed = stream.get_final_message().content[0]
    assert (streamed.thinking, streamed.signature) == (thought.thinking, thought.signature)
    assert ask(client, [*SUM, message.to_param(), *HELLO]).content


def test_thinking_that_is_off_is_off(client):
    message = ask(client, thinking={"type": "disabled"})
    assert [block.type for block in message.content] == ["text"]


def test_hidden_thinking_has_no_text(client):
    thinking = {"type": "enabled", "budget_tokens": 8, "display": "omitted"}
    thought = ask(client, thinking=thinking, max_tokens=60).content[0]
    assert (thought.type, thought.thinking) == ("thinking", "") and thought.signature


def test_parse_gives_an_object_of_the_schema(client):
    message = client.messages.parse(
        model="sums", max_tokens=400, messages=HELLO, output_format=Verdict
    )
    assert message.parsed_output.answer in ("yes", "no")


def test_a_prompt_that_was_read_before_is_told_as_cached(client):
    system = "You add numbers. " * 60
    history = [*SUM, {"role": "assistant", "content": "4"}, *HELLO]
    ask(client, SUM, system=system, max_tokens=1)
    usage = ask(client, history, system=system, max_tokens=1).usage
    assert usage.cache_read_input_tokens > usage.input_tokens > 0


def test_what_cannot_be_done_is_an_error_that_names_it(client):
    image = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}
    error = refused(client, "'image'", messages=[{"role": "user", "content": [image]}])
    assert error["type"] == "invalid_request_error"
    refused(client, "prefill", messages=[*SUM, {"role": "assistant", "content": "The"}])
    error = refused(client, "no model", anthropic.NotFoundError, extra_body={"model": "other"})
    assert error["type"] == "not_found_error"


def test_bodies_that_are_no_requests_are_refused_in_this_form(server):
    for content in (b"{", b"[]", b'{"max_tokens": NaN}', b"\xff"):
        answer = httpx.post(
            server.url + "/v1/messages",
            content=content,
            headers={"content-type": "application/json"},
        )
        assert answer.status_code == 400
        assert answer.json()["type"] == "error"
        assert answer.json()["error"]["type"] == "invalid_request_error"
    assert httpx.get(server.url + "/v1/messages").json()["type"] == "error"


def test_a_client_that_leaves_frees_its_slot(server, client):
    before = server.metric("apr_answers_cancelled_total")
    for seed in range(10):  # more than there are slots
        hot = {"temperature": 5.0, "seed": seed}
        stream = ask(client, HELLO, max_tokens=2000, stream=True, extra_body=hot)
        next(iter(stream))
        stream.close()
    assert ask(client).content[0].text == "4"
    deadline = time.monotonic() + 10
    while (still := server.metric("apr_running")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert still == 0
    assert server.metric("apr_answers_cancelled_total") > before


def test_a_key_may_come_as_anthropics_clients_send_it():
    with serving("--api-key", KEY) as locked:
        known = anthropic.Anthropic(base_url=locked.url, api_key=KEY, max_retries=0)
        assert ask(known).content[0].text == "4"
        unknown = anthropic.Anthropic(base_url=locked.url, api_key="wrong-key", max_retries=0)
        with pytest.raises(anthropic.AuthenticationError) as caught:
            ask(unknown)
        assert caught.value.body["error"]["type"] == "authentication_error"
        assert json.dumps(caught.value.body).count(KEY) == 0


def test_models_are_listed_for_this_client_too(client):
    [model] = client.models.list()
    assert (model.id, model.type, model.display_name) == ("sums", "model", "sums")
    assert client.models.retrieve("sums") == model
    assert abs(model.created_at.timestamp() - time.time()) < 3600
