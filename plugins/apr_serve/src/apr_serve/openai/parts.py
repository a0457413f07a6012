"""Pieces of OpenAI's answers that chat and plain completions share."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

from pydantic import BaseModel, ConfigDict

from apr_core.runtime import Tokenizer, TokenLogprob, Usage
from apr_serve.http.errors import ApiError, as_api_error, openai_shape
from apr_serve.http.sse import DONE, event

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request is wrong; the message names the field."},
    401: {"description": "The API key is missing or wrong."},
    404: {"description": "There is no such model."},
    408: {"description": "The body did not come in time."},
    413: {"description": "The body is too large."},
    415: {"description": "The body is no JSON."},
    429: {"description": "The queue is full: try again after Retry-After."},
    503: {"description": "The server is shutting down."},
    504: {"description": "The request took longer than the server allows."},
}


class Open(BaseModel):
    """A part of an answer; it may have more fields than are declared here."""

    model_config = ConfigDict(extra="allow")


class ErrorDetail(Open):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Open):
    """OpenAI's form of an error."""

    error: ErrorDetail


for _response in ERRORS.values():
    _response["model"] = ErrorBody


def streamed(
    whole: type[BaseModel], description: str, named: bool = False
) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of a route that answers with `whole`, or streams events.

    Events are `named` after their data's `type`, or the last one's data is `[DONE]`, not JSON.
    """
    data = {"type": "string", "description": "A chunk in JSON; at the end `[DONE]`."}
    fields: dict[str, Any] = {"data": data}
    if named:
        data = {"type": "string", "contentMediaType": "application/json"}
        fields = {"event": {"type": "string"}, "data": data}
    item = {"type": "object", "properties": fields, "required": list(fields)}
    events = {"text/event-stream": {"itemSchema": item}}
    return {200: {"model": whole, "description": description, "content": events}}


class PromptDetails(Open):
    """Details of the prompt's tokens."""

    cached_tokens: int


class CompletionDetails(Open):
    """Details of the answer's tokens."""

    reasoning_tokens: int


class UsageBody(Open):
    """Tokens of a request. `cached_tokens` were not computed again."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


def usage_body(usage: Usage) -> dict[str, Any]:
    """Return usage in OpenAI's fields."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def new_head(kind: str, object_: str, model: str) -> dict[str, Any]:
    """Return the fields that every answer and chunk begins with."""
    return {
        "id": f"{kind}-{uuid.uuid4().hex}", "object": object_, "created": int(time.time()),
        "model": model,
    }  # fmt: skip


def failure_events(error: BaseException) -> bytes:
    """Return the last events of a stream that fails: an error event, then [DONE]."""
    return event(openai_shape(as_api_error(error))) + DONE


class TokenNames:
    """Tokens as text and bytes, for log probabilities.

    Omits what is not in the text: tokens that end answers, and control tokens, if so asked.
    """

    def __init__(self, tokenizer: Tokenizer, ends: bool = True, special: bool = True) -> None:
        self._tokenizer = tokenizer
        control = {t.id for t in tokenizer.added.values() if t.special} if special else set()
        self._silent = frozenset(control.union(tokenizer.stop_ids if ends else ()))

    def spoken(self, logprobs: Iterable[TokenLogprob]) -> list[TokenLogprob]:
        """Return the tokens that are text: joined they are the answer."""
        return [token for token in logprobs if token.id not in self._silent]

    def text(self, id_: int) -> str:
        """Return the text of one token; incomplete characters become U+FFFD."""
        return self._tokenizer.decode([id_])

    def bytes_(self, id_: int) -> list[int]:
        """Return the bytes of one token; joined over tokens they are the text."""
        added = self._tokenizer.added_token(id_)
        if added:
            return list(added.content.encode())
        if self._tokenizer.byte_level:
            return list(self._tokenizer.token_bytes(id_))
        return list(self.text(id_).encode())

    def chat(self, logprobs: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
        """Return `logprobs.content` of a chat choice."""
        return [
            {
                **self._one(token.id, token.logprob),
                "top_logprobs": [self._one(id_, value) for id_, value in token.top],
            }
            for token in self.spoken(logprobs)
        ]

    def _one(self, id_: int, logprob: float) -> dict[str, Any]:
        return {"token": self.text(id_), "logprob": number(logprob), "bytes": self.bytes_(id_)}

    def prompt(self, first: int, scores: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
        """Return `logprobs` of a prompt; those of its first token are None."""
        texts = [self.text(id_) for id_ in (first, *(token.id for token in scores))]
        return {
            "tokens": texts,
            "token_logprobs": [None, *(number(token.logprob) for token in scores)],
            "top_logprobs": [None, *map(self._rivals, scores)],
            "text_offset": [0, *accumulate(map(len, texts[:-1]))],
        }

    def _rivals(self, token: TokenLogprob) -> dict[str, float]:
        return {self.text(id_): number(value) for id_, value in token.top}

    def completion(
        self, logprobs: Sequence[TokenLogprob], begin: int, end: int
    ) -> dict[str, list[Any]]:
        """Return `logprobs` of one piece of a plain completion: its characters `begin` to `end`.

        Several tokens may share the bytes of one character: each is U+FFFD, but the text has only
        one. Text that belongs to earlier tokens comes first in the piece.
        """
        logprobs = self.spoken(logprobs)
        texts = [self.text(token.id) for token in logprobs]
        begin = max(begin, end - sum(map(len, texts)))
        offsets = [begin + sum(map(len, texts[:i])) for i in range(len(texts))]
        return {
            "tokens": texts,
            "token_logprobs": [number(token.logprob) for token in logprobs],
            "top_logprobs": [self._rivals(token) for token in logprobs],
            "text_offset": [min(offset, end) for offset in offsets],
        }


def number(logprob: float) -> float:
    """Return the log probability as a JSON number: -9999 for -inf, as OpenAI writes it."""
    return max(logprob, -9999.0)


def one_stream_option(options: object, stream: bool | None) -> None:
    """Raise ApiError for stream_options without streaming."""
    if options is not None and not stream:
        raise ApiError(400, "stream_options needs stream: true", "stream_options")
