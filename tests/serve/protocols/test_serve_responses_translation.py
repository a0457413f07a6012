"""`/v1/responses` as a translation: requests to chats, chat events to its events, what is kept."""

import pytest
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter, ValidationError

from apr_core.generate.deltas import Delta, TokenLogprob
from apr_serve.http.error_responses import invalid
from apr_serve.http.errors import ApiError
from apr_serve.responses.events import ResponseEvents, response_head
from apr_serve.responses.items import MessageItem
from apr_serve.responses.request import ResponsesRequest
from apr_serve.responses.store import ResponseStore
from tests.serve.protocols.chat_events import CALLS, SAID, STOPPED, THOUGHT, answers, called, ended

ADD = {
    "type": "function", "name": "add", "description": "Sum of two.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
}  # fmt: skip


def asked(**fields):
    return ResponsesRequest.model_validate({"model": "m", "input": "Hi", **fields})


def text_item(text):
    return {"type": "input_text", "text": text}


def nested(levels):
    return {"a": nested(levels - 1)} if levels else {}


def refusal(**fields):
    with pytest.raises(ValidationError) as error:
        asked(**fields)
    return invalid(error.value.errors())


def test_plain_text_is_what_the_user_said():
    body = asked(input="What is 1+1?", instructions="Be brief.")
    assert body.chat_messages() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 1+1?"},
    ]
    assert (body.tool_use().choice, body.generation([1]).max_tokens) == ("auto", None)
    assert body.thinking_limits() == (None, None)


def test_reasoning_text_and_calls_of_one_turn_are_one_message():
    body = asked(
        input=[
            {"role": "developer", "content": "Use tools."},
            {"role": "user", "content": [text_item("1"), text_item("+1?")]},
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "Add."}],
            },
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "A moment.", "annotations": []}],
            },
            {
                "type": "function_call",
                "id": "fc_1",
                "call_id": "c1",
                "name": "add",
                "arguments": '{"a": 1}',
            },
            {
                "type": "function_call",
                "id": "fc_2",
                "call_id": "c2",
                "name": "add",
                "arguments": "{}",
            },
            {"type": "function_call_output", "call_id": "c1", "output": "2"},
            {"type": "function_call_output", "call_id": "c2", "output": [text_item("0")]},
            {"role": "assistant", "content": "2"},
            {"role": "assistant", "content": "and 0"},
        ]
    )
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
        {"id": "c2", "type": "function", "function": {"name": "add", "arguments": "{}"}},
    ]
    assert body.chat_messages() == [
        {"role": "developer", "content": "Use tools."},
        {"role": "user", "content": "1+1?"},
        {
            "role": "assistant",
            "reasoning_content": "Add.",
            "content": "A moment.",
            "tool_calls": calls,
        },
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
        {"role": "tool", "tool_call_id": "c2", "content": "0"},
        {"role": "assistant", "content": "2"},
        {"role": "assistant", "content": "and 0"},
    ]


def test_a_call_without_text_has_empty_content():
    call = {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"}
    assert asked(input=[call]).chat_messages()[0]["content"] == ""


def test_what_was_thought_before_a_second_call_begins_a_message():
    call = {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"}
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Again."}]}
    first, second = asked(input=[call, thought, call | {"call_id": "d"}]).chat_messages()
    assert [c["id"] for c in first["tool_calls"]] == ["c"]
    assert second["reasoning_content"] == "Again."
    assert [c["id"] for c in second["tool_calls"]] == ["d"]


def test_how_to_answer_is_translated():
    body = asked(
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        seed=3,
        max_output_tokens=9,
        tools=[ADD | {"strict": True}],
        parallel_tool_calls=False,
        reasoning={"effort": "high"},
        top_logprobs=2,
        chat_template_kwargs={"add_vision_id": True},
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
    )
    assert body.asked_sampling() == {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3}
    request = body.generation([1])
    assert (request.max_tokens, request.top_logprobs) == (9, 2)
    assert (body.tool_use().parallel, body.thinking_limits()[0]) == (False, True)
    form = body.answer_format()
    assert (form.kind, form.schema) == ("json_schema", {"type": "object"})
    (tool,) = body.tool_use().tools
    assert (tool.name, tool.description, tool.strict) == ("add", "Sum of two.", True)
    assert tool.parameters == ADD["parameters"]
    assert body.template_variables() == {"add_vision_id": True}


def test_no_effort_is_no_thinking():
    assert asked(reasoning={"effort": "none"}).thinking_limits()[0] is False


def test_log_probabilities_may_be_asked_for_without_rivals():
    assert asked(include=["message.output_text.logprobs"]).generation([1]).top_logprobs == 0
    assert asked().generation([1]).top_logprobs is None


def test_all_tokens_and_every_seed_have_the_numbers_they_have_in_chats():
    assert asked(top_k=-1, seed=-1).asked_sampling() == {"top_k": 0, "seed": 2**64 - 1}


def test_a_schema_may_be_as_deep_as_templates_can_walk():
    (tool,) = asked(tools=[ADD | {"parameters": nested(63)}]).tool_use().tools
    assert tool.parameters == nested(63)


def test_a_named_function_must_be_among_the_tools():
    named = {"type": "function", "name": "add"}
    assert asked(tools=[ADD], tool_choice=named).tool_use().choice.name == "add"
    with pytest.raises(ApiError, match="'add', which is no tool here"):
        asked(tool_choice=named).tool_use()


def test_allowed_tools_are_the_only_ones_shown():
    allowed = {"type": "allowed_tools", "mode": "required",
               "tools": [{"type": "function", "name": "add"}]}  # fmt: skip
    use = asked(tools=[ADD, ADD | {"name": "other"}], tool_choice=allowed).tool_use()
    assert [tool.name for tool in use.tools] == ["add"]
    assert use.choice == "required"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"conversation": "c"}, "conversation: 'c' is not supported: send the whole"),
        ({"prompt": {"id": "p"}}, "prompt: {'id': 'p'} is not supported"),
        ({"background": True}, "background: True is not supported"),
        ({"truncation": "auto"}, "truncation: 'auto' is not supported"),
        ({"text": {"verbosity": "low"}}, "text.verbosity: 'low' is not supported"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format: Input tag 'grammar'"),
        ({"tools": [{"type": "web_search"}]}, "none of these is run here, and no function"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input.0: items of type 'web_sea"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
         "content.0: content parts of type 'input_image' are not supported"),
        ({"input": [{"role": "judge", "content": ""}]}, "role: Input should be 'user'"),
        ({"input": 3}, "input: Input should be a valid list"),
        ({"temperature": float("nan")}, "temperature: Input should be a finite number"),
        ({"tools": [ADD | {"parameters": nested(65)}]}, "parameters: nested over 64 levels"),
        ({"max_output_tokens": 0}, "max_output_tokens: Input should be greater"),
        ({"include": ["everything"]}, "include.0: Input should be"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(fields, words):
    error = refusal(**fields)
    assert error.status == 400
    assert words in error.message


CALLED = called("c1", "c2")
ANSWERS = answers(CALLED)


def translated(events, steps=1, logprobs=None, **fields):
    """The events of an answer that came in so many steps, and the response."""
    answer = ResponseEvents(response_head(asked(**fields), "m"), logprobs)
    size = -(-len(events) // steps)
    sent = answer.begin()
    for start in range(0, len(events), size):
        sent += answer.push(events[start : start + size])
    return sent, answer.response


@pytest.mark.parametrize("name", ANSWERS)
def test_the_official_client_adds_the_events_up_to_the_response(name):
    sent, response = translated(ANSWERS[name])
    state = ResponseStreamState(text_format=omit, input_tools=[])
    known = TypeAdapter(ResponseStreamEvent)
    for number, event in enumerate(sent):
        assert event["sequence_number"] == number
        state.handle_event(known.validate_python(event))
    added_up = state._completed_response
    whole = Response.model_validate(response)
    assert added_up.output_text == whole.output_text
    assert [i.type for i in added_up.output] == [i.type for i in whole.output]
    for index, item in enumerate(state._output_items.values()):
        if item.type == "function_call":
            assert item.arguments == whole.output[index].arguments
        if item.type == "message":
            assert item.content[0].text == whole.output[index].content[0].text


@pytest.mark.parametrize("name", ANSWERS)
def test_how_events_come_in_steps_changes_nothing(name):
    def without_chance(events):
        return [(e["type"], e.get("delta"), e.get("output_index"), e.get("text")) for e in events]

    together, _ = translated(ANSWERS[name], steps=1)
    one_by_one, _ = translated(ANSWERS[name], steps=len(ANSWERS[name]))
    assert without_chance(together) == without_chance(one_by_one)


def test_the_sequence_of_a_whole_answer_is_the_official_one():
    sent, response = translated([*THOUGHT, *SAID, *CALLED[:3], CALLS])
    assert [event["type"].removeprefix("response.") for event in sent] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert sent[-1]["response"] == response
    assert [item["status"] for item in response["output"]] == ["completed"] * 3
    assert response["output"][2]["arguments"] == '{"a": 1}'
    assert response["usage"] == {
        "input_tokens": 12,
        "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 17,
    }


def test_an_answer_that_is_too_long_is_incomplete_and_says_what_ended_it():
    sent, response = translated([*SAID, ended("length", "repetition")])
    assert sent[-1]["type"] == "response.incomplete"
    assert response["status"] == response["output"][0]["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["apr_ended_by"] == "repetition"


def test_an_answer_that_fails_says_so_and_keeps_what_came():
    answer = ResponseEvents(response_head(asked(), "m"))
    sent = [*answer.begin(), *answer.push(SAID), *answer.fail("a tensor is not finite")]
    assert sent[-1]["type"] == "response.failed"
    response = sent[-1]["response"]
    assert response["error"] == {"code": "server_error", "message": "a tensor is not finite"}
    assert response["output"][0]["content"][0]["text"] == "It is 2."
    assert (response["status"], response["output"][0]["status"]) == ("failed", "incomplete")


def test_what_was_asked_for_is_told_back():
    head = response_head(
        asked(
            instructions="i",
            metadata={"k": "v"},
            tools=[ADD],
            tool_choice="required",
            temperature=0.1,
            text={"format": {"type": "json_object"}},
            reasoning={"effort": "low"},
            store=False,
        ),
        "m",
    )
    seen = Response.model_validate(head)
    assert (seen.instructions, seen.metadata, seen.temperature) == ("i", {"k": "v"}, 0.1)
    assert (seen.tool_choice, seen.tools[0].name) == ("required", "add")
    assert (seen.text.format.type, seen.reasoning.effort) == ("json_object", "low")
    assert head["store"] is False


def test_log_probabilities_stand_in_deltas_and_in_the_whole_text():
    token = TokenLogprob(65, -0.5)
    delta = Delta(0, "A", logprobs=(token,))
    entry = {"token": "A", "logprob": -0.5, "bytes": [65], "top_logprobs": []}
    entries = {(): [], (token,): [entry]}
    sent, response = translated([delta, STOPPED], logprobs=entries.__getitem__)
    assert [e["logprobs"] for e in sent if e["type"] == "response.output_text.delta"] == [[entry]]
    assert response["output"][0]["content"][0]["logprobs"] == [entry]


def kept(store, tenant="me", previous=None, text="Hi"):
    _, response = translated(ANSWERS["all"], previous_response_id=previous)
    store.put(response, [MessageItem(role="user", content=text)], tenant)
    return response["id"]


def test_a_conversation_goes_on_from_what_is_kept():
    store = ResponseStore()
    first = kept(store, text="one")
    second = kept(store, previous=first, text="two")
    items = store.conversation(second, "me")
    body = asked(input="three")
    messages = body.continuing(body.items, items).chat_messages()
    assert [m["content"] for m in messages if m["role"] == "user"] == ["one", "two", "three"]
    assert messages[1]["reasoning_content"] == "Add them."
    assert len(messages[1]["tool_calls"]) == 2


def test_items_may_be_named_instead_of_sent():
    store, question = ResponseStore(), asked()
    _, response = translated([*THOUGHT, *SAID, *CALLED[:3], CALLS])
    store.put(response, question.items, "me")
    names = [{"type": "item_reference", "id": item["id"]} for item in response["output"]]
    request = asked(
        input=[{"role": "user", "content": "1+1?"}, *names, {"role": "user", "content": "?"}]
    )
    named = request.continuing(store.resolved(request.items, "me"), [])
    [_, answer, _] = named.chat_messages()
    assert answer["reasoning_content"] == "Add them." and answer["content"] == "It is 2."
    assert answer["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'
    assert store.resolved(request.items, "another") == request.items
    store.delete(response["id"], "me")
    assert store.resolved(request.items, "me") == request.items
    with pytest.raises(ApiError, match="is not kept here"):
        request.chat_messages()


def test_nobody_sees_what_belongs_to_another():
    store = ResponseStore()
    mine = kept(store)
    assert store.get(mine, "other") is None
    assert not store.delete(mine, "other")
    with pytest.raises(KeyError, match=mine):
        store.conversation(mine, "other")
    assert store.delete(mine, "me")
    assert store.get(mine, "me") is None


def test_the_store_forgets_what_was_not_used_for_longest():
    probe = ResponseStore()
    size = probe.get(kept(probe), "me").size
    store = ResponseStore(max_bytes=2 * size + size // 2)
    first, second = kept(store), kept(store)
    store.get(first, "me")
    third = kept(store)
    assert [store.get(i, "me") is not None for i in (first, second, third)] == [True, False, True]
    store.put(
        {**store.get(third, "me").response, "id": "huge"},
        [MessageItem(role="user", content="x" * 3 * size)],
        "me",
    )
    assert store.get("huge", "me") is None
    assert len(store) == 2
