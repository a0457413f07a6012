"""What of JSON schema a grammar keeps: all that restricts, nothing that does not, or a refusal."""

from __future__ import annotations

import threading

import jsonschema_rs
import numpy as np
import pytest

from apr_core.errors import UsageError
from apr_serve.chat.request import Tool
from apr_serve.grammar import grammar
from apr_serve.grammar.schemas import FORMATS, checked
from tests.serve.test_grammar import CHECKPOINT, calls, nested, parsed, written
from tests.tokenizers_of import tokenizer_of


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of(CHECKPOINT)


REFUSED = {
    "no type": ({"type": "foo"}, "foo"),
    "negation": ({"not": {}}, "not"),
    "conditions": ({"if": {}, "then": {}}, "if"),
    "unique items": ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    "look-ahead": ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    "broken pattern": ({"type": "string", "pattern": "("}, "unclosed group"),
    "names within limits": ({"propertyNames": {"maxLength": 3}}, "propertyNames"),
    "a remote reference": ({"$ref": "http://example.org/x"}, "http://example.org/x"),
    "a missing reference": ({"$ref": "#/$defs/no"}, "/$defs/no"),
    "itself": ({"$ref": "#"}, "nothing can satisfy"),
    "no value": ({"enum": []}, "empty"),
    "contradiction": ({"type": "integer", "minimum": 3, "maximum": 2}, "greater"),
    "overlapping oneOf": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "anyOf"),
    "an old keyword": ({"divisibleBy": 3}, "divisibleBy"),
    "an old boolean": ({"minimum": 1, "exclusiveMinimum": True}, "exclusiveMinimum"),
    "a knob of the library": ({"x-guidance": {"lenient": True}}, "x-guidance"),
    "not a number": ({"const": float("nan")}, "JSON"),
    "a list": ([], "object"),
    "no schema": (True, "object"),
    "too long": ({"enum": ["x" * 300_000]}, "characters"),
    "too wide": ({"properties": {f"p{i}": {} for i in range(1001)}}, "properties"),
    "a huge count": ({"type": "string", "minLength": 10**18}, "invalid"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_kept_is_refused_with_a_reason(tokenizer, name):
    schema, word = REFUSED[name]
    with pytest.raises(UsageError) as refused:
        grammar.json_schema(tokenizer, schema)
    message = refused.value.message
    assert message.startswith("response_format: ") and word in message, message
    assert "start:" not in message and "\n" not in message, message


NOTED = {  # as libraries that make schemas of types write them, and the same without notes
    "a path": ({"type": "string", "format": "path"}, {"type": "string"}),
    "a password": (
        {"type": "string", "format": "password", "writeOnly": True, "maxLength": 5},
        {"type": "string", "maxLength": 5},
    ),
    "a number": ({"type": "integer", "format": "int64"}, {"type": "integer"}),
    "what is encoded": ({"type": "string", "contentEncoding": "base64"}, {"type": "string"}),
    "words of others": ({"type": "string", "x-order": 1, "markdownDescription": "*"},
                        {"type": "string"}),
    "a record": (
        {"type": "object", "propertyNames": {"type": "string"},
         "additionalProperties": {"type": "boolean"}},
        {"type": "object", "additionalProperties": {"type": "boolean"}},
    ),
    "properties of such names": (
        {"type": "object", "properties": {"format": {"const": "path"}}, "required": ["format"]},
        {"type": "object", "properties": {"format": {"const": "path"}}, "required": ["format"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTED)
def test_what_restricts_nothing_is_left_out(tokenizer, name):
    schema, plain = NOTED[name]
    assert checked(schema, "") == plain or name in (
        "words of others",
        "what is encoded",
        "a password",
    )
    tool = Tool("f", "", {"type": "object", "properties": {"a": schema}, "required": ["a"]})
    check = jsonschema_rs.validator_for(plain)
    for seed in range(5):
        assert check.is_valid(
            parsed(written(tokenizer, grammar.json_schema(tokenizer, schema), seed))
        )
        [(_, arguments)] = calls(
            [tool], written(tokenizer, grammar.tool_calls(tokenizer, [tool], parallel=False), seed)
        )
        assert check.is_valid(arguments["a"])


HEADS = [
    {"$id": "https://example.org/x.json"},
    {"$schema": "http://json-schema.org/schema#"},
    {"$schema": "https://json-schema.org/draft-07/schema", "$id": "x"},
    {"$schema": "http://json-schema.org/draft-07/schema#"},
]


@pytest.mark.parametrize("head", HEADS, ids=range(len(HEADS)))
def test_whatever_a_schema_is_called_its_references_lead_where_they_led(tokenizer, head):
    point = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    schema = {
        "type": "object", "definitions": {"Point": {**point, "additionalProperties": False}},
        "properties": {"a": {"$ref": "#/definitions/Point"}}, "required": ["a"],
    }  # fmt: skip
    tool, check = Tool("f", "", schema | head), jsonschema_rs.validator_for(schema)
    text = written(tokenizer, grammar.json_schema(tokenizer, schema | head), 1)
    assert check.is_valid(parsed(text)), text
    for form in ("tags", "json"):
        make = grammar.tool_calls(tokenizer, [tool], parallel=False, form=form)
        [(_, arguments)] = calls([tool], written(tokenizer, make, 1))
        assert check.is_valid(arguments), arguments


@pytest.mark.parametrize("form", FORMATS)
def test_formats_are_kept_in_json_and_in_calls(tokenizer, form):
    schema = {"type": "string", "format": form, "maxLength": 60}
    tool = Tool("f", "", {"type": "object", "properties": {"a": schema}, "required": ["a"]})
    check = jsonschema_rs.validator_for(schema, validate_formats=True)
    one = grammar.json_schema(tokenizer, schema)
    other = grammar.tool_calls(tokenizer, [tool], parallel=False)
    for seed in range(8):
        text = parsed(written(tokenizer, one, seed))
        assert check.is_valid(text), text
        [(_, arguments)] = calls([tool], written(tokenizer, other, seed))
        assert check.is_valid(arguments["a"]), arguments


def chain(links, kind):
    """Definitions each of which refers to the next."""
    wrap = {
        "plain": lambda r: r,
        "properties": lambda r: {"type": "object", "properties": {"a": r}, "required": ["a"]},
        "mixed": lambda r: {"anyOf": [{"allOf": [{"properties": {"a": {"items": r}}}]}]},
    }[kind]
    defs = {f"d{i}": wrap({"$ref": f"#/$defs/d{i + 1}"}) for i in range(links)}
    return {"$defs": {**defs, f"d{links}": {"type": "string"}}, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize("schema", [nested(5000), nested(65), chain(3000, "plain")], ids=range(3))
def test_depth_is_refused_before_the_library_overflows(tokenizer, schema):
    with pytest.raises(UsageError, match="levels deep"):
        grammar.json_schema(tokenizer, schema)


@pytest.mark.parametrize("kind", ["plain", "properties", "mixed"])
def test_the_longest_chain_that_is_taken_compiles(tokenizer, kind):
    longest = 1
    while True:
        try:
            grammar.checked(chain(longest + 50, kind), "schema")
        except UsageError:
            break
        longest += 50
    assert longest > 400
    make = grammar.json_schema(tokenizer, chain(longest, kind))
    results = []
    thread = threading.Thread(
        target=lambda: results.append(make().mask(np.zeros(tokenizer.vocab_size, np.float32)))
    )
    thread.start()
    thread.join()
    assert np.isfinite(results[0]).any()
