"""Messages of all kinds of clients become what templates take, or are refused by name."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_core.errors import UsageError
from apr_core.text.chat import ChatTemplate, encode_chat
from apr_serve.chat.request import Tool
from apr_serve.tools.messages import normalized, template_tools
from tests.tokenizers_of import tokenizer_of

DATA = Path(__file__).parents[2] / "data"
CHECKPOINT = Path(__file__).parents[3] / "plugins/apr_demo/src/apr_demo/checkpoint"
USER = {"role": "user", "content": "Hello"}


@pytest.fixture(scope="module")
def template():
    return ChatTemplate((DATA / "chat_template_on.jinja").read_text("utf-8"))


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of(CHECKPOINT)


def called(arguments, **more):
    function = {"name": "f", "arguments": arguments}
    call = {"id": "call_1", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call], **more}


def arguments(given_arguments):
    [_, message] = normalized([USER, called(given_arguments)])
    return message["tool_calls"][0]["function"]["arguments"]


def test_system_and_developer_messages_are_folded_in_order_into_the_first():
    folded = normalized([
        {"role": "system", "content": " One. "}, USER,
        {"role": "developer", "content": [{"type": "text", "text": "Two."}]},
        {"role": "assistant", "content": "Hi"}, {"role": "system", "content": "\n"},
        {"role": "system", "content": "Three."},
    ])  # fmt: skip
    assert [m["role"] for m in folded] == ["system", "user", "assistant"]
    assert folded[0]["content"] == "One.\n\nTwo.\n\nThree."


def test_without_system_messages_none_appears():
    assert normalized([USER]) == [USER]


def test_what_agents_send_renders(template):
    messages = normalized([
        USER, {"role": "developer", "content": "Be brief."},
        called('{"a": 1, "b": [true]}', reasoning="Hm.", refusal=None, annotations=[]),
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "ok"}]},
        {"role": "tool", "content": None},
    ])  # fmt: skip
    text = template.render(messages, tools=template_tools([Tool("f", "Does it.")]))
    assert text.startswith("<|im_start|>system\n# Tools") and "Be brief.<|im_end|>" in text
    assert "<think>\nHm.\n</think>" in text and '"description": "Does it."' in text
    assert "<parameter=b>\n[true]\n</parameter>" in text
    assert text.count("<tool_response>") == 2


def test_parts_of_text_are_joined_as_the_template_would():
    parts = ["a", {"type": "text", "text": "b"}, {"text": "c"}, {"type": "refusal", "refusal": "d"}]
    assert normalized([{"role": "user", "content": parts}])[0]["content"] == "abcd"


def test_no_content_is_empty_text_where_a_message_may_have_none():
    for message in ({"role": "assistant"}, {"role": "tool", "content": None, "name": "f"}):
        assert normalized([USER, message])[1]["content"] == ""


def test_reasoning_goes_by_one_name():
    for key in ("reasoning_content", "reasoning"):
        [_, message] = normalized([USER, {"role": "assistant", "content": "x", key: "why"}])
        assert message == {"role": "assistant", "content": "x", "reasoning_content": "why"}
    [_, message] = normalized([USER, {"role": "assistant", "content": "x", "reasoning": None}])
    assert "reasoning_content" not in message


def test_names_and_ids_are_kept():
    assert normalized([{**USER, "name": "Ada"}])[0]["name"] == "Ada"
    [_, tool] = normalized([USER, {"role": "tool", "content": "x", "tool_call_id": "call_1"}])
    assert tool["tool_call_id"] == "call_1"


def test_the_old_function_fields_are_understood():
    _, call, result = normalized([
        USER,
        {"role": "assistant", "function_call": {"name": "f", "arguments": '{"a": 1}'}},
        {"role": "function", "name": "f", "content": "2"},
    ])  # fmt: skip
    assert call["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert result == {"role": "tool", "name": "f", "content": "2"}


ARGUMENTS = [
    ('{"a": {"b": [1, null]}}', {"a": {"b": [1, None]}}),
    ({"a": 1}, {"a": 1}),
    ("", {}),
    (None, {}),
    (" \n", {}),
    (json.dumps('{"a": 1}'), {"a": 1}),
    ("{broken", {"arguments": "{broken"}),
    ("[1]", {"arguments": [1]}),
    ("NaN", {"arguments": "NaN"}),
    ("[" * 100_000, {"arguments": "[" * 100_000}),
    ('{"a":' * 80 + "1" + "}" * 80, {"arguments": '{"a":' * 80 + "1" + "}" * 80}),
]


@pytest.mark.parametrize("case", range(len(ARGUMENTS)))
def test_arguments_become_a_mapping_and_nothing_in_them_is_lost(case, template):
    given_arguments, expected = ARGUMENTS[case]
    assert arguments(given_arguments) == expected
    assert template.render(normalized([USER, called(given_arguments)]))


DEEP = {}
for _ in range(100):
    DEEP = {"a": DEEP}
REFUSED = {
    "nothing": ([], "messages: "),
    "no list": ("hello", "messages: "),
    "an object": ({"role": "user"}, "messages: "),
    "a message that is text": (["hello"], "messages[0]: "),
    "no role": ([USER, {"content": "x"}], "messages[1].role: "),
    "another role": ([{"role": "king", "content": "x"}], "messages[0].role: "),
    "a role that is a list": ([{"role": ["user"], "content": "x"}], "messages[0].role: "),
    "no content": ([{"role": "user"}], "messages[0].content: "),
    "content that is a number": ([{"role": "user", "content": 5}], "messages[0].content: "),
    "content that is an object": ([{"role": "system", "content": {}}], "messages[0].content: "),
    "an image": ([USER, {"role": "user", "content": [
        {"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "x"}}]}],
        "messages[1].content[1]: "),
    "sound": ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0]: "),
    "old sound": ([{"role": "assistant", "audio": {"id": "x"}}], "messages[0].audio: "),
    "a part that is a number": ([{"role": "user", "content": [5]}], "messages[0].content[0]: "),
    "a part without a type": ([{"role": "user", "content": [{}]}], "messages[0].content[0]: "),
    "a part of odd type": ([{"role": "user", "content": [{"type": {}}]}],
                           "messages[0].content[0]: "),
    "a part without text": ([{"role": "user", "content": [{"type": "text"}]}],
                            "messages[0].content[0].text: "),
    "half a character": ([{"role": "user", "content": "\ud800"}], "messages[0].content: "),
    "a name that is none": ([{**USER, "name": 5}], "messages[0].name: "),
    "reasoning that is none": ([{"role": "assistant", "reasoning": 5}], "messages[0].reasoning: "),
    "calls that are none": ([{"role": "assistant", "tool_calls": "x"}], "messages[0].tool_calls: "),
    "a call that is none": ([{"role": "assistant", "tool_calls": [5]}],
                            "messages[0].tool_calls[0]: "),
    "a call of another type": ([{"role": "assistant", "tool_calls": [{"type": "custom"}]}],
                               "messages[0].tool_calls[0].type: "),
    "a call of nothing": ([{"role": "assistant", "tool_calls": [{}]}],
                          "messages[0].tool_calls[0].function: "),
    "a call without a name": ([{"role": "assistant", "tool_calls": [{"function": {}}]}],
                              "messages[0].tool_calls[0].function.name: "),
    "arguments that are a list": ([called([1])], "messages[0].tool_calls[0].function.arguments: "),
    "arguments too deep": ([called(DEEP)], "messages[0].tool_calls[0].function.arguments: "),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_clear_meaning_is_refused_by_name(name):
    messages, where = REFUSED[name]
    with pytest.raises(UsageError) as refused:
        normalized(messages)
    assert refused.value.message.startswith(where), refused.value.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["role", "content", "tool_calls", "reasoning", "name", "tool_call_id", "function_call", "audio"]
)
ROLES = st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"])
ODD = st.dictionaries(FIELDS, JSON | ROLES, max_size=5) | JSON


@settings(max_examples=500, deadline=None)
@given(st.lists(ODD, max_size=4) | JSON)
def test_anything_is_either_taken_or_refused(template, tokenizer, messages):
    try:
        turns = normalized(messages)
        assert all(isinstance(m["content"], str) for m in turns)
        encode_chat(tokenizer, template, turns)
    except UsageError as error:
        assert error.message.startswith(("messages", "the chat template refuses"))


def test_tools_are_shown_as_openai_has_them():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    function = {"name": "f", "description": "Does it.", "parameters": schema}
    assert template_tools([Tool("f", "Does it.", schema)]) == [
        {"type": "function", "function": function}
    ]
    assert template_tools([]) is None


BAD_TOOLS = {
    "no name": ([Tool("")], "tools[0]: "),
    "a name of two words": ([Tool("a b")], "tools[0]: "),
    "a name with a tag in it": ([Tool("f"), Tool("f><b")], "tools[1]: "),
    "a long name": ([Tool("f" * 129)], "tools[0]: "),
    "a name that is a number": ([Tool(5)], "tools[0]: "),
    "two of a name": ([Tool("f"), Tool("f")], "tools[1]: "),
    "a schema too deep": ([Tool("f", "", DEEP)], "tools[0] (f): parameters: "),
    "a schema that is a list": ([Tool("f", "", [1])], "tools[0] (f): parameters"),
}


@pytest.mark.parametrize("name", BAD_TOOLS)
def test_tools_that_cannot_be_called_are_refused_by_name(name):
    tools, where = BAD_TOOLS[name]
    with pytest.raises(UsageError) as refused:
        template_tools(tools)
    assert refused.value.message.startswith(where), refused.value.message


def test_a_long_text_is_encoded_beside_other_work(tokenizer):
    work = threading.Thread(target=tokenizer.encode, args=("some words 12 + 30 = " * 20_000,))
    gaps, last = [], time.perf_counter()
    work.start()
    while work.is_alive():
        time.sleep(0.001)
        gaps.append(time.perf_counter() - last)
        last += gaps[-1]
    assert len(gaps) > 5 and max(gaps) < sum(gaps) / 2
