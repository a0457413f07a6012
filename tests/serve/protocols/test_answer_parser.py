"""Answers become events: calls found, nothing lost, however the text was cut."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from apr_core.generate.deltas import Delta, TokenLogprob, Usage
from apr_core.text.chat import ChatTemplate
from apr_serve.chat.answer_parser import AnswerParser, call_id
from apr_serve.chat.events import ToolCallArguments, ToolCallStart
from apr_serve.chat.request import Tool
from apr_serve.tools.coercion import ArgumentTypes, coerced
from apr_serve.tools.messages import normalized, template_tools
from apr_serve.tools.tool_calls import form_of

TEMPLATE = (Path(__file__).parents[2] / "data/chat_template_on.jinja").read_text("utf-8")
HISTORY = ChatTemplate(TEMPLATE)
ANYTHING = {"type": ["string", "number", "integer", "boolean", "object", "array", "null"]}
F = Tool(
    "f",
    "",
    {
        "type": "object",
        "properties": {
            "n": {"type": "integer"},
            "s": {"type": "string"},
            "o": {"type": "object"},
            "l": {"type": "array"},
            "b": {"type": "boolean"},
            "x": {"type": "number"},
            "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
    },
)
G = Tool("g")
TOOLS = [F, G]
CALL = "<tool_call>\n<function=f>\n<parameter=n>\n12\n</parameter>\n<parameter=s>\nhi\n</parameter>\n</function>\n</tool_call>"  # noqa: E501
MADE = ("f", {"n": 12, "s": "hi"})


def answer(parts, tools=TOOLS, reason="stop", ended_by="stop_token", **options):
    """(text, reasoning, calls, finish reason) of an answer's (channel, text) parts.

    Arguments that are not whole are the text they are.
    """
    parser = AnswerParser(tools, 3, **options)
    events = [e for channel, text in parts for e in parser.push(Delta(3, text, channel))]
    events += parser.push(Delta(3, finish_reason=reason, ended_by=ended_by))
    texts, calls = {"text": "", "reasoning": ""}, []
    for event in events:
        assert event.index == 3
        if isinstance(event, Delta):
            texts[event.channel] += event.text
        elif isinstance(event, ToolCallStart):
            assert event.call == len(calls)
            calls.append([event.name, ""])
        elif isinstance(event, ToolCallArguments):
            calls[event.call][1] += event.fragment
    ends = [e for e in events if isinstance(e, Delta) and e.finish_reason]
    assert ends == events[-1:]
    pairs = [(name, read(arguments)) for name, arguments in calls]
    assert all(isinstance(arguments, dict) for _, arguments in pairs) or ended_by != "stop_token"
    return texts["text"], texts["reasoning"], pairs, events[-1].finish_reason


def read(arguments):
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def text(answered, **options):
    return answer([("text", answered)], **options)


def test_a_call_is_a_call_and_its_surroundings_are_trimmed():
    assert text(f"Let me see.\n\n{CALL}\n") == ("Let me see.", "", [MADE], "tool_calls")


def test_calls_follow_each_other():
    assert text(f"{CALL}\n{CALL}\n\n") == ("", "", [MADE, MADE], "tool_calls")


def test_text_after_a_call_is_kept_apart_from_text_before_it():
    assert text(f"One.\n\n{CALL}\n\nTwo. ")[0] == "One.\n\nTwo. "
    assert text(f"{CALL}\n\nTwo.")[0] == "Two."
    assert text(f"One.{CALL}Two.")[0] == "One.\nTwo."


def test_without_parallel_calls_the_first_counts():
    assert text(f"{CALL}\n{CALL}", parallel=False) == ("", "", [MADE], "tool_calls")


def test_calls_as_json_are_calls():
    call = '<tool_call>\n{"name": "f", "arguments": {"n": 12, "s": "hi"}}\n</tool_call>'
    assert text(f"Well\n{call}\n{CALL}") == ("Well", "", [MADE, MADE], "tool_calls")
    wrapped = json.dumps({"name": "f", "arguments": '{"n": 12, "s": "hi"}'})
    assert text(f"<tool_call>{wrapped}</tool_call>")[2] == [MADE]
    assert text('<tool_call>\n{"name": "g"}\n</tool_call>')[2] == [("g", {})]


def test_brackets_within_strings_do_not_end_json():
    arguments = {"s": '}"{\\ ]</tool_call>', "l": [["\\"]]}
    call = json.dumps({"name": "f", "arguments": arguments})
    assert text(f"<tool_call>\n{call}\n</tool_call>")[2] == [("f", arguments)]


TOLERATED = {
    "no opener": CALL.removeprefix("<tool_call>\n"),
    "no closer of the call": CALL.removesuffix("\n</tool_call>"),
    "no closers": CALL.removesuffix("\n</parameter>\n</function>\n</tool_call>"),
    "no closer of the parameter": CALL.replace("hi\n</parameter>\n", "hi\n"),
    "no closer of the first": CALL.replace("12\n</parameter>\n", "12\n"),
    "no closer of the function": CALL.replace("</function>\n", ""),
    "a closer cut short": CALL.removesuffix("arameter>\n</function>\n</tool_call>"),
    "a later closer cut short": CALL.removesuffix("ction>\n</tool_call>"),
    "the last closer cut short": CALL.removesuffix("_call>"),
    "no line breaks": re.sub(r"\n", "", CALL),
    "blank lines": CALL.replace("\n<", "\n\n<").replace("12\n\n", "12\n").replace("hi\n\n", "hi\n"),
    "json without its last bracket": '<tool_call>\n{"name": "f", "arguments": {"n": 12, "s": "hi"}\n</tool_call>',  # noqa: E501
    "json without any closer": '<tool_call>\n{"name": "f", "arguments": {"n": 12, "s": "hi"',
}


@pytest.mark.parametrize("name", TOLERATED)
def test_what_a_model_forgets_is_forgiven(name):
    assert text(TOLERATED[name]) == ("", "", [MADE], "tool_calls")
    assert text(f"So:\n{TOLERATED[name]}") == ("So:", "", [MADE], "tool_calls")


ONLY_LOOKS = [
    "if a < b and c <d>: <tool_call> is a word, so is <function=f>",
    CALL.replace("=f>", "=h>"),
    CALL.replace("<function=f>", "<function f>"),
    '<tool_call>\n{"name": "h", "arguments": {}}\n</tool_call>',
    '<tool_call>\n{"name": "f", "arguments": [1]}\n</tool_call>',
    '<tool_call>\n{"name": "f", "arguments": {"n": \n</tool_call> {',
    '<tool_call>\n{"name": f}\n</tool_call>\n\n',
    '<tool_call>\n{"name": ["f"], "arguments": {}}',
    "<tool_call>\n" + '{"a":' * 5000 + "</tool_call>",
    "  <function=f>\n</function>\n",
    "<function=f> would be wrong\n",
    "<tool_call>\n<function=f>\nno parameters at all",
    "<tool_call>",
    "<tool_",
    "<tool_call>\n<function=f",
    " \n leading and trailing \n\n",
    "\n",
]


@pytest.mark.parametrize("words", ONLY_LOOKS, ids=range(len(ONLY_LOOKS)))
def test_what_only_looks_like_a_call_comes_back_word_for_word(words):
    assert text(words) == (words, "", [], "stop")


def test_without_tools_everything_is_text():
    assert text(CALL, tools=()) == (CALL, "", [], "stop")


def test_what_follows_a_broken_parameter_is_text_and_the_call_stands():
    broken = "<tool_call>\n<function=f>\n<parameter=n>\n1\n</parameter>\n<parameter=s\nhi"
    assert text(broken) == ("<parameter=s\nhi", "", [("f", {"n": 1})], "tool_calls")


def test_a_key_given_twice_counts_once():
    twice = CALL.replace("<parameter=s>\nhi", "<parameter=n>\n13")
    assert text(twice)[2] == [("f", {"n": 12})]


# Calls in the thought


def test_a_call_that_ends_the_thought_is_made():
    expected = ("", "Hm.", [MADE], "tool_calls")
    assert answer([("reasoning", f"Hm.\n\n{CALL}\n")]) == expected
    assert answer([("reasoning", f"Hm.\n{CALL}\n"), ("text", "\n")]) == expected
    assert answer([("reasoning", f"Hm.\n{CALL[:-20]}")]) == expected
    assert answer([("reasoning", f"Hm.\n{CALL}"), ("text", "\nDone.")])[0] == "Done."
    assert answer([("reasoning", f"Hm.\n{CALL}"), ("text", "Done.")])[2] == [MADE]


def test_a_thought_that_goes_on_and_ends_without_an_answer_still_calls():
    assert answer([("reasoning", f"Hm.\n{CALL}\nThat it is.")])[2:] == ([MADE], "tool_calls")


def test_a_call_that_is_only_thought_of_stays_in_the_thought():
    drafted = f"I could write {CALL}\nbut no.\n"
    assert answer([("reasoning", drafted), ("text", "No.")]) == ("No.", drafted, [], "stop")
    open_draft = f"So: {CALL[:60]}"
    assert answer([("reasoning", open_draft), ("text", "No.")]) == ("No.", open_draft, [], "stop")


def test_a_call_that_is_drafted_and_then_made_is_made_once():
    drafted = f"First {CALL}\n"
    assert answer([("reasoning", drafted), ("text", CALL)]) == ("", drafted, [MADE], "tool_calls")


def test_a_thought_that_is_taken_up_again_was_not_over():
    parts = [("reasoning", f"a {CALL}"), ("text", "\n"), ("reasoning", "b"), ("text", "c")]
    assert answer(parts) == ("\nc", f"a {CALL}b", [], "stop")


# However it is cut


SEPARATORS = st.sampled_from(["\n", "\n\n", " ", ""])
PIECES = st.sampled_from([
    CALL, CALL[:-12], CALL[12:], CALL[:40], CALL[40:], "Text. ", "<", "</", "<tool_call>", "\n",
    "</tool_call>", "</function>", "</parameter>", "<function=f>", "<function=g>", "<parameter=o>",
    "<parameter=s>", "<parameter=n", '{"name": "g", "arguments": {}}', '{"a": [1, "<"]}', '"}',
    "None", "7", "é😀", "</think>",
])  # fmt: skip
TEXTS = st.lists(st.tuples(PIECES, SEPARATORS), max_size=9).map(
    lambda pairs: "".join(a + b for a, b in pairs)
)


def cut(words, sizes):
    """The text in pieces of these sizes, over and over."""
    pieces, at = [], 0
    while at < len(words):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(words[at : at + size])
        at += size
    return pieces


@settings(max_examples=600, deadline=None)
@given(TEXTS, TEXTS, st.lists(st.integers(1, 25), min_size=1, max_size=6))
@example(f"a {CALL}\n", f"\n{CALL}\nb", [1])
def test_how_the_text_is_cut_does_not_matter(thought, prose, sizes):
    whole = answer([("reasoning", thought)] * bool(thought) + [("text", prose)] * bool(prose))
    parts = [("reasoning", piece) for piece in cut(thought, sizes)]
    parts += [("text", piece) for piece in cut(prose, sizes)]
    assert answer(parts) == whole
    if not whole[2]:
        assert whole[:2] == (prose, thought)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_nothing_but_calls_and_space_is_taken_out_of_a_text(words):
    prose, _, calls, _ = text(words)
    if not calls:
        assert prose == words
    left = iter(words)
    assert all(sign in left for sign in prose if not sign.isspace())


# The template writes history, the parser reads answers: each other's inverse

NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40).filter(
    lambda s: "</parameter>" not in s
)
NUMBERS = st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False)
NESTED = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
TYPED = st.one_of(
    WORDS.map(lambda v: ("string", v)),
    st.integers().map(lambda v: ("integer", v)),
    NUMBERS.map(lambda v: ("number", v)),
    st.booleans().map(lambda v: ("boolean", v)),
    st.none().map(lambda v: ("null", v)),
    st.lists(NESTED, max_size=3).map(lambda v: ("array", v)),
    st.dictionaries(NAMES, NESTED, max_size=3).map(lambda v: ("object", v)),
)
MADE_CALLS = st.lists(
    st.tuples(NAMES, st.dictionaries(NAMES, TYPED, max_size=4)),
    min_size=1,
    max_size=3,
    unique_by=lambda call: call[0],
)


def rendered(calls, content):
    """What the template writes for an assistant's message with these calls."""
    functions = [
        {"name": name, "arguments": json.dumps({k: v for k, (_, v) in typed.items()})}
        for name, typed in calls
    ]
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": content, "reasoning_content": "",
         "tool_calls": [{"type": "function", "function": f} for f in functions]},
    ]  # fmt: skip
    written = HISTORY.render(normalized(messages), add_generation_prompt=False)
    return written.rpartition("</think>\n\n")[2].removesuffix("<|im_end|>\n")


@settings(max_examples=300, deadline=None)
@given(MADE_CALLS, st.sampled_from(["", "I look it up."]), st.integers(1, 9))
def test_a_call_in_history_reads_back_as_it_was(calls, content, size):
    tools = [
        Tool(name, "", {"properties": {k: {"type": kind} for k, (kind, _) in typed.items()}})
        for name, typed in calls
    ]
    parts = [("text", piece) for piece in cut(rendered(calls, content), [size])]
    expected = [(name, {k: v for k, (_, v) in typed.items()}) for name, typed in calls]
    assert answer(parts, tools=tools) == (content, "", expected, "tool_calls")


def test_the_template_tells_the_form_it_teaches():
    hermes = 'within <tool_call></tool_call>:\n{"name": <name>, "arguments": <json>}'
    assert (form_of(TEMPLATE), form_of(hermes), form_of("{{ messages }}")) == ("tags", "json", None)


# Arguments by their schema

VALUES = [
    ("007", {"type": "string"}, "007"),
    (" x ", {"type": "string"}, " x "),
    ('"quoted"', {"type": "string"}, '"quoted"'),
    ("None", {"type": "string"}, "None"),
    ("007", {"type": "integer"}, 7),
    ("5.0", {"type": "integer"}, 5),
    ("5.5", {"type": "integer"}, "5.5"),
    ("five", {"type": "integer"}, "five"),
    (" 5 ", {"type": "number"}, 5),
    ("-1.5e3", {"type": "number"}, -1500.0),
    ("NaN", {"type": "number"}, "NaN"),
    ("True", {"type": "boolean"}, True),
    ("false", {"type": "boolean"}, False),
    ("yes", {"type": "boolean"}, "yes"),
    ("None", {"type": "null"}, None),
    ("null", {"type": ["string", "null"]}, None),
    ("nul", {"type": ["string", "null"]}, "nul"),
    ("3", {"type": ["string", "integer"]}, 3),
    ("three", {"type": ["string", "integer"]}, "three"),
    ('{"a": 1}', {"type": "object"}, {"a": 1}),
    ("{'a': True, 'b': (1, None)}", {"type": "object"}, {"a": True, "b": [1, None]}),
    ("[1, 2", {"type": "array"}, "[1, 2"),
    ("{1, 2}", {"type": "array"}, "{1, 2}"),
    ("[" * 5000, {"type": "array"}, "[" * 5000),
    ("[1]", {"anyOf": [{"type": "string"}, {"type": "array"}]}, [1]),
    ("[1]", {"oneOf": [{"type": "object"}, {"type": "null"}]}, "[1]"),
    ("2", {"enum": [1, 2]}, 2),
    ("2", {"enum": ["1", "2"]}, "2"),
    ("2", {"const": 2}, 2),
    ("4", {"$ref": "#/$defs/whole"}, 4),
    ("4", {"$ref": "#/$defs/loop"}, 4),
    ("4", {"$ref": "#/$defs/none"}, 4),
    ("4", {"allOf": [{"$ref": "#/$defs/whole"}, {"type": "number"}]}, 4),
    ("4", {"type": "str"}, "4"),
    ("4", {"type": "int"}, 4),
    ("{}", {"properties": {}}, {}),
    ("[]", {"items": {}}, []),
    ("null", {"type": "integer", "nullable": True}, None),
    ("4", {}, 4),
    ("True", True, True),
    ("word", {}, "word"),
]


@pytest.mark.parametrize("case", range(len(VALUES)))
def test_values_are_what_the_schema_says(case):
    written, schema, value = VALUES[case]
    defs = {"whole": {"type": "integer"}, "loop": {"$ref": "#/$defs/loop"}}
    types = ArgumentTypes({"properties": {"a": schema}, "$defs": defs})
    result = json.loads(coerced(written, types.of("a")))
    assert (result, type(result)) == (value, type(value))


def test_numbers_keep_their_digits():
    assert coerced('{"a": 1.10e400}', frozenset({"object"})) == '{"a": 1.10e400}'
    assert coerced("9" * 9000, frozenset({"integer"})) == "9" * 9000


def test_what_is_no_unicode_is_escaped():
    assert coerced("{'a': '\\ud800'}", frozenset({"object"})).encode() == b'{"a": "\\ud800"}'


def test_tangled_schemas_allow_anything():
    wide = {"anyOf": [{"$ref": "#/properties/a"}] * 500}
    assert ArgumentTypes({"properties": {"a": wide}}).of("a") >= {"string", "object"}


# Beside the text


def test_strings_stream_as_they_come():
    parser = AnswerParser(TOOLS, 0)
    parser.push(Delta(0, "<tool_call>\n<function=f>\n<parameter=s>\n"))
    fragments = [
        "".join(e.fragment for e in parser.push(Delta(0, word)))
        for word in ("Hello", ' "wor', "ld\n", "\n", "</par", "t>")
    ]
    assert fragments == ["Hello", ' \\"wor', "ld", "\\n", "", "\\n</part>"]


def test_ids_are_new_each_time():
    ids = {call_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch(r"call_[A-Za-z0-9]{24}", i) for i in ids)


def test_log_probabilities_go_with_their_text_and_those_of_calls_are_left_out():
    parser, events = AnswerParser(TOOLS, 0), []
    words = ["Yes", ".", "\n\n", *cut(CALL, [20]), "\n", "Bye"]
    for i, word in enumerate(words):
        events += parser.push(Delta(0, word, logprobs=(TokenLogprob(i, -1.0),)))
    events += parser.push(Delta(0, finish_reason="stop"))
    kept = [p.id for e in events if isinstance(e, Delta) for p in e.logprobs]
    assert kept == [0, 1, len(words) - 1]


@pytest.mark.parametrize("tools", [(), TOOLS], ids=["without", "with"])
def test_plain_text_has_all_its_log_probabilities(tools):
    parser, events = AnswerParser(tools, 0), []
    for i, word in enumerate(["Is ", "", "1 <", " 2", " ?", " \n"]):
        events += parser.push(Delta(0, word, logprobs=(TokenLogprob(i, -1.0),)))
    events += parser.push(Delta(0, finish_reason="length"))
    deltas = [e for e in events if isinstance(e, Delta)]
    assert "".join(e.text for e in deltas) == "Is 1 < 2 ? \n"
    assert [p.id for e in deltas for p in e.logprobs] == [0, 1, 2, 3, 4, 5]


def test_the_end_tells_why_and_what_it_cost():
    error = RuntimeError("x")
    last = Delta(1, finish_reason="error", ended_by="error", usage=Usage(1, 0, 2), error=error)
    assert AnswerParser((), 1).push(last) == AnswerParser(TOOLS, 1).push(last) == [last]


def test_tools_without_a_schema_take_what_comes():
    assert text(CALL, tools=[Tool("f")])[2] == [MADE]
    assert template_tools([Tool("f")])[0]["function"]["parameters"]["type"] == "object"
