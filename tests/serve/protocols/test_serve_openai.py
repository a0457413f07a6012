"""OpenAI's own client, unmodified, against a server with the bundled model."""

from __future__ import annotations

import base64
import json

import httpx
import numpy as np
import openai
import pytest

from tests.serve.serving import openai_client, shared

pytestmark = pytest.mark.needs_plugins

SUM = [{"role": "user", "content": "What is 2+2? Answer with just the number."}]
HELLO = [{"role": "user", "content": "Hello"}]
GREETING = "Hello! I can add two numbers for you."
ADD = {
    "type": "function",
    "function": {
        "name": "add", "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {name: {"type": "integer", "minimum": 0, "maximum": 99} for name in "ab"},
            "required": ["a", "b"], "additionalProperties": False,
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def server():
    return shared()


@pytest.fixture(scope="module")
def client():
    return openai_client()


def ask(client, messages=SUM, **options):
    return client.chat.completions.create(model="sums", messages=messages, **options)


def refused(client, words, status=400, messages=SUM, **options):
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, messages, **options)
    assert caught.value.status_code == status, caught.value
    assert words in caught.value.message
    return caught.value


def test_a_chat_is_answered_with_usage(client):
    answer = ask(client)
    choice = answer.choices[0]
    assert choice.message.content == "4" and choice.message.role == "assistant"
    assert choice.finish_reason == "stop" and choice.apr_ended_by == "stop_token"
    assert answer.usage.completion_tokens == 2 and answer.usage.prompt_tokens > 10
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 2
    assert answer.object == "chat.completion" and answer.model == "sums"
    assert answer.choices[0].message.tool_calls is None


def test_a_stream_is_the_same_answer_in_pieces(client):
    chunks = list(ask(client, HELLO, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == GREETING
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({c.id for c in chunks}) == 1 and len(chunks) > 8
    ends = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert ends[-1] == "stop" and not any(ends[:-1])
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 11
    assert all(c.usage is None for c in chunks[:-1])
    whole = ask(client, HELLO)
    assert whole.choices[0].message.content == GREETING
    assert whole.usage.completion_tokens == 11


def test_a_stream_ends_with_done_and_without_usage_unless_asked(server):
    body = {"messages": HELLO, "stream": True}
    answer = server.post("/v1/chat/completions", body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-1] == "" and events[-2] == "data: [DONE]"
    assert not any("usage" in json.loads(e.removeprefix("data: ")) for e in events[:-2])


def test_thinking_is_apart_whole_and_streamed(client):
    options = {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}, "max_tokens": 60}
    whole = ask(client, **options)
    message, details = whole.choices[0].message, whole.usage.completion_tokens_details
    assert message.reasoning_content and "<think>" not in message.content
    assert 0 < details.reasoning_tokens <= whole.usage.completion_tokens
    chunks = list(ask(client, stream=True, **options))
    deltas = [c.choices[0].delta for c in chunks]
    thought = "".join(getattr(d, "reasoning_content", None) or "" for d in deltas)
    assert thought == message.reasoning_content
    assert "".join(d.content or "" for d in deltas) == message.content


def test_effort_decides_whether_the_model_thinks(client):
    assert ask(client, reasoning_effort="low", max_tokens=40).choices[0].message.reasoning_content
    silent = ask(client, reasoning_effort="none", max_tokens=40).choices[0].message
    assert not hasattr(silent, "reasoning_content")


def test_a_thinking_budget_closes_the_thought(client):
    options = {"reasoning_effort": "high", "extra_body": {"thinking_budget": 3}, "max_tokens": 60}
    answer = ask(client, HELLO, **options)
    assert answer.choices[0].message.content
    thought = answer.choices[0].message.reasoning_content
    assert thought.startswith("Hello! I") and "the answer follows" in thought


def test_several_answers_have_seeds_of_their_own_and_a_seed_repeats_them(client):
    options = {"n": 3, "temperature": 2.0, "seed": 7, "max_tokens": 8}
    first, again = (ask(client, HELLO, **options) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [c.index for c in first.choices] == [0, 1, 2] and len(set(texts)) > 1
    assert texts == [choice.message.content for choice in again.choices]
    streamed = {0: "", 1: "", 2: ""}
    for chunk in ask(client, HELLO, stream=True, **options):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(streamed.values()) == texts
    assert first.usage.completion_tokens > 8  # of all three


def test_stop_strings_end_answers_and_are_not_shown(client):
    answer = ask(client, HELLO, stop=["numbers", "d t"]).choices[0]
    assert answer.message.content == "Hello! I can ad"
    assert (answer.finish_reason, answer.apr_ended_by) == ("stop", "stop_string")
    chunks = ask(client, HELLO, stop="d t", stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Hello! I can ad"


def test_a_limit_ends_an_answer_with_length(client):
    for limit in ({"max_tokens": 3}, {"max_completion_tokens": 3}):
        answer = ask(client, HELLO, **limit)
        assert answer.choices[0].finish_reason == "length"
        assert answer.choices[0].apr_ended_by == "max_tokens"
        assert answer.usage.completion_tokens == 3


def test_a_bias_bans_a_token_or_forces_it(client, server):
    four = server.post("/tokenize", {"text": "4"}).json()["tokens"][0]
    seven = server.post("/tokenize", {"text": "7"}).json()["tokens"][0]
    assert ask(client, logit_bias={str(four): -100}).choices[0].message.content != "4"
    forced = ask(client, logit_bias={str(seven): 100}, max_tokens=1)
    assert forced.choices[0].message.content == "7"


def test_an_object_or_a_schema_is_what_the_answer_is(client):
    options = {"max_tokens": 900, "temperature": 0}
    answer = ask(client, response_format={"type": "json_object"}, **options).choices[0]
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.message.content), dict)
    else:
        assert answer.message.content.lstrip().startswith("{")
    schema = {
        "type": "object", "properties": {"sum": {"type": "integer", "enum": [4, 5]}},
        "required": ["sum"], "additionalProperties": False,
    }  # fmt: skip
    wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}
    choice = ask(client, response_format=wanted, **options).choices[0]
    assert json.loads(choice.message.content)["sum"] in (4, 5)
    assert choice.finish_reason == "stop"
    thinking = {"chat_template_kwargs": {"enable_thinking": True}, "thinking_budget": 10}
    choice = ask(client, HELLO, response_format=wanted, extra_body=thinking, **options).choices[0]
    assert json.loads(choice.message.content)["sum"] in (4, 5)
    assert choice.message.reasoning_content


def test_a_tool_that_must_be_called_is_called_with_fitting_arguments(client):
    for choice in ("required", {"type": "function", "function": {"name": "add"}}):
        options = {"tools": [ADD], "tool_choice": choice, "max_tokens": 1500}
        answer = ask(client, **options).choices[0]
        call = answer.message.tool_calls[0]
        assert answer.finish_reason == "tool_calls" and call.function.name == "add"
        arguments = json.loads(call.function.arguments)
        assert set(arguments) == {"a", "b"}
        assert all(type(value) is int for value in arguments.values())
        streamed = {"name": "", "arguments": "", "ids": set()}
        end = None
        for chunk in ask(client, stream=True, **options):
            for delta in chunk.choices[0].delta.tool_calls or []:
                streamed["name"] += delta.function.name or ""
                streamed["arguments"] += delta.function.arguments or ""
                streamed["ids"] |= {delta.id} - {None}
            end = chunk.choices[0].finish_reason or end
        assert streamed["name"] == "add" and json.loads(streamed["arguments"]) == arguments
        assert len(streamed["ids"]) == 1 and end == "tool_calls"


def test_a_conversation_with_a_tools_result_goes_on(client):
    call = {"id": "call_1", "type": "function",
            "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}  # fmt: skip
    messages = [
        {"role": "system", "content": "Be brief."},
        *SUM,
        {"role": "developer", "content": "Use the tool."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "4"},
    ]
    answer = ask(client, messages, tools=[ADD], max_tokens=10)
    assert answer.usage.prompt_tokens > 100
    without = ask(client, messages, tools=[ADD], tool_choice="none", max_tokens=10)
    assert without.usage.prompt_tokens < answer.usage.prompt_tokens
    assert without.choices[0].message.tool_calls is None


def test_a_second_turn_is_not_computed_from_the_start(client):
    turns = [{"role": "user", "content": "Here are sums: " + "1+1=2, " * 100}]
    first = ask(client, turns, max_tokens=5)
    turns += [{"role": "assistant", "content": first.choices[0].message.content}, *SUM]
    second = ask(client, turns, max_tokens=5)
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert 0.8 * first.usage.prompt_tokens < cached < second.usage.prompt_tokens


def test_what_changes_nothing_is_accepted(client):
    answer = ask(
        client,
        user="me",
        metadata={"a": "b"},
        store=True,
        service_tier="auto",
        parallel_tool_calls=True,
        safety_identifier="x",
        prompt_cache_key="y",
        modalities=["text"],
        stream=False,
        response_format={"type": "text"},
        tools=[],
        verbosity="medium",
    )
    assert answer.choices[0].message.content == "4"


def test_what_is_not_supported_is_named(client):
    error = refused(client, "temperature", temperature=-1)
    assert error.param == "temperature" and error.type == "invalid_request_error"
    refused(client, "temperature: Input should be a valid number", extra_body={"temperature": "1"})
    refused(client, "modalities", modalities=["audio"])
    refused(client, "needs logprobs", top_logprobs=2)
    refused(
        client,
        "no tool here",
        tools=[ADD],
        tool_choice={"type": "function", "function": {"name": "subtract"}},
    )
    refused(client, "needs tools", tool_choice="required")
    refused(client, "token id", logit_bias={"word": 1})
    refused(client, "n must be", n=9)
    refused(client, "messages[0]", messages=[{"role": "wizard", "content": "x"}])
    refused(client, "messages", messages=[])
    refused(client, "stream_options", extra_body={"stream_options": {"include_usage": True}})
    refused(client, "may not set 'messages'", extra_body={"chat_template_kwargs": {"messages": []}})
    assert refused(client, "no model 'gpt'", 404, extra_body={"model": "gpt"}).param == "model"


def test_a_prompt_that_is_too_long_says_how_long(client):
    error = refused(
        client,
        "the context of sums holds 2048",
        messages=[{"role": "user", "content": "1+1= " * 2000}],
    )
    assert error.code == "context_length_exceeded"


def test_plain_completions_go_on_from_text_or_ids(client, server):
    make = client.completions.create
    answer = make(model="sums", prompt="2+2=", max_tokens=5, logprobs=2)
    choice = answer.choices[0]
    assert choice.finish_reason == "length" and "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.text_offset[0] == 0 and len(choice.logprobs.top_logprobs[0]) == 2
    ids = server.post("/tokenize", {"text": "2+2="}).json()["tokens"]
    same = make(model="sums", prompt=[ids, ids], max_tokens=5, echo=True)
    assert [c.text for c in same.choices] == ["2+2=" + choice.text] * 2
    assert same.usage.prompt_tokens == 2 * answer.usage.prompt_tokens
    assert make(model="sums", prompt=ids).usage.completion_tokens <= 16
    chunks = list(
        make(
            model="sums",
            prompt=["2+2=", "1+1="],
            max_tokens=5,
            n=2,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    texts = {
        i: "".join(c.choices[0].text for c in chunks if c.choices and c.choices[0].index == i)
        for i in range(4)
    }
    assert texts[0] == texts[1] == choice.text and texts[2] == texts[3]
    assert chunks[-1].usage.completion_tokens == 14  # the second prompt is answered by two
    for bad in ({"suffix": "x"}, {"best_of": 3}, {"max_tokens": 0}, {"prompt": []},
                {"prompt": [10**6]}, {"prompt": [-1]}, {"prompt": ""}):  # fmt: skip
        with pytest.raises(openai.BadRequestError):
            make(**{"model": "sums", "prompt": "x", **bad})


def test_control_tokens_in_a_prompt_are_text_unless_allowed(client):
    make = client.completions.create
    text = make(model="sums", prompt="<|im_start|>", max_tokens=1).usage.prompt_tokens
    control = make(
        model="sums", prompt="<|im_start|>", max_tokens=1, extra_body={"allow_special": True}
    ).usage.prompt_tokens
    assert text > 3 and control == 1


def test_embeddings_have_length_one_and_two_forms(client, server):
    texts = ["two and two", "three and four", "two and two"]
    response = client.embeddings.create(model="sums", input=texts)  # the client asks for base64
    vectors = np.array([item.embedding for item in response.data])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.array_equal(vectors[0], vectors[2]) and not np.allclose(vectors[0], vectors[1])
    plain = client.embeddings.create(model="sums", input=texts[0], encoding_format="float")
    assert np.allclose(plain.data[0].embedding, vectors[0], atol=1e-6)
    raw = server.post("/v1/embeddings", {"input": texts[0], "encoding_format": "base64"}).json()
    decoded = np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), "<f4")
    assert np.allclose(decoded, vectors[0], atol=1e-6)
    ids = server.post("/tokenize", {"text": texts[0]}).json()["tokens"]
    by_ids = client.embeddings.create(model="sums", input=ids)
    assert np.allclose(by_ids.data[0].embedding, vectors[0]) and by_ids.usage.total_tokens == len(
        ids
    )
    size = vectors.shape[1]
    client.embeddings.create(model="sums", input="x", dimensions=size)
    for bad in ({"dimensions": size - 1}, {"input": ""}, {"input": []}, {"input": "1 " * 3000}):
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(**{"model": "sums", "input": "x", **bad})


def test_models_say_what_they_are_bound_to(client):
    listed = client.models.list().data
    assert [model.id for model in listed] == ["sums"]
    one = client.models.retrieve("sums")
    assert one.context == 2048 and any("linear[q4_k]" in line for line in one.bound)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")


def test_tokens_go_there_and_back(server):
    text = "Grüße, 2+2 <think>"
    answer = server.post("/tokenize", {"text": text, "with_pieces": True}).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["pieces"])
    assert server.post("/detokenize", {"tokens": answer["tokens"]}).json() == {"text": text}
    chat = server.post("/tokenize", {"messages": SUM}).json()
    count = server.post("/v1/chat/completions", {"messages": SUM}).json()["usage"]["prompt_tokens"]
    assert chat["count"] == count
    for bad in ({}, {"text": "x", "messages": SUM}, {"text": 3}):
        assert server.post("/tokenize", bad).status_code == 400
    assert server.post("/detokenize", {"tokens": [10**7]}).status_code == 400


def test_the_clients_request_id_comes_back(server):
    sent = httpx.get(server.url + "/v1/models", headers={"X-Request-Id": "mine-1"})
    assert sent.headers["x-request-id"] == "mine-1"
    strange = httpx.get(server.url + "/v1/models", headers={"X-Request-Id": "a b"})
    assert strange.headers["x-request-id"].startswith("req_")


def test_metrics_count_what_was_done(client, server):
    def value(name):
        lines = server.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    names = ("apr_generated_tokens_total", "apr_time_to_first_token_seconds_count",
             "apr_inter_token_latency_seconds_count",
             'apr_requests_total{path="/v1/chat/completions",status="200"}')  # fmt: skip
    before = [value(name) for name in names]
    for _ in range(4):  # of one, all tokens may come at once
        ask(client, HELLO)
    tokens, first, later, requests = (value(n) - b for n, b in zip(names, before, strict=True))
    assert tokens == 44 and first == 4 and 1 <= later <= 40 and requests == 4
    assert value("apr_slots") == 8 and value("apr_running") == 0
