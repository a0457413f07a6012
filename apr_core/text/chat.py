"""Chat prompts by the model's own template, in a sandbox; content cannot forge control tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from apr_core.errors import FormatError, UsageError
from apr_core.text.tokenizer import Tokenizer

THINK, END_THINK = "<think>", "</think>"
MAX_PROMPT = 16 << 20  # characters a template may produce
GUARD = 0xF0000  # first of the private-use characters that stand for control tokens in content

Message = Mapping[str, Any]


class ChatTemplate:
    """A compiled Jinja template. Raises FormatError if the template itself is broken."""

    def __init__(self, source: str) -> None:
        import jinja2
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise FormatError(f"the chat template in the file is broken: {error}") from None

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The prompt. Raises UsageError with the template's own words if it refuses."""
        import jinja2

        values: dict[str, Any] = {
            "messages": [dict(m) for m in messages],
            "add_generation_prompt": add_generation_prompt, "tools": tools,
        }  # fmt: skip
        if enable_thinking is not None:
            values["enable_thinking"] = enable_thinking
        parts, size = [], 0
        try:
            for part in self._template.generate(**values):
                parts.append(part)
                size += len(part)
                if size > MAX_PROMPT:
                    raise FormatError(f"the chat template produced over {MAX_PROMPT} characters")
        except FormatError:
            raise
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            OverflowError,
            RecursionError,
        ) as error:
            raise UsageError(f"the chat template refuses these messages: {error}") from None
        return "".join(parts)


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


class _Guard:
    """Replaces control tokens in content by private-use characters, and back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokens = sorted(tokenizer.added, key=len, reverse=True)
        self._stand_in = {t: chr(GUARD + i) for i, t in enumerate(self._tokens)}
        self._token = {c: t for t, c in self._stand_in.items()}
        self._pattern = re.compile("|".join(map(re.escape, self._tokens)) or r"(?!)")

    def protect(self, value: Any, keep: frozenset[str]) -> Any:
        """The value with every string in it protected, but for the tokens in `keep`."""
        if isinstance(value, str):
            return self._pattern.sub(
                lambda m: m.group() if m.group() in keep else self._stand_in[m.group()], value
            )
        if isinstance(value, Mapping):
            return {k: self.protect(v, keep) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.protect(v, keep) for v in value]
        return value

    def restore(self, text: str) -> str:
        return "".join(self._token.get(c, c) for c in text)


REASONING = frozenset({THINK, END_THINK})


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    *,
    enable_thinking: bool | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[int]:
    """Ids of the prompt for an answer to `messages`.

    Control tokens come from the template only: the same spellings inside a message's content are
    encoded as the plain text they are. In assistant messages the thinking tags keep their meaning,
    because templates take reasoning out of history by them.
    """
    guard = _Guard(tokenizer)
    protected = [
        {
            k: v if k == "role"
            else guard.protect(v, REASONING if m.get("role") == "assistant" else frozenset())
            for k, v in m.items()
        }
        for m in messages
    ]  # fmt: skip
    text = template.render(
        protected,
        enable_thinking=enable_thinking,
        tools=guard.protect(tools, frozenset()) if tools else None,
    )
    ids: list[int] = []
    for piece, token in tokenizer.split(text):
        ids += [token.id] if token else tokenizer.encode(guard.restore(piece))
    return ids


def starts_thinking(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> bool:
    """Whether the answer to this prompt begins inside a think block."""
    start, end = tokenizer.token_id(THINK), tokenizer.token_id(END_THINK)
    for id_ in reversed(prompt_ids):
        if id_ in (start, end):
            return id_ == start
    return False
