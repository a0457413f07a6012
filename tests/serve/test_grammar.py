"""Answers under a grammar: whatever the model would like to say, the result fits."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema_rs
import numpy as np
import pytest

from apr_core.errors import UsageError
from apr_core.generate.deltas import Delta
from apr_serve.chat.answer_parser import AnswerParser
from apr_serve.chat.events import ToolCallArguments, ToolCallStart
from apr_serve.chat.request import Tool
from apr_serve.grammar import grammar
from tests.tokenizers_of import tokenizer_of

CHECKPOINT = Path(__file__).parents[2] / "plugins/apr_demo/src/apr_demo/checkpoint"
WEATHER = Tool(
    "get_weather",
    "",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "unit": {"enum": ["celsius", "fahrenheit", None]},
            "hourly": {"type": "boolean"},
            "at": {"anyOf": [{"$ref": "#/$defs/Point"}, {"type": "null"}]},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
        "$defs": {
            "Point": {
                "type": "object",
                "properties": {"x": {"type": "number"}, "y": {"type": "number"}},
                "required": ["x", "y"],
                "additionalProperties": False,
            }
        },
    },
)
LIMITED = Tool(
    "book",
    "",
    {
        "type": "object",
        "properties": {
            "code": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{3}$"},
            "note": {"type": "string", "minLength": 2, "maxLength": 6},
            "day": {"type": "string", "format": "date"},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
            "word": {"type": "string", "pattern": "q+|z"},
            "either": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]},
        },
        "required": ["code", "note", "day", "tags", "word", "either"],
    },
)
PING = Tool("ping")


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of(CHECKPOINT)


def written(tokenizer, make, seed, limit=3000):
    """The text that random scores make under the constraint.

    From the 60th token on the end and what closes things are preferred, so that texts stay short.
    """
    rng, constraint = np.random.default_rng(seed), make()
    closing = [i for i in range(tokenizer.vocab_size) if closes(tokenizer, i)]
    end_of_value, ids, wanted = tokenizer.encode("\n</parameter>\n"), [], []
    for step in range(limit):
        scores = rng.normal(size=tokenizer.vocab_size).astype(np.float32)
        if step > 60:
            scores[closing] += 4
            scores[list(tokenizer.stop_ids)] += 100
            wanted = wanted or end_of_value
            scores[wanted[0]] += 50
        scores = constraint.mask(scores)
        assert np.isfinite(scores).any(), "nothing may follow"
        token = int(scores.argmax())
        constraint.accept(token)
        if token in tokenizer.stop_ids:
            break
        ids.append(token)
        wanted = wanted[1:] if wanted[:1] == [token] else []
        if constraint.complete:
            break
    assert constraint.complete, tokenizer.decode(ids)
    return tokenizer.decode(ids)


def closes(tokenizer, token):
    text = tokenizer.token_bytes(token).decode("utf-8", "replace")
    return token in tokenizer.stop_ids or (text and text in '"}]z\n</parameter>' and text != "<p")


def events(tools, text, **options):
    parser = AnswerParser(tools, 0, **options)
    return [*parser.push(Delta(0, text)), *parser.push(Delta(0, finish_reason="stop"))]


def calls(tools, text):
    """(name, arguments) of each call; nothing else may be in the text."""
    parts = []
    for event in events(tools, text):
        assert not getattr(event, "text", ""), event
        if isinstance(event, ToolCallStart):
            parts.append([event.name, ""])
        if isinstance(event, ToolCallArguments):
            parts[-1][1] += event.fragment
    return [(name, parsed(arguments)) for name, arguments in parts]


def parsed(text):
    """JSON; a number too large for Python is a large one."""
    return json.loads(text, parse_float=lambda t: max(-1e308, min(float(t), 1e308)))


SCHEMAS = [
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
     "required": ["a"], "additionalProperties": False},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"type": "object", "additionalProperties": {"type": ["integer", "null"]}},
    {"enum": ["red", "green", 3]},
    {"$defs": {"node": {"type": "object", "properties": {
        "v": {"type": "string", "maxLength": 4},
        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
        "required": ["v", "next"], "additionalProperties": False}}, "$ref": "#/$defs/node"},
    {"type": "string", "pattern": "^[a-c]{2,5}$"},
    {"type": "object", "properties": {"when": {"type": "string", "format": "date-time"},
                                      "n": {"type": "number", "minimum": -1, "maximum": 1}},
     "required": ["when", "n"], "additionalProperties": False},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_whatever_is_drawn_fits_the_schema(tokenizer, schema):
    make, check = grammar.json_schema(tokenizer, schema), jsonschema_rs.validator_for(schema)
    for seed in range(25):
        text = written(tokenizer, make, seed)
        assert check.is_valid(parsed(text)), text


def test_whatever_is_drawn_is_an_object(tokenizer):
    make = grammar.json_object(tokenizer)
    texts = [written(tokenizer, make, seed) for seed in range(60)]
    assert all(isinstance(json.loads(text), dict) for text in texts)
    assert len(set(texts)) > 20


@pytest.mark.parametrize("form", ["tags", "json"])
@pytest.mark.parametrize("tools", [[WEATHER], [LIMITED], [WEATHER, PING, LIMITED]], ids=len)
def test_required_calls_are_read_back_and_fit_their_schemas(tokenizer, tools, form):
    make = grammar.tool_calls(tokenizer, tools, form=form)
    schemas = {t.name: jsonschema_rs.validator_for(dict(t.parameters)) for t in tools}
    seen = set()
    for seed in range(40):
        text = written(tokenizer, make, seed)
        pairs = calls(tools, text)
        assert pairs, text
        for name, arguments in pairs:
            assert schemas[name].is_valid(arguments), (text, arguments)
            seen |= {name, *arguments}
    assert {t.name for t in tools} <= seen


def test_without_parallel_there_is_one_call(tokenizer):
    make = grammar.tool_calls(tokenizer, [PING], parallel=False)
    assert {len(calls([PING], written(tokenizer, make, seed))) for seed in range(10)} == {1}


def test_arguments_may_come_in_any_order(tokenizer):
    make = grammar.tool_calls(tokenizer, [WEATHER], parallel=False)
    first = set()
    for seed in range(30):
        [(_, arguments)] = calls([WEATHER], written(tokenizer, make, seed))
        first.add(next(iter(arguments)))
    assert len(first) > 2


def test_where_a_call_is_not_required_text_may_come_instead(tokenizer):
    make = grammar.tool_calls(tokenizer, [WEATHER], required=False)
    constraint = make()
    for token in tokenizer.encode("I would rather not. <function> is a word."):
        scores = constraint.mask(np.zeros(tokenizer.vocab_size, np.float32))
        assert scores[token] == 0
        constraint.accept(token)
    assert np.isfinite(constraint.mask(np.zeros(tokenizer.vocab_size, np.float32))[505])
    call = tokenizer.token_id("<tool_call>")
    constraint.accept(call)
    assert np.isneginf(constraint.mask(np.zeros(tokenizer.vocab_size, np.float32))[505])


def test_where_a_call_is_not_required_json_may_come_instead(tokenizer):
    answer = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
              "additionalProperties": False}  # fmt: skip
    make = grammar.tool_calls(tokenizer, [PING], required=False, answer=answer)
    texts = {written(tokenizer, make, seed).strip() for seed in range(40)}
    documents = {text for text in texts if not text.startswith("<tool_call>")}
    assert documents and all(type(json.loads(text)["ok"]) is bool for text in documents)
    assert documents != texts


def test_the_end_is_allowed_exactly_where_the_grammar_is_satisfied(tokenizer):
    constraint = grammar.json_schema(tokenizer, {"type": "integer"})()
    [stop] = tokenizer.stop_ids
    zeros = np.zeros(tokenizer.vocab_size, np.float32)
    assert np.isneginf(constraint.mask(zeros.copy())[stop])
    constraint.accept(*tokenizer.encode("7"))
    assert constraint.mask(zeros.copy())[stop] == 0 and not constraint.complete
    constraint.accept(stop)
    assert constraint.complete


def test_nothing_follows_a_closed_object(tokenizer):
    constraint = grammar.json_object(tokenizer)()
    for token in tokenizer.encode("{}"):
        assert not constraint.complete
        constraint.accept(token)
    assert constraint.complete


def test_control_tokens_are_no_text(tokenizer):
    constraint = grammar.json_schema(tokenizer, {"type": "string"})()
    constraint.accept(*tokenizer.encode('"'))
    scores = constraint.mask(np.zeros(tokenizer.vocab_size, np.float32))
    assert np.isneginf(scores[[t.id for t in tokenizer.added.values()]]).all()


def test_masks_fit_logits_of_any_length_and_read_only_ones(tokenizer):
    constraint = grammar.json_object(tokenizer)()
    allowed = np.isfinite(constraint.mask(np.zeros(tokenizer.vocab_size, np.float32)))
    long = constraint.mask(np.zeros(tokenizer.vocab_size + 100, np.float32))
    assert (np.isfinite(long) == np.pad(allowed, (0, 100))).all()
    short = np.zeros(300, np.float32)
    short.flags.writeable = False
    assert (np.isfinite(constraint.mask(short)) == allowed[:300]).all() and not short.any()


def test_answers_do_not_share_their_way(tokenizer):
    make = grammar.json_schema(tokenizer, {"enum": ["ab", "cd"]})
    one, other = make(), make()
    for token in tokenizer.encode('"ab"'):
        one.accept(token)
    assert one.complete and not other.complete
    assert written(tokenizer, make, 0) in ('"ab"', '"cd"')


def meeting(patterns):
    """Patterns that hold together: what the library tries grows with their product."""
    return {"allOf": [{"type": "string", "pattern": f".*{i}.*a.{{5}}"} for i in range(patterns)]}


def test_schemas_that_multiply_without_end_are_refused(tokenizer):
    with pytest.raises(UsageError, match="response_format: the schema is too complex"):
        grammar.json_schema(tokenizer, meeting(30))
    tool = Tool("f", "", {"type": "object", "properties": {"a": {"items": meeting(30)}}})
    with pytest.raises(UsageError, match="too complex"):
        grammar.tool_calls(tokenizer, [tool])


def test_schemas_that_multiply_a_little_are_kept(tokenizer):
    schema = {"allOf": [{"type": "string", "pattern": "q|z"}, {"type": "string", "maxLength": 9}]}
    make, check = grammar.json_schema(tokenizer, schema), jsonschema_rs.validator_for(schema)
    for seed in range(10):
        text = written(tokenizer, make, seed)
        assert check.is_valid(parsed(text)), text


def test_more_arguments_than_can_be_compiled_in_time_are_refused(tokenizer):
    wide = {"type": "object", "properties": {f"p{i}": {} for i in range(900)}}
    with pytest.raises(UsageError, match="5400 arguments"):
        grammar.tool_calls(tokenizer, [Tool(f"f{i}", "", wide) for i in range(6)])


def test_a_tool_that_cannot_be_kept_is_named(tokenizer):
    bad = Tool("bad", "", {"type": "object", "properties": {"a": {"type": "array", "not": {}}}})
    with pytest.raises(UsageError, match=r"tool bad: .*not"):
        grammar.tool_calls(tokenizer, [PING, bad, WEATHER])


def nested(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


BAD_TOOLS = {
    "pattern with inner anchors": {"properties": {"a": {"type": "string", "pattern": "^a|b$"}}},
    "string keyword": {"properties": {"a": {"type": "string", "not": {"const": "x"}}}},
    "contradiction": {"properties": {"a": {"type": "integer", "minimum": 2, "maximum": 1}}},
    "lengths": {"properties": {"a": {"type": "string", "minLength": 2, "maxLength": 1}}},
    "look-ahead": {"properties": {"a": {"type": "string", "pattern": "^(?=a)b$"}}},
    "keywords beside properties": {"properties": {}, "anyOf": [{}]},
    "name with a bracket": {"properties": {"a>b": {}}},
    "closing tag": {"properties": {"a": {"enum": ["</parameter>"]}}},
    "reference beside": {"properties": {"a": {"$ref": "#/$defs/s", "maxLength": 2}},
                         "$defs": {"s": {"type": "string"}}},
    "nothing": {"properties": {"a": False}},
    "no schema": {"properties": {"a": []}},
    "a remote reference": {"properties": {"a": {"$ref": "http://example.org/x"}}},
    "a missing reference": {"properties": {"a": {"$ref": "#/$defs/b"}}},
    "a circle": {"properties": {"a": {"$ref": "#/properties/a"}}},
    "deep": {"properties": {"a": nested(70)}},
    "no map": {"properties": 5},
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TOOLS)
def test_arguments_that_cannot_be_kept_are_refused(tokenizer, name):
    with pytest.raises(UsageError, match="tool f: ") as refused:
        grammar.tool_calls(tokenizer, [Tool("f", "", {"type": "object", **BAD_TOOLS[name]})])
    for word in ("after_opening", "function=", "(?s:", "\n"):  # of our own grammar
        assert word not in refused.value.message


def test_a_model_that_knows_no_tools_is_asked_for_none(tokenizer):
    with pytest.raises(UsageError, match="template"):
        grammar.tool_calls(tokenizer, [PING], form=None)
    with pytest.raises(UsageError, match="no tools"):
        grammar.tool_calls(tokenizer, [])


def test_arguments_of_any_name_where_the_schema_lists_none(tokenizer):
    tool = Tool("f", "", {"type": "object", "additionalProperties": {"type": "integer"}})
    make = grammar.tool_calls(tokenizer, [tool], parallel=False)
    everything = {}
    for seed in range(30):
        [(_, arguments)] = calls([tool], written(tokenizer, make, seed))
        everything |= arguments
    assert everything and all(type(value) is int for value in everything.values())


def test_many_arguments_come_in_the_order_of_the_schema(tokenizer):
    properties = {f"a{i:02}": {"type": "boolean"} for i in range(70)}
    tool = Tool("f", "", {"type": "object", "properties": properties, "required": ["a03"]})
    make = grammar.tool_calls(tokenizer, [tool], parallel=False)
    for seed in range(5):
        [(_, arguments)] = calls([tool], written(tokenizer, make, seed))
        assert "a03" in arguments and list(arguments) == sorted(arguments)


def test_the_tokenizer_is_built_once(tokenizer):
    grammar.prepare(tokenizer)
    assert grammar._library_tokenizer(tokenizer) is grammar._library_tokenizer(tokenizer)
