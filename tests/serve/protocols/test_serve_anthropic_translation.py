"""`/v1/messages` as a translation: requests to chats, chat events to its events."""

import json
import sys

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter, ValidationError

from apr_serve.anthropic.errors import anthropic_shape
from apr_serve.anthropic.events import MessageEvents
from apr_serve.anthropic.request import MessagesRequest, PromptRequest
from apr_serve.anthropic.thinking import recalled, signature
from apr_serve.chat.events import ToolCallArguments, ToolCallStart
from apr_serve.http.error_responses import invalid
from apr_serve.http.errors import ApiError
from tests.serve.protocols.chat_events import CALLS, SAID, STOPPED, THOUGHT, answers, called, ended

HI = [{"role": "user", "content": "Hi"}]
ADD = {"name": "add", "description": "Sum of two.",
       "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}  # fmt: skip


def asked(**fields):
    given = {"model": "m", "max_tokens": 100, "messages": HI, **fields}
    return MessagesRequest.model_validate(given)


def refusal(**fields):
    with pytest.raises(ValidationError) as error:
        asked(**fields)
    return invalid(error.value.errors())


def text(words, **more):
    return {"type": "text", "text": words, **more}


def test_plain_messages_are_what_they_are():
    messages = [*HI, {"role": "assistant", "content": "Hello"}, *HI]
    body = asked(system="Be brief.", messages=messages)
    assert body.chat_messages() == [{"role": "system", "content": "Be brief."}, *messages]
    assert (body.generation([1]).max_tokens, body.tool_use().choice) == (100, "auto")
    assert body.thinking_limits() == (None, None)


def test_blocks_become_messages_with_reasoning_calls_and_results():
    cached = {"cache_control": {"type": "ephemeral"}}
    body = asked(
        system=[text("One.", **cached), text("Two.")],
        messages=[
            {"role": "user", "content": [text("1"), text("+1?", **cached)]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Add.", "signature": "s"},
                    {"type": "redacted_thinking", "data": "elsewhere"},
                    text("A moment.", citations=None),
                    {
                        "type": "tool_use",
                        "id": "t1",
                        "name": "add",
                        "input": {"a": 1},
                        "caller": None,
                    },
                    {"type": "tool_use", "id": "t2", "name": "add", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "2"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "t2",
                        "is_error": True,
                        "content": [text("no"), text("sum")],
                    },
                    text("Go on."),
                ],
            },
        ],
    )
    calls = [
        {"id": "t1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}},
        {"id": "t2", "type": "function", "function": {"name": "add", "arguments": {}}},
    ]
    assert body.chat_messages() == [
        {"role": "system", "content": "One."},
        {"role": "system", "content": "Two."},
        {"role": "user", "content": [text("1"), text("+1?")]},
        {
            "role": "assistant",
            "content": "A moment.",
            "reasoning_content": "Add.",
            "tool_calls": calls,
        },
        {"role": "tool", "tool_call_id": "t1", "content": "2"},
        {"role": "tool", "tool_call_id": "t2", "content": "no\nsum"},
        {"role": "user", "content": [text("Go on.")]},
    ]


def test_how_to_answer_is_translated():
    body = asked(
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        seed=3,
        stop_sequences=["END"],
        tools=[ADD | {"strict": True, "type": "custom"}],
        tool_choice={"type": "auto", "disable_parallel_tool_use": True},
        thinking={"type": "enabled", "budget_tokens": 64},
        metadata={"user_id": "u"},
        output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}},
    )
    assert body.asked_sampling() == {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3}
    assert (body.generation([1]).stop, body.tool_use().parallel) == (("END",), False)
    assert body.thinking_limits() == (True, 64)
    assert body.answer_format().schema == {"type": "object"}
    (tool,) = body.tool_use().tools
    assert (tool.name, tool.strict, tool.parameters) == ("add", True, ADD["input_schema"])


@pytest.mark.parametrize(
    ("choice", "expected"), [("auto", "auto"), ("any", "required"), ("none", "none")]
)
def test_tool_choices_have_their_names_here(choice, expected):
    assert asked(tools=[ADD], tool_choice={"type": choice}).tool_use().choice == expected


def test_a_named_tool_is_that_tool():
    use = asked(tools=[ADD], tool_choice={"type": "tool", "name": "add"}).tool_use()
    assert use.choice == use.tools[0]


def test_thinking_may_be_off_or_adaptive():
    assert asked(thinking={"type": "disabled"}).thinking_limits() == (False, None)
    adaptive = asked(thinking={"type": "adaptive"}, output_config={"effort": "low"})
    thinks, budget = adaptive.thinking_limits()
    assert thinks is True and 0 < budget < 10_000


def test_a_prompt_to_count_needs_no_max_tokens():
    request = PromptRequest.model_validate({"model": "m", "messages": HI, "tools": [ADD]})
    assert request.chat_messages() == HI


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": None}, "max_tokens: Input should be a valid integer"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater"),
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
         "content.0: blocks of the user of type 'image' are not supported, only: text, tool_res"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t",
          "content": [{"type": "document"}]}]}]}, "blocks of type 'document' are not supported"),
        ({"messages": [*HI, {"role": "assistant", "content": "{"}]}, "(prefill)"),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages.0: Input tag 'tool'"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
         "tools.0: tools of type 'web_search_20250305' are not supported"),
        ({"tool_choice": {"type": "tool", "name": "add"}}, "'add' is not among the tools"),
        ({"tool_choice": {"type": "any"}}, "tool_choice: 'any' needs tools"),
        ({"thinking": {"type": "enabled", "budget_tokens": 100}}, "must be less than max_tokens"),
        ({"temperature": float("inf")}, "temperature: Input should be a finite number"),
        ({"stop_sequences": [""]}, "stop_sequences.0: String should have at least 1"),
        ({"system": [{"type": "image"}]}, "system.0: blocks of type 'image'"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(fields, words):
    error = refusal(**fields)
    assert error.status == 400
    assert words in error.message


CALLED = called("t1", "t2")
ANSWERS = answers(CALLED)


def translated(events, steps=1, **options):
    """The events of an answer that came in so many steps, and the message."""
    answer = MessageEvents("m", **options)
    size = -(-len(events) // steps)
    sent = answer.begin(prompt_tokens=12)
    for start in range(0, len(events), size):
        sent += answer.push(events[start : start + size])
    return sent, answer.message


def added_up(sent):
    """What the official client makes of the events."""
    message, buffers = None, {}
    for event in sent:
        if event["type"] != "ping":
            known = TypeAdapter(RawMessageStreamEvent).validate_python(event)
            message = accumulate_event(event=known, current_snapshot=message, json_bufs=buffers)
    return message


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("name", ANSWERS)
def test_the_official_client_adds_the_events_up_to_the_message(name, hidden):
    sent, message = translated(ANSWERS[name], hide_thinking=hidden)
    streamed, whole = added_up(sent).to_dict(), Message.model_validate(message).to_dict()
    for side in (streamed, whole):
        side["content"] = [
            {k: v for k, v in block.items() if v is not None} for block in side["content"]
        ]
    assert streamed["content"] == whole["content"]
    for field in ("stop_reason", "stop_sequence", "model", "id"):
        assert streamed[field] == whole[field]
    assert streamed["usage"]["cache_read_input_tokens"] == 8
    assert streamed["usage"]["input_tokens"] == whole["usage"]["input_tokens"] == 4


@pytest.mark.parametrize("name", ANSWERS)
def test_how_events_come_in_steps_changes_nothing(name):
    together, _ = translated(ANSWERS[name], steps=1)
    one_by_one, _ = translated(ANSWERS[name], steps=len(ANSWERS[name]))
    assert together[1:] == one_by_one[1:]


def test_the_sequence_of_a_whole_answer_is_the_official_one():
    sent, message = translated([*THOUGHT, *SAID, *CALLED[:3], CALLS])
    outline = [(e["type"], e.get("index"), e.get("delta", {}).get("type")) for e in sent]
    assert outline == [
        ("message_start", None, None),
        ("ping", None, None),
        ("content_block_start", 0, None),
        ("content_block_delta", 0, "thinking_delta"),
        ("content_block_delta", 0, "thinking_delta"),
        ("content_block_delta", 0, "signature_delta"),
        ("content_block_stop", 0, None),
        ("content_block_start", 1, None),
        ("content_block_delta", 1, "text_delta"),
        ("content_block_delta", 1, "text_delta"),
        ("content_block_stop", 1, None),
        ("content_block_start", 2, None),
        ("content_block_delta", 2, "input_json_delta"),
        ("content_block_delta", 2, "input_json_delta"),
        ("content_block_stop", 2, None),
        ("message_delta", None, None),
        ("message_stop", None, None),
    ]
    assert message["content"][2] == {
        "type": "tool_use",
        "id": "t1",
        "name": "add",
        "input": {"a": 1},
    }
    assert message["usage"] == {
        "input_tokens": 4,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 8,
        "output_tokens": 5,
        "output_tokens_details": {"thinking_tokens": 2},
    }


def test_an_empty_answer_has_no_blocks():
    _, message = translated([STOPPED])
    assert (message["content"], message["stop_reason"]) == ([], "end_turn")


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (ended("stop", "stop_token"), "end_turn"),
        (ended("stop", "grammar"), "end_turn"),
        (ended("stop", "stop_string", stop_string="END"), "stop_sequence"),
        (ended("tool_calls", "stop_token"), "tool_use"),
        (ended("length", "max_tokens"), "max_tokens"),
        (ended("length", "repetition"), "max_tokens"),
        (ended("length", "context"), "model_context_window_exceeded"),
    ],
)
def test_why_it_ended_is_said_in_this_protocol_and_more_finely(end, reason):
    sent, message = translated([*SAID, end])
    assert message["stop_reason"] == sent[-2]["delta"]["stop_reason"] == reason
    assert message["stop_sequence"] == end.stop_string
    assert message["apr_ended_by"] == end.ended_by


def test_a_call_that_was_cut_off_has_what_can_be_read_of_its_input():
    cut = [ToolCallStart(0, 0, "t", "add"), ToolCallArguments(0, 0, '{"a": 1, "b": [2, 3')]
    _, message = translated([*cut, ended("length", "max_tokens")])
    assert message["content"][0]["input"] == {"a": 1, "b": [2, 3]}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [('{"a": 1e999, "b": 2}', {"a": sys.float_info.max, "b": 2}), ('{"a": 1e999, "b', {}),
     ('{"a": "x\\ud800"}', {"a": "x?"}), ('{"a": NaN}', {})],
)  # fmt: skip
def test_whatever_the_model_wrote_the_message_is_json(arguments, expected):
    call = [ToolCallStart(0, 0, "t1", "add"), ToolCallArguments(0, 0, arguments), CALLS]
    _, message = translated(call)
    json.dumps(message, ensure_ascii=False, allow_nan=False).encode()
    assert message["content"][0]["input"] == expected


def test_a_hidden_thought_comes_back_to_the_model_out_of_its_signature():
    _, message = translated([*THOUGHT, *SAID, STOPPED], hide_thinking=True)
    thought = message["content"][0]
    assert thought["thinking"] == ""
    back = {"role": "assistant", "content": message["content"]}
    messages = asked(messages=[*HI, back, *HI]).chat_messages()
    assert messages[1]["reasoning_content"] == "Add them."


@pytest.mark.parametrize("thinking", ["", "words", "\N{SNOWMAN} and \ud800"])
def test_signatures_of_hidden_thoughts_hold_them(thinking):
    assert recalled("", signature(thinking, hidden=True)) == thinking.replace("\ud800", "?")
    assert recalled(thinking, signature(thinking, hidden=False)) == thinking


@pytest.mark.parametrize("foreign", ["", "ErUB3/abc==", "hidden.%%%", "hidden./w=="])
def test_a_signature_of_another_server_recalls_nothing(foreign):
    assert recalled("", foreign) == ""
    assert recalled("shown", foreign) == "shown"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"), (401, "authentication_error"),
        (403, "permission_error"), (404, "not_found_error"), (413, "request_too_large"),
        (429, "rate_limit_error"), (500, "api_error"), (503, "overloaded_error"),
    ],
)  # fmt: skip
def test_errors_have_the_official_names(status, kind):
    body = anthropic_shape(ApiError(status, "why"))
    assert body == {"type": "error", "error": {"type": kind, "message": "why"}}
