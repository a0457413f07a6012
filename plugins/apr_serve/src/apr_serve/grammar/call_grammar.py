"""The grammar of tool calls, in the two forms that templates teach. Text in, text out.

A call in tags names its arguments in any order, each at most once, required ones always. Arguments
that are strings are free text up to the closing tag, within length, pattern and format; all others
are JSON by their schema. A schema that cannot be enforced this way is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from apr_core.plugin import UsageError
from apr_serve.grammar.schemas import restricting, rooted
from apr_serve.tools.coercion import ANY, ArgumentTypes, followed, resolved
from apr_serve.tools.tool_calls import CLOSE, END_FUNCTION, FUNCTION, OPEN, PARAMETER, Form

if TYPE_CHECKING:
    from apr_core.runtime import Tokenizer

ORDERED = 64  # from this many arguments of a tool on, they come in the schema's order
CLOSING = "\n</parameter>\n"
COMPACT = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
# Text that would end a value early, between its first line break and its closing tag.
GUARD = r"GUARD: ~/(?s:.*)(<\/parameter>|\n(<parameter=|<\/function>|<\/tool_call>))(?s:.*)/"
ROOT_WORDS = {"type", "properties", "required", "additionalProperties", "$ref"}
MONTH = ("((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
         "|02-(0[1-9]|1[0-9]|2[0-8]))")  # fmt: skip
LEAP = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29"
DATE = f"([0-9]{{4}}-{MONTH}|{LEAP})"
TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
HOURS = "([0-9]+H([0-9]+M([0-9]+S)?)?|[0-9]+M([0-9]+S)?|[0-9]+S)"
DAYS = "([0-9]+Y([0-9]+M([0-9]+D)?)?|[0-9]+M([0-9]+D)?|[0-9]+D)"
LABEL = "[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
HOST = rf"{LABEL}(\.{LABEL})*"
IN_PATH = r"([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
PATH = rf"{IN_PATH}*(\/{IN_PATH}*)*"
QUERY = rf"({IN_PATH}|[\/?])*"
HEX = "[0-9a-fA-F]{1,4}"
OCTET = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
FORMATS = {
    "date": DATE,
    "time": TIME,
    "date-time": f"{DATE}T{TIME}",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "email": r"[a-z0-9_+-]+(\.[a-z0-9_+-]+)*@[a-z0-9]+(-[a-z0-9]+)*(\.[a-z0-9]+(-[a-z0-9]+)*)+",
    "ipv4": rf"{OCTET}(\.{OCTET}){{3}}",
    "ipv6": "|".join([
        f"({HEX}:){{7}}{HEX}", f"({HEX}:){{1,7}}:", f":(:{HEX}){{1,7}}", "::",
        *(f"({HEX}:){{1,{7 - n}}}(:{HEX}){{1,{n}}}" for n in range(1, 7)),
    ]),
    "hostname": HOST,
    "duration": f"P({DAYS}(T{HOURS})?|T{HOURS}|[0-9]+W)",
    "uri": rf"[A-Za-z][A-Za-z0-9+.-]*:(\/\/({HOST}(:[0-9]{{1,5}})?)?(\/{PATH})?|{IN_PATH}{PATH})"
           rf"(\?{QUERY})?(#{QUERY})?",
}  # fmt: skip


class CalledTool(Protocol):
    """A tool, as far as its calls can be written."""

    @property
    def name(self) -> str:
        """The tool's name."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The JSON schema of the arguments."""


def calls_grammar(
    tokenizer: Tokenizer,
    tools: Sequence[CalledTool],
    parallel: bool,
    form: Form,
    lead: str,
    other: str,
) -> str:
    """Return the grammar of calls. `other`: "text", a rule, or "" for no alternative."""
    opening, closing = (_token(tokenizer, tag) for tag in (OPEN, CLOSE))
    functions = " | ".join(f"tool_{i}" for i in range(len(tools)))
    more = '("\\n" call)*' if parallel else ""
    rules = [f"calls: call {more}", f"call: {opening} after_opening"]
    start = f"{lead} calls"
    if other == "text":
        start = _text_or_calls(rules, opening, more)
    elif other:
        start = f"{lead} (calls | other)"
        rules.append(f"other: {other}")
    if form == "json":
        rules.append(f'after_opening: "\\n" ({functions}) "\\n" {closing}')
        rules += [f"tool_{i}: {_as_json(tool)}" for i, tool in enumerate(tools)]
    else:
        head, end = _quoted(f"\n{FUNCTION}"), _quoted(f"{END_FUNCTION}\n")
        rules += [f"after_opening: {head} ({functions}) {end} {closing}", GUARD]
        for i, tool in enumerate(tools):
            rules += _TagRules(tool, i).rules
    return "\n".join([f"start: {start}", *rules, ""])


def _text_or_calls(rules: list[str], opening: str, more: str) -> str:
    """Return a rule for free text, then calls or none; the text never looks like a call."""
    marks = r"(.*\n)?<function=" if opening.startswith("<") else r"(.*\n)?<function=|.*<tool_call>"
    rules.append(f"TEXT: /(?s:.*)/ & ~/(?s:{marks}.*)/")
    if opening.startswith("<"):
        return f"TEXT | TEXT call {more}"
    rules.append(f"text_opening[lazy]: /(?s:.*)/ {opening}")
    return f"TEXT | text_opening after_opening {more}"


def _token(tokenizer: Tokenizer, tag: str) -> str:
    """Return a tag as its token, if it is one; else as quoted text."""
    added = tokenizer.added.get(tag)
    return f"<[{added.id}]>" if added else _quoted(tag)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _as_json(tool: CalledTool) -> str:
    arguments = rooted({"$ref": "#"}, _object_schema(tool))
    shape = {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": {"$ref": "#/$defs/value"}},
        "required": ["name", "arguments"],
        "additionalProperties": False,
        "$defs": arguments["$defs"],
        "x-guidance": COMPACT,
    }
    return "%json " + json.dumps(shape)


def _object_schema(tool: CalledTool) -> dict[str, Any]:
    """Return the schema of a tool's arguments; a tool without a schema takes none."""
    if not tool.parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {"type": "object", **tool.parameters}


class _TagRules:
    """The rules of one tool's calls in tags."""

    def __init__(self, tool: CalledTool, number: int) -> None:
        self._root, self._where = _object_schema(tool), f"tool {tool.name}"
        self._prefix = f"t{number}"
        self._types = ArgumentTypes(self._root)
        self._count = 0
        self.rules: list[str] = []
        body = self._body(resolved(self._root, self._root))
        self.rules.append(f"tool_{number}: {_quoted(f'{tool.name}>' + chr(10))} {body}")

    def _refuse(self, problem: str) -> UsageError:
        return UsageError(f"{self._where}: {problem}")

    def _name(self, kind: str) -> str:
        self._count += 1
        name = f"{self._prefix}_{kind}_{self._count}"
        return name.upper() if kind.isupper() else name

    def _body(self, schema: Mapping[str, Any]) -> str:
        """Return a rule for all arguments."""
        unknown = sorted(restricting(schema) - ROOT_WORDS)
        if unknown:
            words = ", ".join(unknown)
            raise self._refuse(f"{words} beside the properties: a required call cannot keep this")
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise self._refuse("properties must be an object and required a list")
        other = schema.get("additionalProperties", True)
        listed = {**properties, **{k: other for k in required if k not in properties}}
        if "properties" not in schema and not required and other is not False:
            return f"({self._free(other)})*"
        arguments = [self._argument(key, listed[key]) for key in listed]
        needed = [key in required for key in listed]
        if len(arguments) >= ORDERED:
            return " ".join(a if n else f"({a})?" for a, n in zip(arguments, needed, strict=True))
        return self._any_order(arguments, needed) if arguments else '""'

    def _any_order(self, arguments: Sequence[str], needed: Sequence[bool]) -> str:
        """Return a rule with each argument at most once: bits of its parameter tell which came."""
        rule = self._name("some")
        bits = [f"bit_set({i})" for i, is_needed in enumerate(needed) if is_needed]
        condition = bits[0] if bits else "true"
        for bit in bits[1:]:
            condition = f"and({condition}, {bit})"
        options = [f'"" %if {condition}']
        for i, argument in enumerate(arguments):
            options.append(f"{argument} {rule}::set_bit({i}) %if bit_clear({i})")
        self.rules.append(f"{rule}::_ : " + "\n  | ".join(options))
        return f"{rule}::0x0"

    def _argument(self, key: str, schema: Any) -> str:
        if re.search(r"[<>\n]", key) or not key:
            raise self._refuse(f"the name of argument {key!r} cannot be written in a tag")
        value = self._name("value")
        self.rules.append(f"{value}: {self._value(schema, key, 0)}")
        rule = self._name("argument")
        self.rules.append(f"{rule}: {_quoted(f'{PARAMETER}{key}>')} {value}")
        return rule

    def _free(self, schema: Any) -> str:
        """Return a rule for an argument of any name."""
        value = self._name("value")
        self.rules.append(f"{value}: {self._value(schema, 'of any name', 0)}")
        return f'"{PARAMETER}" /[A-Za-z_][A-Za-z0-9_.-]{{0,63}}/ ">" {value}'

    # Values, each from the line break before it to its closing tag

    def _value(self, source: Any, key: str, depth: int) -> str:
        schema = followed(source, self._root)
        if schema is None or not isinstance(source, Mapping | bool):
            raise self._refuse(f"argument {key}: no schema, or a $ref that leads nowhere")
        words = restricting(schema)
        if depth > 8 or source is False:
            raise self._refuse(f"argument {key}: the schema is too tangled, or allows nothing")
        if "enum" in words or "const" in words:
            return self._literals(schema, key)
        types = self._types.of_schema(schema)
        if "string" not in types:
            return self._json(source, types)
        if not words:
            return self._text({})
        if isinstance(source, Mapping) and schema is not source and restricting(source) - {"$ref"}:
            raise self._refuse(f"argument {key}: $ref to a string beside other keywords")
        choice = next((w for w in ("anyOf", "oneOf", "allOf") if w in words), None)
        if choice:
            parts = schema[choice]
            single = choice != "allOf" or len(parts) == 1
            if words - {choice} or not single:
                raise self._refuse(f"argument {key}: {choice} with strings beside other keywords")
            return " | ".join(dict.fromkeys(self._value(p, key, depth + 1) for p in parts))
        text = self._text({k: v for k, v in schema.items() if k in words}, key)
        if not schema.keys() & {"pattern", "format", "minLength", "maxLength"}:
            return text  # whatever other types would write is text too
        rest = types - {"string"}
        if not rest or types == ANY:
            return text
        return f"{text} | {self._json({**schema, 'type': sorted(rest)}, rest)}"

    def _literals(self, schema: Mapping[str, Any], key: str) -> str:
        values = schema.get("enum", [schema.get("const")])
        if (
            not isinstance(values, list)
            or not values
            or restricting(schema) - {"enum", "type", "const"}
        ):
            raise self._refuse(f"argument {key}: enum must be a list, alone but for a type")
        if any("</parameter>" in str(value) for value in values):
            raise self._refuse(f"argument {key}: a value of the enum holds a closing tag")
        spelled = [s for value in values for s in _spellings(value)]
        ends = " | ".join(_quoted(f"\n{s}{CLOSING}") for s in dict.fromkeys(spelled))
        return f"({ends})"

    def _json(self, schema: Any, types: frozenset[str]) -> str:
        words = ['"None"'] * ("null" in types) + ['"True" | "False"'] * ("boolean" in types)
        value = {**rooted(schema, self._root), "x-guidance": COMPACT}
        return f'"\\n" ({" | ".join([*words, "%json " + json.dumps(value)])}) {_quoted(CLOSING)}'

    def _text(self, schema: Mapping[str, Any], key: str = "") -> str:
        """Return a rule for free text within the schema's limits on strings."""
        unknown = sorted(schema.keys() - {"type", "minLength", "maxLength", "pattern", "format"})
        parts = []
        if "minLength" in schema or "maxLength" in schema:
            low, high = schema.get("minLength", 0), schema.get("maxLength", "")
            if type(low) is not int or not (high == "" or type(high) is int):
                raise self._refuse(f"argument {key}: minLength and maxLength must be whole numbers")
            parts.append(f"/(?s:.{{{low},{high}}})/")
        if "pattern" in schema:
            parts.append(self._pattern(schema["pattern"], key))
        if "format" in schema:
            if schema["format"] not in FORMATS:
                raise self._refuse(f"argument {key}: format must be text")
            parts.append(f"/{FORMATS[schema['format']]}/")
        if unknown:
            words = ", ".join(unknown)
            raise self._refuse(f"argument {key}: unsupported keywords for a string: {words}")
        limited, inner = self._name("TEXT"), " & ".join(parts) or "/(?s:.*)/"
        self.rules.append(f"{limited}_IN: {inner}")
        self.rules.append(f'{limited}: "\\n" {limited}_IN')
        rule = self._name("text")
        self.rules.append(f"{limited}_ALL: ({limited} & GUARD) {_quoted(CLOSING)}")
        self.rules.append(f"{rule}[lazy]: {limited}_ALL")
        return rule

    def _pattern(self, pattern: Any, key: str) -> str:
        from llguidance import regex_to_lark

        if not isinstance(pattern, str):
            raise self._refuse(f"argument {key}: pattern must be a string")
        bare = re.sub(r"\\.|\[(?:\\.|[^\]\\])*\]", lambda m: "x" * len(m.group()), pattern)
        begins, ends = bare.startswith("^"), bare.endswith("$")
        inner = bare[begins : len(bare) - ends]
        if re.search(r"[\^$]", inner) or ((begins or ends) and _alternates(inner)):
            raise self._refuse(f"argument {key}: in a pattern ^ may only begin it and $ end it")
        text = regex_to_lark(pattern[begins : len(pattern) - ends], "dw")
        before, after = "" if begins else "(?s:.*)", "" if ends else "(?s:.*)"
        return f"/{before}({text}){after}/"


def _alternates(bare: str) -> bool:
    """Return True if a pattern without escapes and classes has alternatives at its top level."""
    depth = 0
    for sign in bare:
        depth += (sign == "(") - (sign == ")")
        if sign == "|" and depth == 0:
            return True
    return False


def _spellings(value: Any) -> list[str]:
    """Return the spellings a model may use for a value: as templates write it, or as JSON."""
    if isinstance(value, str):
        return [value]
    if value is None or isinstance(value, bool):
        return [str(value), json.dumps(value)]
    return [json.dumps(value, ensure_ascii=False)]
