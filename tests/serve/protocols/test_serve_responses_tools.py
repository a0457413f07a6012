"""Tools of `/v1/responses` as agents send them: functions, free text, namespaces, and others."""

import json

import pytest
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter, ValidationError

from apr_serve.chat.events import ToolCallArguments, ToolCallStart
from apr_serve.http.error_responses import invalid
from apr_serve.http.errors import ApiError
from apr_serve.responses.events import ResponseEvents, response_head
from apr_serve.responses.request import ResponsesRequest
from apr_serve.responses.store import ResponseStore
from tests.serve import serving
from tests.serve.protocols.chat_events import CALLS, ended

TEXT = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
SHELL = {"type": "function", "name": "shell", "description": "Run.", "strict": False,
         "parameters": TEXT}  # fmt: skip
PATCH = {"type": "custom", "name": "apply_patch", "description": "Edit files.", "format":
         {"type": "grammar", "syntax": "lark", "definition": 'start: "+" /.*/'}}  # fmt: skip
SERVER = {"type": "namespace", "name": "mcp__files__", "description": "Files.",
          "tools": [{"type": "function", "name": "read", "parameters": TEXT}]}  # fmt: skip
SEARCH = {"type": "web_search", "external_web_access": False}
AGENT = {  # as Codex asks a provider of its user's
    "model": "sums", "instructions": "You are a coding agent.",
    "input": [
        {"type": "message", "role": "developer",
         "content": [{"type": "input_text", "text": "Ask before you write."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "2+2="}]},
    ],
    "tools": [SHELL, PATCH, SEARCH, SERVER], "tool_choice": "auto", "parallel_tool_calls": False,
    "reasoning": {"effort": "medium", "summary": "auto", "context": "auto"}, "store": False,
    "stream": True, "include": ["reasoning.encrypted_content"], "prompt_cache_key": "thread",
    "client_metadata": {"x-installation-id": "i"},
}  # fmt: skip
PATCHED = [ToolCallStart(0, 0, "c1", "apply_patch"), ToolCallArguments(0, 0, '{"input": "+ a'),
           ToolCallArguments(0, 0, '\\nü"}'), CALLS]  # fmt: skip


def asked(**fields):
    return ResponsesRequest.model_validate({"model": "m", "input": "Hi", **fields})


def translated(events, **fields):
    """The events of an answer, and the response."""
    request = asked(**fields)
    answer = ResponseEvents(response_head(request, "m"), None, request.known_tools)
    return answer.begin() + answer.push(events), answer.response


@pytest.mark.needs_plugins
def test_what_an_agent_sends_is_answered():
    answer = serving.shared().post("/v1/responses", AGENT)
    assert answer.status_code == 200, answer.text
    last = json.loads(answer.text.rstrip().rpartition("data: ")[2])
    assert last["type"] == "response.completed"
    assert last["response"]["apr_ignored_tools"] == ["web_search"]
    assert [tool["type"] for tool in last["response"]["tools"]] == [
        "function",
        "custom",
        "namespace",
    ]


def test_the_model_is_told_of_functions_texts_and_namespaces():
    shell, patch, read = asked(tools=AGENT["tools"]).tool_use().tools
    assert (shell.name, shell.parameters) == ("shell", TEXT)
    assert patch.parameters["required"] == ["input"]
    assert 'start: "+"' in patch.parameters["properties"]["input"]["description"]
    assert read.name == "mcp__files__read"


def test_a_tool_that_takes_text_is_called_with_text():
    sent, response = translated(PATCHED, tools=[PATCH])
    [item] = response["output"]
    assert (item["type"], item["name"], item["input"]) == (
        "custom_tool_call",
        "apply_patch",
        "+ a\nü",
    )
    state = ResponseStreamState(text_format=omit, input_tools=[])
    known = TypeAdapter(ResponseStreamEvent)
    for event in sent:
        state.handle_event(known.validate_python(event))
    kinds = [event["type"].removeprefix("response.") for event in sent]
    assert kinds[2:-1] == [
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
    ]


def test_of_a_text_that_was_cut_off_there_is_what_came_of_it():
    end = ended("length", "max_tokens")
    _, response = translated([*PATCHED[:2], end], tools=[PATCH])
    [item] = response["output"]
    assert (item["input"], item["status"], response["status"]) == ("+ a", *["incomplete"] * 2)


def test_half_a_character_in_a_text_can_be_sent():
    half = ToolCallArguments(0, 0, '{"input": "a\\ud800"}')
    sent, _ = translated([PATCHED[0], half, CALLS], tools=[PATCH])
    assert [json.dumps(event, ensure_ascii=False).encode() for event in sent]


def test_a_call_within_a_namespace_names_it():
    start = ToolCallStart(0, 0, "c1", "mcp__files__read")
    _, response = translated([start, ToolCallArguments(0, 0, "{}"), CALLS], tools=[SERVER])
    [item] = response["output"]
    assert (item["type"], item["name"], item["namespace"]) == (
        "function_call",
        "read",
        "mcp__files__",
    )


def test_calls_and_what_they_returned_go_back_as_they_came():
    _, response = translated(PATCHED, tools=[PATCH])
    history = [
        {"role": "user", "content": "Edit."}, *response["output"],
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "Done."},
        {"type": "function_call", "call_id": "c2", "name": "read", "namespace": "mcp__files__",
         "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c2", "output": "text"},
    ]  # fmt: skip
    _, patched, done, read, _ = asked(input=history).chat_messages()
    [call] = patched["tool_calls"]
    assert call["function"] == {"name": "apply_patch", "arguments": {"input": "+ a\nü"}}
    assert done == {"role": "tool", "tool_call_id": "c1", "content": "Done."}
    assert read["tool_calls"][0]["function"]["name"] == "mcp__files__read"
    store = ResponseStore()
    store.put(response, asked().items, "me")
    assert store.conversation(response["id"], "me")[-1].input == "+ a\nü"


def test_tools_that_are_not_run_here_are_refused_where_they_are_all_there_is():
    with pytest.raises(ValidationError) as error:
        asked(tools=[SEARCH, {"type": "mcp", "server_label": "x"}])
    assert "'web_search', 'mcp'" in invalid(error.value.errors()).message
    with pytest.raises(ApiError, match="no tool here"):
        asked(tools=[SHELL, SEARCH], tool_choice={"type": "function", "name": "x"}).tool_use()


def test_a_tool_may_be_named_by_what_the_client_calls_it():
    named = asked(tools=[PATCH], tool_choice={"type": "custom", "name": "apply_patch"})
    assert named.tool_use().choice.name == "apply_patch"
