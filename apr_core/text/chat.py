"""Renders chat prompts by the model's own template, sandboxed; content forges no control tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypedDict, Unpack

from apr_core.errors import FormatError, UsageError
from apr_core.text.tokenizer import Tokenizer

MAX_PROMPT = 16 << 20  # characters a template may produce
# what code in a template raises that does not fit the messages
FAULTS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
PRIVATE_USE = (0xF0000, 0x10FFFE)  # characters used as stand-ins while a template runs

Message = Mapping[str, Any]


class ChatOptions(TypedDict, total=False):
    """What changes a prompt besides its messages."""

    add_generation_prompt: bool  # end with the header of an answer: by default
    enable_thinking: bool | None  # None leaves it to the template
    tools: Sequence[Mapping[str, Any]] | None
    variables: Mapping[str, Any] | None  # further names that the template may use


class ChatTemplate:
    """A compiled Jinja template. Raises UsageError without one, FormatError for a broken one."""

    def __init__(self, source: object) -> None:
        import jinja2
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        if not isinstance(source, str):
            raise UsageError("the model has no chat template", "`generate` completes plain text.")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError, MemoryError) as error:
            raise FormatError(f"the chat template in the file is broken: {error}") from None

    def render(self, messages: Sequence[Message], **options: Unpack[ChatOptions]) -> str:
        """Render the prompt. Raises UsageError with the template's own words if it refuses."""
        import jinja2

        values: dict[str, Any] = {
            **(options.get("variables") or {}),
            "messages": [dict(m) for m in messages],
            "add_generation_prompt": options.get("add_generation_prompt", True),
            "tools": options.get("tools"),
        }
        if (thinking := options.get("enable_thinking")) is not None:
            values["enable_thinking"] = thinking
        parts, size = [], 0
        try:
            for part in self._template.generate(**values):
                parts.append(part)
                size += len(part)
                if size > MAX_PROMPT:
                    raise FormatError(f"the chat template produced over {MAX_PROMPT} characters")
        except MemoryError:
            raise FormatError("the chat template asks for more memory than there is") from None
        except (jinja2.TemplateError, *FAULTS) as error:
            raise UsageError(f"the chat template refuses these messages: {error}") from None
        return "".join(parts)


def _raise_exception(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


class _Guard:
    """Swaps what could spell a control token in content for private-use characters, and back.

    Where a token begins with a sign, such as `<`, every such sign is replaced: a template may join
    two contents, and a token could be spelled across them. Other tokens are replaced as a whole,
    because their first letter may be any letter. The stand-ins are characters the values lack.
    """

    def __init__(self, tokenizer: Tokenizer, *values: Any) -> None:
        spellings = sorted((t for t in tokenizer.added if t.strip()), key=len, reverse=True)
        signs = {t[0] for t in spellings if not (t[0].isalnum() or t[0].isspace())}
        guarded = [*sorted(signs), *(t for t in spellings if t[0] not in signs)]
        used = set(json.dumps(values, ensure_ascii=False, default=str))
        free = (c for c in map(chr, range(*PRIVATE_USE)) if c not in used)
        self._stand_in = dict(zip(guarded, free, strict=False))
        self._spelling = {ord(c): t for t, c in self._stand_in.items()}
        self._pattern = _any_of(guarded)

    def protect(self, value: Any, keep: Sequence[str] = ()) -> Any:
        """Return the value with every string in it protected, except the tokens in `keep`."""
        if isinstance(value, str):
            parts = _any_of(keep, group=True).split(value) if keep else [value]
            return "".join(p if p in keep else self._replaced(p) for p in parts)
        if isinstance(value, Mapping):
            return {self.protect(k): self.protect(v, keep) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.protect(v, keep) for v in value]
        return value

    def _replaced(self, text: str) -> str:
        return self._pattern.sub(lambda m: self._stand_in[m.group()], text)

    def restore(self, text: str) -> str:
        return text.translate(self._spelling)


def _any_of(spellings: Sequence[str], group: bool = False) -> re.Pattern[str]:
    form = "|".join(map(re.escape, spellings)) or "(?!)"
    return re.compile(f"({form})" if group else form)


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    **options: Unpack[ChatOptions],
) -> list[int]:
    """Return the ids of the prompt that `chat_pieces` returns."""
    ids: list[int] = []
    for piece in chat_pieces(tokenizer, template, messages, **options):
        ids += [piece] if isinstance(piece, int) else tokenizer.encode(piece)
    return ids


def chat_pieces(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    **options: Unpack[ChatOptions],
) -> Iterator[int | str]:
    """Return the prompt in pieces: ids of control tokens, and the plain text between them.

    Control tokens come from the template only: their spellings in a message's content, or in names
    and arguments of tools, are plain text. In assistant messages the thinking tags keep their
    meaning, because templates take reasoning out of history by them.
    """
    tools, variables = options.get("tools"), options.get("variables") or {}
    guard = _Guard(tokenizer, messages, tools, variables)
    tags = tokenizer.reasoning
    protected = [{k: _protected(guard, m, k, tags) for k in m} for m in messages]
    options["tools"] = guard.protect(tools) if tools else None
    options["variables"] = {**guard.protect(variables), **tokenizer.special_tokens}
    text = template.render(protected, **options)
    for piece, token in tokenizer.split(text):
        yield token.id if token else guard.restore(piece)


def _protected(guard: _Guard, message: Message, key: str, tags: Sequence[str]) -> Any:
    """Return one field of a message, protected so that it cannot spell a control token."""
    value, role = message[key], message.get("role")
    if key == "role" and isinstance(value, str) and value.isidentifier():
        return value  # a plain word, which templates compare
    return guard.protect(value, tags if (role, key) == ("assistant", "content") else ())


def starts_thinking(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> bool:
    """Return True if the answer to this prompt begins inside a think block."""
    ids = [tokenizer.token_id(tag) for tag in tokenizer.reasoning]
    last = next((id_ for id_ in reversed(prompt_ids) if id_ in ids), None)
    return last is not None and last == ids[0]
