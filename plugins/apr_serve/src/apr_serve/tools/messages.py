"""Messages as clients send them, converted for chat templates. Every refusal names the place.

Templates are strict: one system message and that first, content they can trim, arguments of calls
as mappings. Clients are not: agents send system and developer messages anywhere, arguments as JSON
in a string, null for no content. Whatever has one clear meaning is accepted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from apr_core.plugin import UsageError
from apr_serve.tools.coercion import strict_json

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant",
         "tool": "tool", "function": "tool"}  # fmt: skip
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
MAX_DEPTH = 64  # of arguments and schemas: templates and guards walk them recursively
TOOL_NAME = re.compile(r"[^\s<>\"'\x00-\x1f\x7f]{1,128}")
UNPARSED = "arguments"  # the name under which arguments that are not a JSON object are kept


class Function(Protocol):
    """A tool, as far as templates show it."""

    @property
    def name(self) -> str:
        """The tool's name."""

    @property
    def description(self) -> str:
        """What the tool does, for the model."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The JSON schema of the arguments."""


def normalized(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages as templates take them, with all system messages joined into the first.

    Developer messages count as system messages. Content becomes one string, a call's arguments a
    mapping, `reasoning` is renamed to `reasoning_content`, and fields no template knows are
    dropped. Arguments that are not a JSON object, as another model may have written them, are kept
    under the name "arguments", so that the conversation can continue. Raises UsageError naming
    `messages[i]` and what was expected there.
    """
    if not _is_list(messages) or not messages:
        raise UsageError("messages: expected a list with at least one message")
    turns = [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    system = [m["content"] for m in turns if m["role"] == "system"]
    rest = [m for m in turns if m["role"] != "system"]
    content = "\n\n".join(text for text in map(str.strip, system) if text)
    return [{"role": "system", "content": content}, *rest] if system else rest


def template_tools(tools: Sequence[Function]) -> list[dict[str, Any]] | None:
    """Return the tools as templates show them; None for no tools. Raises UsageError."""
    listed: dict[str, dict[str, Any]] = {}
    for i, tool in enumerate(tools):
        where = f"tools[{i}]"
        if not (isinstance(tool.name, str) and TOOL_NAME.fullmatch(tool.name)):
            raise UsageError(
                f"{where}: the name must have 1 to 128 characters without white space, quotes "
                f"and angle brackets, found {_shown(tool.name)}"
            )
        if tool.name in listed:
            raise UsageError(f"{where}: there is another tool named {tool.name!r}")
        parameters = _shallow(tool.parameters, f"{where} ({tool.name}): parameters")
        if not isinstance(parameters, Mapping):
            raise UsageError(f"{where} ({tool.name}): parameters must be a JSON schema object")
        listed[tool.name] = {
            "name": tool.name,
            "description": tool.description or "",
            "parameters": parameters or {"type": "object", "properties": {}},
        }
    return [{"type": "function", "function": f} for f in listed.values()] or None


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise UsageError(
            f"{where}: expected an object with role and content, found {_kind(message)}"
        )
    value = message.get("role")
    role = ROLES.get(value) if isinstance(value, str) else None
    if role is None:
        known = ", ".join(ROLES)
        raise UsageError(f"{where}.role: expected one of {known}; found {_shown(value)}")
    if message.get("audio") is not None:
        raise UsageError(f"{where}.audio: this model reads text only")
    optional = role in ("assistant", "tool")
    turn = {"role": role, "content": _content(message.get("content"), f"{where}.content", optional)}
    for key in ("name", "tool_call_id"):
        if message.get(key) is not None:
            turn[key] = _string(message[key], f"{where}.{key}")
    if role == "assistant":
        turn |= _reasoning(message, where) | _calls(message, where)
    return turn


def _content(content: Any, where: str, optional: bool) -> str:
    """Return the text of a message. `optional`: null is no text."""
    if content is None and optional:
        return ""
    if isinstance(content, str):
        return _string(content, where)
    if _is_list(content):
        return "".join(_part(part, f"{where}[{j}]") for j, part in enumerate(content))
    raise UsageError(f"{where}: expected text or a list of parts, found {_kind(content)}")


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return _string(part, where)
    if not isinstance(part, Mapping):
        raise UsageError(f"{where}: expected a part such as {_EXAMPLE}, found {_kind(part)}")
    kind = part.get("type", "text" if "text" in part else None)
    key = TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if key is None:
        raise UsageError(
            f"{where}: this model reads text only, found a part of type {_shown(kind)}",
            f"Send parts such as {_EXAMPLE}.",
        )
    return _string(part.get(key), f"{where}.{key}")


_EXAMPLE = '{"type": "text", "text": "..."}'


def _reasoning(message: Mapping[str, Any], where: str) -> dict[str, str]:
    for key in ("reasoning_content", "reasoning"):
        if message.get(key) is not None:
            return {"reasoning_content": _string(message[key], f"{where}.{key}")}
    return {}


def _calls(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the calls of an assistant's message, also from the old single `function_call`."""
    calls, where_calls = message.get("tool_calls"), f"{where}.tool_calls"
    if calls is None and message.get("function_call") is not None:
        function = _function(message["function_call"], f"{where}.function_call")
        return {"tool_calls": [{"type": "function", "function": function}]}
    if not calls:
        return {}
    if not _is_list(calls):
        raise UsageError(f"{where_calls}: expected a list of calls, found {_kind(calls)}")
    return {"tool_calls": [_call(call, f"{where_calls}[{j}]") for j, call in enumerate(calls)]}


def _call(call: Any, where: str) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise UsageError(f"{where}: expected an object with a function, found {_kind(call)}")
    if call.get("type", "function") != "function":
        raise UsageError(f"{where}.type: expected 'function', found {_shown(call['type'])}")
    fields: dict[str, Any] = {"type": "function"}
    if call.get("id") is not None:
        fields["id"] = _string(call["id"], f"{where}.id")
    fields["function"] = _function(call.get("function"), f"{where}.function")
    return fields


def _function(function: Any, where: str) -> dict[str, Any]:
    if not isinstance(function, Mapping):
        kind = _kind(function)
        raise UsageError(f"{where}: expected an object with name and arguments, found {kind}")
    name = _string(function.get("name"), f"{where}.name")
    return {"name": name, "arguments": _arguments(function.get("arguments"), f"{where}.arguments")}


def _arguments(arguments: Any, where: str) -> dict[str, Any]:
    if arguments is None:
        return {}
    if isinstance(arguments, Mapping):
        return dict(_shallow(arguments, where))
    if not isinstance(arguments, str):
        kind = _kind(arguments)
        raise UsageError(f"{where}: expected an object, or JSON of one in a string; found {kind}")
    parsed = _parsed(_string(arguments, where))
    return dict(parsed) if isinstance(parsed, Mapping) else {UNPARSED: parsed}


def _parsed(text: str) -> Any:
    """Return the JSON in a string, unwrapped up to twice; the string itself if there is none."""
    if not text.strip():
        return {}
    try:
        value = strict_json(text)
        inner = strict_json(value) if isinstance(value, str) else value
        value = inner if isinstance(inner, dict) else value
    except (ValueError, RecursionError):
        return text
    return value if _is_shallow(value) else text


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{where}: expected text, found {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{where}: not valid Unicode: {error}") from None
    return value


def _shallow(value: Any, where: str) -> Any:
    if not _is_shallow(value):
        raise UsageError(f"{where}: nested over {MAX_DEPTH} levels deep")
    return value


def _is_shallow(value: Any) -> bool:
    """Return True if a value is nested at most MAX_DEPTH levels, found without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, Mapping):
                inner += item.values()
            elif _is_list(item):
                inner += item
        if not inner:
            return True
        level = inner
    return False


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def _kind(value: Any) -> str:
    """Return JSON's name for the kind of a value."""
    kinds = {type(None): "null", bool: "a boolean", int: "a number", float: "a number",
             str: "a string", dict: "an object", list: "a list"}  # fmt: skip
    return kinds.get(type(value), type(value).__name__)


def _shown(value: Any) -> str:
    """Return a value for a message, shortened if it is long."""
    text = repr(value) if isinstance(value, str | int | float) else _kind(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
